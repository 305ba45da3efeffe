"""Which loss reaches which parameters under each method, measured; and what is refused.

`PYTHONPATH=tests python tests/core/test_methods.py > docs/gradients.md` writes the table down.
"""

import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from problems import QUANTIZERS, Problem, make, make_with
from torch import Tensor
from torch.optim import SGD, AdamW, RMSprop

from mqvae import (
    Alternated,
    Amortized,
    Codebook,
    Cosine,
    DirectOnly,
    Ema,
    Exact,
    FiniteDifference,
    GumbelQuantizer,
    HyperNetwork,
    Joint,
    Kept,
    Meta,
    MetaBoth,
    MetaNetwork,
    NoQuantizer,
    ResidualQuantizer,
    Rotation,
    Rule,
    Synchronous,
    Transport,
    Transported,
    Undone,
    Unquantized,
    Unrolled,
    Update,
    VectorQuantizer,
)
from mqvae.core.quantizers import CodebookQuantizer
from mqvae.core.rules.rule import OnePass

LOSSES = ("task", "commitment", "codebook", "prior")
NOTHING = 1e-30  # of ξ: no indirect term that float64 tells from none, and a look-ahead
PAGE = Path(__file__).parents[2] / "docs" / "gradients.md"


@dataclass(frozen=True)
class Method:
    """A method, and what reaches φ, θ and C under it, in the words of the page below."""

    rule: type[Rule]
    phi: str
    theta: str
    codebook: str
    options: dict = field(default_factory=dict)
    quantizer: str = "table"


_BELOW = ("task, commitment", "task")
_UNDER_NEW_C = ("task, commitment, (codebook)", "task, (codebook)")
_UNDONE = ("task, commitment, (codebook)", "task, (commitment), (codebook)")
_PAPER = "*task* × codebook, *commitment* × codebook, codebook"
_EXACT = "*task*, *commitment*, codebook"
_LOOKING = "(task), (commitment), codebook"

# Beside each rule: what reaches φ, what θ, what C.
TABLE: dict[str, Method] = {
    "`Joint`": Method(Joint, *_BELOW, "codebook"),
    "`Ema`": Method(Ema, *_BELOW, "no loss: an average of z_e"),
    "`Ema(transport=Transport())`": Method(
        Ema,
        *_BELOW,
        "no loss: an average of z_e after a step by task and commitment",
        {"transport": Transport()},
    ),
    "`Unquantized`": Method(Unquantized, "task", "task", "nothing"),
    "`Synchronous`": Method(Synchronous, *_BELOW, "task, codebook"),
    "`Alternated`": Method(Alternated, *_UNDER_NEW_C, "codebook"),
    "`Alternated(nu=1)`": Method(
        Alternated,
        "task, commitment, (codebook)",
        "task, (codebook)",
        "task, codebook",
        {"nu": 1.0},
    ),
    "`Meta(DirectOnly())`": Method(Meta, *_UNDONE, _LOOKING, {"hypergradient": DirectOnly()}),
    "`Meta(FiniteDifference())`": Method(
        Meta, *_UNDONE, _PAPER, {"hypergradient": FiniteDifference()}
    ),
    "`Meta(Amortized())`, `Undone(optimizer_step=True)`": Method(
        Meta,
        *_UNDONE,
        _PAPER,
        {"hypergradient": Amortized(), "look_ahead": Undone(optimizer_step=True)},
    ),
    "`Meta(Exact())`": Method(Meta, *_UNDONE, _EXACT, {"hypergradient": Exact()}),
    "`Meta(Unrolled(1))`": Method(Meta, *_UNDONE, _EXACT, {"hypergradient": Unrolled(1)}),
    "`Meta(Unrolled(2))`": Method(Meta, *_UNDONE, _EXACT, {"hypergradient": Unrolled(2)}),
    "`Meta(Unrolled(2, stop_gradients=True))`": Method(
        Meta, *_UNDONE, _LOOKING, {"hypergradient": Unrolled(2, stop_gradients=True)}
    ),
    "`Meta(DirectOnly())`, `Kept()`": Method(
        Meta, *_BELOW, _LOOKING, {"hypergradient": DirectOnly(), "look_ahead": Kept()}
    ),
    "`Meta(FiniteDifference())`, `Kept()`": Method(
        Meta, *_BELOW, _PAPER, {"hypergradient": FiniteDifference(), "look_ahead": Kept()}
    ),
    "`Meta(Amortized())`, `Kept()`": Method(
        Meta, *_BELOW, _PAPER, {"hypergradient": Amortized(), "look_ahead": Kept()}
    ),
    "`Meta(Transported())`, `Kept()`": Method(
        Meta, *_BELOW, _EXACT, {"hypergradient": Transported(), "look_ahead": Kept()}
    ),
    "`Meta(Exact())`, `Kept()`": Method(
        Meta, *_BELOW, _EXACT, {"hypergradient": Exact(), "look_ahead": Kept()}
    ),
    "`Meta(FiniteDifference())`, `Undone(optimizer_step=True)`": Method(
        Meta,
        *_UNDONE,
        _PAPER,
        {"hypergradient": FiniteDifference(), "look_ahead": Undone(optimizer_step=True)},
    ),
    "`Meta(FiniteDifference())`, `Undone(optimizer_step=True, preconditioned=True)`": Method(
        Meta,
        *_UNDONE,
        _PAPER,
        {
            "hypergradient": FiniteDifference(),
            "look_ahead": Undone(optimizer_step=True, preconditioned=True),
        },
    ),
    "`Meta(FiniteDifference())`, `Kept(preconditioned=True)`": Method(
        Meta,
        *_BELOW,
        _PAPER,
        {"hypergradient": FiniteDifference(), "look_ahead": Kept(preconditioned=True)},
    ),
    "`MetaNetwork` (†)": Method(
        MetaNetwork, "task, commitment, *codebook*", "task, (codebook)", _LOOKING
    ),
    "`MetaBoth(FiniteDifference())` (‡)": Method(
        MetaBoth,
        "task, commitment, *codebook*",
        "task, (codebook)",
        _PAPER,
        {"hypergradient": FiniteDifference()},
    ),
    "`MetaBoth(Exact())` (‡)": Method(
        MetaBoth,
        "task, commitment, *codebook*",
        "task, (codebook)",
        _EXACT,
        {"hypergradient": Exact()},
    ),
    "`Joint`, `groups`": Method(Joint, *_BELOW, "codebook", quantizer="groups"),
    "`Joint`, `groups`, `shared_codebook`": Method(
        Joint, *_BELOW, "codebook", quantizer="shared groups"
    ),
    "`Joint`, `Rotation`": Method(Joint, *_BELOW, "codebook", quantizer="rotation"),
    "`Joint`, `Cosine`": Method(Joint, *_BELOW, "codebook", quantizer="cosine"),
    "`Joint`, `Affine`": Method(Joint, *_BELOW, "codebook", quantizer="affine"),
    "`Joint`, `LinearMap`": Method(Joint, *_BELOW, "codebook", quantizer="linear map"),
    "`Joint`, `HyperNetwork`": Method(Joint, *_BELOW, "codebook", quantizer="hyper-network"),
    "`Joint`, `ResidualQuantizer`": Method(Joint, *_BELOW, "codebook", quantizer="residual"),
    "`Joint`, `GumbelQuantizer`": Method(
        Joint, "task, prior", "task", "task, prior on the head alone", quantizer="gumbel"
    ),
    "`Joint`, `NoQuantizer`": Method(Joint, "task", "task", "none there", quantizer="none"),
    "`Meta(FiniteDifference())`, `groups`": Method(Meta, *_UNDONE, _PAPER, quantizer="groups"),
    "`Meta(FiniteDifference())`, `groups`, `shared_codebook`": Method(
        Meta, *_UNDONE, _PAPER, quantizer="shared groups"
    ),
    "`Meta(FiniteDifference())`, `Rotation`": Method(Meta, *_UNDONE, _PAPER, quantizer="rotation"),
    "`Meta(FiniteDifference())`, `Cosine`": Method(Meta, *_UNDONE, _PAPER, quantizer="cosine"),
    "`Meta(FiniteDifference())`, `Affine`": Method(Meta, *_UNDONE, _PAPER, quantizer="affine"),
    "`Meta(FiniteDifference())`, `LinearMap`": Method(
        Meta, *_UNDONE, _PAPER, quantizer="linear map"
    ),
    "`Meta(FiniteDifference())`, `HyperNetwork`": Method(
        Meta, *_UNDONE, _PAPER, quantizer="hyper-network"
    ),
    "`Meta(FiniteDifference())`, `ResidualQuantizer`": Method(
        Meta, *_UNDONE, _PAPER, quantizer="residual"
    ),
}

WORDS = """\
# Which loss reaches which parameters

L = L_task + β · L_commitment + L_codebook + L_prior (`auxiliary_loss` × its weight); φ, θ, C are
encoder, decoder and quantizer. A cell lists the losses that change these parameters:

- task: a gradient of the task loss reaches the parameters;
- *task*: it reaches them through the look-ahead alone, and vanishes at ξ = 0;
- *task* × codebook: the same, and only together with the codebook loss;
- (task): no gradient, but the loss decides where the gradient of another one is taken: at new
  embeddings, or under a new codebook;
- a loss that is not listed changes nothing, to the bit.

Every cell is measured: one step by plain descent (by AdamW where the method differentiates AdamW's
step) with each loss alone, with all of them, and with all but one.

So the task loss never reaches the codebook of a VQ-VAE, and reaches that of MQ-VAE by the indirect
term alone.

"""


# -- measuring -------------------------------------------------------------------------------------


def update_of(problem: Problem, rule: type[Rule], present: frozenset, **options) -> Update:
    """The rule with the losses that are present, and plain descent."""
    network = problem.network
    if isinstance(network.quantizer, GumbelQuantizer):
        network.quantizer.kl_weight = 0.5 * ("prior" in present)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return problem.loss(output, y) * ("task" in present)

    # Only where it must be: AdamW hides how large a gradient is.
    if getattr(options.get("look_ahead"), "preconditioned", False):
        lower = AdamW(network.network_parameters(), lr=0.1, eps=0.1, weight_decay=0.0)
    else:
        lower = SGD(network.network_parameters(), lr=0.1)
    if rule is Unquantized:
        return Unquantized(network, loss, lower=lower)
    options["commitment_weight"] = 0.3 * ("commitment" in present)
    if rule is not Ema:
        parameters = list(network.codebook_parameters())
        options["upper"] = SGD(parameters, lr=0.5) if parameters else None
        options["codebook_weight"] = 0.7 * ("codebook" in present)
    return rule(network, loss, lower=lower, **options)


def codewords(problem: Problem) -> Tensor | None:
    quantizer = problem.network.quantizer
    if isinstance(quantizer, CodebookQuantizer):
        return quantizer.table().detach().clone()
    return quantizer.codebook.detach().clone() if hasattr(quantizer, "codebook") else None


class Measured:
    """One step of a method with only some losses: new weights by part, and the indirect norm."""

    def __init__(self, method: Method, family: str) -> None:
        self.method = method
        self.problem = make_with(family, QUANTIZERS[method.quantizer], seed=1)
        self.known: dict = {}

    def step(self, *present: str, xi: float | None = None):
        key = (frozenset(present), xi)
        if key not in self.known:
            problem = copy.deepcopy(self.problem)
            options = dict(self.method.options)
            if xi is not None:
                options["xi"] = xi
            elif "xi" in self.method.rule.__init__.__annotations__:
                options["xi"] = 0.3
            update = update_of(problem, self.method.rule, key[0], **options)
            start = [p.detach().clone() for p in problem.network.quantizer.parameters()]
            torch.manual_seed(5)
            norm = update.step(problem.x, problem.y).indirect_norm
            parts = {
                "phi": list(problem.network.encoder_parameters()),
                "theta": list(problem.network.decoder_parameters()),
                "codebook": list(problem.network.codebook_parameters()),
                "codewords": [w for w in [codewords(problem)] if w is not None],
                "start": start,
            }
            weights = {
                part: torch.cat([t.detach().flatten() for t in tensors] or [torch.empty(0)])
                for part, tensors in parts.items()
            }
            self.known[key] = weights, norm
        return self.known[key]

    def differ(self, part: str, one, other) -> bool:
        return not torch.equal(one[0][part], other[0][part])

    def cell(self, part: str) -> str:
        """What reaches φ, θ or C, in the words of the page."""
        nothing = self.step()
        if part == "codebook" and not nothing[0][part].numel():
            return "none there"
        found = [word for loss in LOSSES if (word := self.word(part, loss))]
        if part == "codebook" and not torch.equal(nothing[0]["codebook"], nothing[0]["start"]):
            # It moves with no loss there at all.
            by = f" after a step by {' and '.join(found)}" if found else ""
            return f"no loss: an average of z_e{by}"
        return ", ".join(found) or "nothing"

    def word(self, part: str, loss: str) -> str | None:
        nothing, alone = self.step(), self.step(loss)
        if self.differ(part, alone, nothing):
            if part == "codebook" and not self.differ("codewords", alone, nothing):
                return f"{loss} on the head alone"
            if "xi" not in self.method.rule.__init__.__annotations__:
                return loss
            at_zero = self.differ(part, self.step(loss, xi=NOTHING), self.step(xi=NOTHING))
            return loss if at_zero else f"*{loss}*"
        if not self.differ(part, self.step(*LOSSES), self.step(*[o for o in LOSSES if o != loss])):
            return None
        if part == "codebook" and loss != "codebook":
            # Beside the codebook loss: does the indirect term have a part of it?
            norm, before = self.step(loss, "codebook")[1], self.step("codebook")[1]
            if norm is not None and norm > 0:
                assert before == 0
                return f"*{loss}* × codebook"
        return f"({loss})"


@cache
def measured(name: str, family: str = "linear") -> Measured:
    return Measured(TABLE[name], family)


def page() -> str:
    """docs/gradients.md, of the table above."""
    lines = ["| method | φ | θ | C |", "|---|---|---|---|"]
    for name, row in TABLE.items():
        lines.append(f"| {' | '.join([name, row.phi, row.theta, row.codebook])} |")
    return WORDS + "\n".join(lines) + "\n"


@pytest.mark.parametrize("part", ["phi", "theta", "codebook"])
@pytest.mark.parametrize("name", TABLE)
def test_a_loss_reaches_what_the_table_says_and_nothing_else(name, part):
    assert measured(name).cell(part) == getattr(TABLE[name], part)


OVER_ANY = [
    "`Synchronous`",
    "`Alternated(nu=1)`",
    "`Meta(DirectOnly())`",
    "`Meta(FiniteDifference())`, `Kept()`",
    "`Meta(Exact())`",
    "`Meta(Unrolled(2))`",
    "`MetaNetwork` (†)",
    "`MetaBoth(Exact())` (‡)",
]
OVER_ROTATION = OVER_ANY[:4]  # the others refuse it
KINDS = ["shared groups", "cosine groups", "linear map", "residual maps"]


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in OVER_ANY for k in KINDS] + [(n, "rotation") for n in OVER_ROTATION],
)
def test_what_a_loss_reaches_does_not_depend_on_the_kind_of_codebook(name, kind):
    row = TABLE[name]
    found = Measured(Method(row.rule, "", "", "", row.options, kind), "linear")
    for part in ("phi", "theta", "codebook"):
        assert found.cell(part) == getattr(row, part)


def test_the_page_is_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: PYTHONPATH=tests python tests/core/test_methods.py > docs/gradients.md"
    )


def test_a_rule_knows_what_the_field_calls_it():
    class Mine(Rule):
        def step(self, update, batch, above):
            raise NotImplementedError

    class Once(OnePass):
        def gradients(self, update, batch):
            raise NotImplementedError

    class Other(Mine):
        method = "VQ-VAE + other"

    class Variant(Meta):
        pass

    named = {
        Joint: "VQ-VAE",
        Ema: "VQ-VAE + EMA",
        Alternated: "VQ-VAE + alt",
        Synchronous: "VQ-VAE + sync",
        Meta: "MQ-VAE",
        MetaNetwork: "MQ-VAE†",
        MetaBoth: "MQ-VAE‡",
        Mine: "Mine",
        Once: "Once",
        Other: "VQ-VAE + other",
        Variant: "MQ-VAE",
    }
    assert {rule: rule.method for rule in named} == named


# -- what does not go together ---------------------------------------------------------------------


def put_together(rule: type[Rule], kind: str | Codebook, **options) -> Update:
    """Nothing but construction."""
    problem = make_with("linear", QUANTIZERS[kind])
    return update_of(problem, rule, frozenset(LOSSES), **options)


NEEDS_CODES = [Meta, Alternated, Ema, Synchronous, MetaNetwork, MetaBoth]


@pytest.mark.covering(1)
@pytest.mark.parametrize("rule", NEEDS_CODES)
@pytest.mark.parametrize("kind", ["gumbel", "none"])
def test_quantizers_that_do_not_select_are_refused(rule, kind):
    with pytest.raises(
        ValueError, match="needs a quantizer that selects the nearest codeword"
    ) as e:
        put_together(rule, kind)
    assert {"gumbel": "GumbelQuantizer", "none": "NoQuantizer"}[kind] in str(e.value)
    assert "Train it with Joint" in str(e.value)
    put_together(Joint, kind)


@pytest.mark.parametrize(
    "kind",
    ["affine", "affine groups", "linear map", "hyper-network", "residual"],
)
def test_averages_of_anything_but_a_plain_table_are_refused(kind):
    with pytest.raises(ValueError, match="Ema sets codewords one by one") as e:
        put_together(Ema, kind)
    assert "plain Table(), got" in str(e.value)


@pytest.mark.parametrize("kind", ["table", "groups", "shared groups", "rotation", "cosine"])
def test_averages_of_a_plain_table_are_not(kind):
    put_together(Ema, kind)


@pytest.mark.parametrize(
    ("rule", "options", "name"),
    [
        (Meta, {"hypergradient": Exact()}, "Exact"),
        (Meta, {"hypergradient": Unrolled()}, "Unrolled"),
        (MetaNetwork, {}, "MetaNetwork"),
        (MetaBoth, {}, "MetaBoth"),
    ],
)
def test_rules_that_differentiate_the_straight_through_step_refuse_a_rotation(rule, options, name):
    with pytest.raises(ValueError, match=f"^{name} differentiates the straight-through") as e:
        put_together(rule, "rotation", **options)
    assert "Rotation()" in str(e.value)
    assert "Use FiniteDifference" in str(e.value) and "or StraightThrough()" in str(e.value)
    put_together(Meta, "rotation", hypergradient=FiniteDifference())
    put_together(Meta, "rotation", hypergradient=DirectOnly())


@pytest.mark.parametrize(
    "look",
    [
        Kept(),
        Kept(preconditioned=True),
        Undone(optimizer_step=True),
        Undone(optimizer_step=True, preconditioned=True),
    ],
)
def test_unrolled_refuses_a_look_ahead_by_the_optimizer(look):
    with pytest.raises(ValueError, match="Unrolled differentiates plain descent") as e:
        put_together(Meta, "table", hypergradient=Unrolled(2), look_ahead=look)
    assert "use it with look_ahead=Undone()" in str(e.value)
    put_together(Meta, "table", hypergradient=Unrolled(2), look_ahead=Undone())


def test_a_preconditioned_tangent_needs_the_optimizers_step():
    with pytest.raises(ValueError, match="preconditioned=True") as e:
        Undone(preconditioned=True)
    assert "it needs optimizer_step=True" in str(e.value)


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    "look", [Kept(preconditioned=True), Undone(optimizer_step=True, preconditioned=True)]
)
@pytest.mark.parametrize("lower", [SGD, RMSprop, "amsgrad"])
def test_a_preconditioned_tangent_needs_adam(look, lower):
    problem = make("linear")
    parameters = problem.network.network_parameters()
    optimizer = AdamW(parameters, amsgrad=True) if lower == "amsgrad" else lower(parameters, lr=0.1)
    with pytest.raises(ValueError, match="needs Adam or AdamW without amsgrad") as e:
        Meta(
            problem.network,
            problem.loss,
            lower=optimizer,
            upper=SGD(problem.network.codebook_parameters(), lr=0.1),
            look_ahead=look,
        )
    assert type(optimizer).__name__ in str(e.value)


@pytest.mark.parametrize("rule", [Joint, Synchronous, Alternated, Meta, MetaNetwork, MetaBoth])
def test_a_codebook_that_is_trained_needs_an_optimizer(rule):
    problem = make("linear")
    network = problem.network
    lower = SGD(network.network_parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"^{rule.__name__} trains the codebook") as e:
        rule(network, problem.loss, lower=lower, upper=None)
    assert "mqvae.codebook_parameters(network), or freeze them" in str(e.value)
    network.quantizer.requires_grad_(False)
    before = network.quantizer.codebook.weight.clone()
    rule(network, problem.loss, lower=lower, upper=None).step(problem.x, problem.y)
    assert torch.equal(network.quantizer.codebook.weight, before)


def test_stages_that_do_not_fit_are_refused():
    for stages in (
        [VectorQuantizer(4, 6), VectorQuantizer(5, 6)],
        [VectorQuantizer(4, 6), VectorQuantizer(4, 3)],
        [VectorQuantizer(4, 6, groups=2)] * 2,
        [VectorQuantizer(4, 6, distance=Cosine())],
        [VectorQuantizer(4, 6, estimator=Rotation())],
    ):
        with pytest.raises(ValueError, match=r"residual quantizer"):
            ResidualQuantizer(stages)


@pytest.mark.parametrize("rule", [Meta, MetaNetwork, MetaBoth])
@pytest.mark.parametrize("xi", [-1.0, float("nan")])
def test_a_negative_step_is_refused(rule, xi):
    with pytest.raises(ValueError, match="xi must be 0 or more"):
        put_together(rule, "table", xi=xi)


def test_state_of_another_rule_is_refused():
    ema, joint = put_together(Ema, "table"), put_together(Joint, "table")
    with pytest.raises(ValueError, match="the state is another rule's"):
        ema.load_state_dict(joint.state_dict())
    with pytest.raises(ValueError, match="the state is another rule's"):
        joint.load_state_dict(ema.state_dict())


def test_codes_of_no_quantizer_are_refused():
    with pytest.raises(ValueError, match="there are no codes to decode"):
        NoQuantizer(4).decode(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="dim must be 1 or more, got 0"):
        NoQuantizer(0)


@pytest.mark.parametrize("name", ["embedding_dim", "width"])
def test_an_empty_hyper_network_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        HyperNetwork(**{name: 0})


if __name__ == "__main__":
    print(page(), end="")

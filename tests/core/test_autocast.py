"""Half precision: every method's step under autocast against the same in float32."""

import copy

import pytest
import torch
from problems import QUANTIZERS, auxiliary, squared_error
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from mqvae import (
    Alternated,
    Amortized,
    Central,
    DirectOnly,
    Ema,
    Exact,
    FiniteDifference,
    ForwardMode,
    Joint,
    Kept,
    Meta,
    MetaBoth,
    MetaNetwork,
    NoQuantizer,
    ReplaceUnused,
    Synchronous,
    Transport,
    Transported,
    Undone,
    Unrolled,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.core import hypergradients as module
from mqvae.core import nearest as search

HALVES = [torch.bfloat16, torch.float16]
every_half = pytest.mark.parametrize("half", HALVES, ids=["bfloat16", "float16"])

METHODS = {
    "Joint": (Joint, {}),
    "Synchronous": (Synchronous, {}),
    "Alternated": (Alternated, {}),
    "Alternated nu": (Alternated, {"nu": 1.0}),
    "Ema": (Ema, {"decay": 0.8}),
    "Ema transport": (Ema, {"decay": 0.8, "transport": Transport()}),
    "Amortized": (
        Meta,
        {"hypergradient": Amortized(), "look_ahead": Undone(optimizer_step=True)},
    ),
    "Amortized kept": (Meta, {"hypergradient": Amortized(), "look_ahead": Kept()}),
    "Transported": (Meta, {"hypergradient": Transported(), "look_ahead": Kept()}),
    "DirectOnly": (Meta, {"hypergradient": DirectOnly()}),
    "FiniteDifference": (Meta, {}),
    "FiniteDifference central": (Meta, {"hypergradient": FiniteDifference(Central())}),
    "FiniteDifference forward": (Meta, {"hypergradient": FiniteDifference(ForwardMode())}),
    "FiniteDifference free": (Meta, {"hypergradient": FiniteDifference(free_codes=True)}),
    "FiniteDifference kept": (Meta, {"look_ahead": Kept()}),
    "FiniteDifference by the optimizer": (Meta, {"look_ahead": Undone(optimizer_step=True)}),
    "FiniteDifference preconditioned": (Meta, {"look_ahead": Kept(preconditioned=True)}),
    "Exact": (Meta, {"hypergradient": Exact()}),
    "Exact kept": (Meta, {"hypergradient": Exact(), "look_ahead": Kept()}),
    "Exact forward": (Meta, {"hypergradient": Exact(ForwardMode(), ForwardMode())}),
    "Unrolled": (Meta, {"hypergradient": Unrolled(2)}),
    "Unrolled stopped": (Meta, {"hypergradient": Unrolled(2, stop_gradients=True)}),
    "MetaNetwork": (MetaNetwork, {}),
    "MetaBoth": (MetaBoth, {}),
    "MetaBoth exact": (MetaBoth, {"hypergradient": Exact()}),
}


def network_of(kind: str = "table", seed: int = 0) -> VQNetwork:
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Tanh(), nn.Conv2d(16, 6, 1)
    )
    decoder = nn.Sequential(nn.Conv2d(6, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 1, 1))
    network = VQNetwork(encoder, QUANTIZERS[kind](8, 6), decoder)
    if kind != "gumbel":
        network.initialize_codebook(batch())
    with torch.no_grad():
        for parameter in network.quantizer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def batch() -> Tensor:
    return torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(7))


def update_of(network: VQNetwork, rule, *, lower=None, **options):
    look = options.get("look_ahead")
    if getattr(look, "preconditioned", False):
        lower = AdamW(network.network_parameters(), lr=0.01, eps=1e-2)
    else:
        lower = SGD(network.network_parameters(), lr=0.2)
    parameters = list(network.codebook_parameters())
    if rule is not Ema:
        options["upper"] = SGD(parameters, lr=0.1) if parameters else None
    if rule in (Meta, MetaNetwork, MetaBoth):
        options["xi"] = 0.1  # so that the step is one in which rounding stays what it is
    return rule(network, squared_error, lower=lower, **options)


def pair_of_steps(kind: str, rule, options, half: torch.dtype):
    """The same step in float32 and under autocast: networks and reports."""
    results = []
    for enabled in (False, True):
        network = network_of(kind)
        update = update_of(network, rule, **options)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=half, enabled=enabled):
            step = update.step(batch(), batch())
        results.append((network, before, step))
    return results


def assert_alike(wide, narrow, *, tolerance: float) -> None:
    """Losses, norms and steps of the weights, each relative to its own size."""
    network, before, step = narrow
    expected, _, reference = wide
    assert (step.codes == reference.codes).float().mean() > 0.97
    for name in ("task", "commitment", "codebook", "direct_norm", "indirect_norm", "cosine"):
        value, wanted = getattr(step, name), getattr(reference, name)
        if wanted is None:
            assert value is None
            continue
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value), name
        near = tolerance * (1.0 if name == "cosine" else wanted.abs())
        assert (value - wanted).abs() <= near, name
    for part in ("encoder", "decoder", "quantizer"):
        moves = []
        for one in (network, expected):
            parameters = dict(getattr(one, part).named_parameters())
            if not parameters:
                break
            assert all(p.dtype == torch.float32 for p in parameters.values())
            moves.append(
                torch.cat([(p - before[f"{part}.{n}"]).flatten() for n, p in parameters.items()])
            )
        if moves:
            found, wanted = moves
            assert torch.isfinite(found).all() and wanted.norm() > 0
            assert (found - wanted).norm() < 4 * tolerance * wanted.norm(), part


@pytest.mark.covering(1)
@every_half
@pytest.mark.parametrize("name", METHODS)
def test_every_rules_step_is_near_that_of_float32(name, half):
    rule, options = METHODS[name]
    assert_alike(*pair_of_steps("table", rule, options, half), tolerance=0.05)


PAIRS = [
    (kind, name)
    for kind in QUANTIZERS
    for name in ("Joint", "FiniteDifference", "Exact", "Unrolled", "MetaNetwork")
    if not (kind == "rotation" and name in ("Exact", "Unrolled", "MetaNetwork"))
    and (kind not in ("gumbel", "none") or name == "Joint")
]


@pytest.mark.covering(1)
@every_half
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_every_quantizers_step_is_near_that_of_float32(kind, name, half):
    rule, options = METHODS[name]
    assert_alike(*pair_of_steps(kind, rule, options, half), tolerance=0.05)


@pytest.mark.parametrize("kind", [k for k in QUANTIZERS if k != "none"])
def test_codewords_are_the_same_to_the_bit_under_autocast(kind):
    quantizer = network_of(kind).quantizer.eval()
    z_e = torch.randn(50, 6)
    expected = quantizer(z_e)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, codes = quantizer(z_e), quantizer.encode(z_e)
        words = quantizer.decode(expected.codes)
    assert torch.equal(found.codes, expected.codes) and torch.equal(codes, expected.codes)
    for one in (found.z_q, words):
        assert one.dtype == torch.float32
        assert torch.equal(one, expected.z_q)
    assert torch.equal(found.commitment_loss, expected.commitment_loss)
    assert torch.equal(found.codebook_loss, expected.codebook_loss)
    assert torch.equal(auxiliary(found), auxiliary(expected))


@pytest.mark.parametrize("name", METHODS)
def test_distances_and_differences_are_taken_in_float32(name, monkeypatch):
    """What the search compares, and what a hypergradient differentiates."""
    seen = []

    def derivative(which):
        def differentiate(self, f, primals, tangents, centre, length):
            assert not torch.is_autocast_enabled("cpu")

            def recorded(point):
                value = f(point)
                seen.append(value.dtype)
                assert value.dtype == torch.float32
                return value

            assert centre is None or centre.dtype == torch.float32
            return which(self, recorded, primals, tangents, centre, length)

        return differentiate

    for kind in (module.OneSided, module.Central, module.ForwardMode):
        monkeypatch.setattr(kind, "__call__", derivative(kind.__call__))
    compared = []
    plain = torch.addmm

    def addmm(bias, one, other, **options):
        if options.get("alpha") == -1:
            assert not torch.is_autocast_enabled("cpu")
            compared.extend(t.dtype for t in (bias, one, other))
        return plain(bias, one, other, **options)

    monkeypatch.setattr(search.torch, "addmm", addmm)
    rule, options = METHODS[name]
    network = network_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.embed(batch()).dtype == torch.bfloat16
        update_of(network, rule, **options).step(batch(), batch())
    assert set(compared) == {torch.float32}
    differs = {"FiniteDifference", "Exact", "MetaBoth"} & {name.split()[0]}
    assert bool(seen) == bool(differs)


def test_statistics_are_kept_in_float32():
    network = network_of()
    update = update_of(network, Ema, decay=0.8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            update.step(batch(), batch())
    for key in ("sizes", "sums"):
        assert update.state_dict()[key].dtype == torch.float32
    assert not torch.equal(
        update.state_dict()["sums"], update.state_dict()["sums"].bfloat16().float()
    )


def test_a_replaced_codeword_is_the_embedding():
    torch.manual_seed(0)
    network = network_of()
    network.quantizer = VectorQuantizer(8, 6, replacement=ReplaceUnused(1))
    with torch.no_grad():
        network.quantizer.codebook.weight[5:] += 100
    update = update_of(network, Meta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        twin = copy.deepcopy(network)
        z_e = twin.embed(batch()).flatten(0, -2).float()
        update.step(batch(), batch())
    for word in network.quantizer.codebook.weight[5:]:
        assert (z_e == word).all(1).any()


# -- casts of weights that have moved since --------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_one_region_around_many_steps_is_the_same_as_one_around_each(name):
    """Autocast keeps casts of weights until its region ends; a step must not see those it moved."""
    rule, options = METHODS[name]
    networks = [network_of(), network_of()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        update = update_of(networks[0], rule, **options)
        for _ in range(2):
            update.step(batch(), batch())
            inside = networks[0].encode(batch())  # a pass in between keeps no cast either
    update = update_of(networks[1], rule, **options)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            update.step(batch(), batch())
            outside = networks[1].encode(batch())
    assert torch.equal(inside, outside)
    one, other = (network.state_dict() for network in networks)
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


def test_a_pass_after_a_step_sees_the_weights_the_step_has_made():
    network, x = network_of(), batch()
    update = update_of(network, Joint)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = network(x).output
        update.step(x, x)
        after = network(x).output
        assert torch.is_autocast_cache_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(x).output.argmax(), after.argmax())
    assert (after - before).abs().max() > 1e-3


def test_without_autocast_nothing_is_changed():
    """No quantization: a step of Joint is plain backpropagation, its losses zero."""
    network = network_of("none")
    assert isinstance(network.quantizer, NoQuantizer)
    step = update_of(network, Joint).step(batch(), batch())
    assert step.commitment == step.codebook == 0
    assert torch.count_nonzero(step.codes) == 0

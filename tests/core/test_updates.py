"""What each rule changes, and what it must leave alone."""

import copy

import pytest
import torch
from problems import make, squared_error
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from mqvae import (
    Alternated,
    Amortized,
    Central,
    DirectOnly,
    Exact,
    FiniteDifference,
    ForwardMode,
    Joint,
    Kept,
    Meta,
    MetaBoth,
    Transported,
    Undone,
    Unrolled,
    Update,
    VectorQuantizer,
    VQNetwork,
    vqvae,
)

RULES = {
    "FiniteDifference": FiniteDifference(),
    "FiniteDifference-free": FiniteDifference(free_codes=True),
    "FiniteDifference-central": FiniteDifference(Central()),
    "FiniteDifference-forward": FiniteDifference(ForwardMode()),
    "Exact": Exact(),
    "Exact-forward": Exact(ForwardMode(), ForwardMode()),
    "DirectOnly": DirectOnly(),
    "Amortized": Amortized(),
    "Transported": Transported(),
}
LOOKS = {"undone": Undone(), "undone-optimizer": Undone(optimizer_step=True), "kept": Kept()}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
REFUSED = {("Amortized", "undone"), ("Transported", "undone")}
PAIRS = {
    f"{rule}-{look}": (RULES[rule], LOOKS[look])
    for rule in RULES
    for look in LOOKS
    if (rule, look) not in REFUSED
}
UNDONE = {name: rule for name, rule in RULES.items() if (name, "undone") not in REFUSED}
every_undone = pytest.mark.parametrize("rule", UNDONE.values(), ids=UNDONE)
every_pair = pytest.mark.parametrize(("rule", "look"), PAIRS.values(), ids=PAIRS)
every_look = pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)


def noisy_network() -> VQNetwork:
    """Batch norm and dropout on both sides."""
    torch.manual_seed(3)
    encoder = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.3),
        nn.Conv2d(6, 4, 3, padding=1),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.3),
        nn.Conv2d(6, 1, 3, padding=1),
    )  # fmt: skip
    network = VQNetwork(encoder, VectorQuantizer(9, 4), decoder)
    network.initialize_codebook(batch())
    return network.train()


def batch() -> Tensor:
    return torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(7))


def optimizers(network: VQNetwork, kind=AdamW, lower=1e-2, upper=3e-2):
    return {
        "lower": kind(network.network_parameters(), lr=lower),
        "upper": kind(network.codebook_parameters(), lr=upper),
    }


def meta(network: VQNetwork, loss=squared_error, **options) -> Meta:
    return Meta(network, loss, **optimizers(network), **options)


def weights(network: VQNetwork) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in network.named_buffers()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [k for k in found if not torch.equal(found[k], expected[k])]
    assert not different


# -- what the rules do -----------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.25])
@pytest.mark.parametrize("family", ["convolutional", "classifier"])
def test_joint_is_backpropagation_of_the_whole_loss(family, beta):
    problem = make(family, "three", beta)
    network, twin = problem.network, copy.deepcopy(problem.network)
    update = Joint(
        network,
        problem.loss,
        **optimizers(network),
        commitment_weight=beta,
        codebook_weight=problem.codebook_weight,
    )
    step = update.step(problem.x, problem.y)

    result = twin(problem.x)
    task = problem.loss(result.output, problem.y)
    quantized = result.quantized
    total = task + beta * quantized.commitment_loss
    (total + problem.codebook_weight * quantized.codebook_loss).backward()
    for optimizer in optimizers(twin).values():
        optimizer.step()
    assert_same(weights(network), weights(twin))
    assert step.task == task
    assert torch.equal(step.codes, quantized.codes)
    assert step.direct_norm is None


def test_alternated_moves_the_codebook_first():
    problem = make("convolutional")
    network, twin = problem.network, copy.deepcopy(problem.network)
    Alternated(network, problem.loss, **optimizers(network), commitment_weight=0.3).step(
        problem.x, problem.y
    )

    first, second = optimizers(twin)["upper"], optimizers(twin)["lower"]
    twin(problem.x).quantized.codebook_loss.backward()
    first.step()
    twin.zero_grad()
    result = twin(problem.x)
    (problem.loss(result.output, problem.y) + 0.3 * result.quantized.commitment_loss).backward()
    second.step()
    assert_same(weights(network), weights(twin))


@pytest.mark.covering(1)
@every_undone
@pytest.mark.parametrize("family", ["convolutional", "classifier"])
def test_meta_at_xi_zero_is_alternated(rule, family):
    problem = make(family, "three")
    network, twin = problem.network, copy.deepcopy(problem.network)
    one = meta(network, problem.loss, hypergradient=rule, xi=0.0)
    other = Alternated(twin, problem.loss, **optimizers(twin))
    for _ in range(3):
        one.step(problem.x, problem.y)
        other.step(problem.x, problem.y)
    assert_same(weights(network), weights(twin))


@pytest.mark.covering(2)
@pytest.mark.parametrize("rule", [r for n, r in RULES.items() if "FiniteDifference-" not in n])
@pytest.mark.parametrize("look", [Kept(), Undone(optimizer_step=True)], ids=["kept", "undone"])
@pytest.mark.parametrize("kind", [Meta, MetaBoth])
def test_xi_zero_is_refused_where_the_optimizer_steps_whatever_it_is(kind, rule, look):
    if kind is MetaBoth and look.kept:
        return
    network = make("linear").network
    with pytest.raises(ValueError, match=r"xi=0 is a virtual step of no length, .*Alternated"):
        Update(
            network,
            squared_error,
            kind(hypergradient=rule, xi=0.0, look_ahead=look),
            **optimizers(network),
        )


def test_unrolled_at_xi_zero_is_alternated():
    problem = make("convolutional", "three")
    network, twin = problem.network, copy.deepcopy(problem.network)
    one = meta(network, problem.loss, hypergradient=Unrolled(2), xi=0.0)
    other = Alternated(twin, problem.loss, **optimizers(twin))
    for _ in range(3):
        one.step(problem.x, problem.y)
        other.step(problem.x, problem.y)
    assert_same(weights(network), weights(twin))


# Transported keeps the codes that DirectOnly looks up anew.
@pytest.mark.covering(1)
@pytest.mark.parametrize("rule", [r for name, r in RULES.items() if name != "Transported"])
@pytest.mark.parametrize("look", [Kept(), Undone(optimizer_step=True)], ids=["kept", "undone"])
def test_at_nearly_no_xi_there_is_nearly_no_indirect_term(rule, look):
    problem = make("convolutional")
    network, twin = problem.network, copy.deepcopy(problem.network)
    one = meta(network, problem.loss, hypergradient=rule, xi=1e-30, look_ahead=look)
    other = meta(twin, problem.loss, hypergradient=DirectOnly(), look_ahead=look)
    for _ in range(3):
        step = one.step(problem.x, problem.y)
        other.step(problem.x, problem.y)
    assert step.indirect_norm < 1e-20
    assert_same(weights(network), weights(twin))


@every_rule
def test_kept_and_undone_look_to_the_same_place(rule):
    """With the optimizer's own step both see the same φ', and C goes to the same place."""
    problem = make("convolutional", "three")
    network, twin = problem.network, copy.deepcopy(problem.network)
    kept = meta(network, problem.loss, hypergradient=rule, look_ahead=Kept())
    undone = meta(twin, problem.loss, hypergradient=rule, look_ahead=Undone(optimizer_step=True))
    one, other = kept.step(problem.x, problem.y), undone.step(problem.x, problem.y)
    assert one.direct_norm == other.direct_norm > 0
    assert one.indirect_norm == other.indirect_norm
    assert torch.equal(network.quantizer.codebook.weight, twin.quantizer.codebook.weight)
    first = next(iter(network.encoder_parameters()))
    assert not torch.equal(first, next(iter(twin.encoder_parameters())))


def test_descent_and_an_sgd_step_of_size_xi_are_the_same_look_ahead():
    problem = make("classifier")
    found = []
    for look in (Undone(), Undone(optimizer_step=True)):
        network = copy.deepcopy(problem.network)
        update = Meta(
            network,
            problem.loss,
            **optimizers(network, SGD, lower=0.7),
            xi=0.7,
            look_ahead=look,
        )
        update.step(problem.x, problem.y)
        found.append(weights(network))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-12, atol=1e-14)


def test_a_fresh_batch_above_changes_only_the_hypergradient():
    problem = make("convolutional")
    other = torch.randn_like(problem.x)
    network, twin = problem.network, copy.deepcopy(problem.network)
    same = meta(twin, problem.loss).step(problem.x, problem.y, above=(problem.x, problem.y))
    plain = meta(network, problem.loss).step(problem.x, problem.y)
    assert same.direct_norm == plain.direct_norm
    third = copy.deepcopy(twin)
    fresh = meta(third, problem.loss).step(problem.x, problem.y, above=(other, other))
    again = meta(twin, problem.loss).step(problem.x, problem.y)
    assert fresh.task == again.task
    assert fresh.direct_norm != again.direct_norm


@every_look
def test_the_report_has_the_norms_and_the_cosine(look):
    problem = make("convolutional")
    step = meta(problem.network, problem.loss, look_ahead=look).step(problem.x, problem.y)
    assert step.direct_norm > 0
    assert step.indirect_norm > 0
    assert -1 <= step.cosine <= 1
    assert step.commitment > 0
    torch.testing.assert_close(step.commitment, step.codebook)


@pytest.mark.covering(1)
@every_pair
def test_every_combination_lowers_the_loss(rule, look):
    """The last check, after the proofs: twenty steps on one batch."""
    problem = make("convolutional", seed=8)
    update = meta(problem.network, problem.loss, hypergradient=rule, look_ahead=look, xi=0.1)
    first = update.step(problem.x, problem.y).task
    for _ in range(20):
        last = update.step(problem.x, problem.y).task
    assert last < 0.9 * first


# -- no trace --------------------------------------------------------------------------------------


@pytest.mark.covering(1)
@every_pair
def test_the_look_ahead_leaves_no_trace(rule, look):
    """Batch norm and random state end as if only the real pass had run."""
    network = noisy_network()
    twin = copy.deepcopy(network)
    x = batch()
    torch.manual_seed(11)
    meta(network, hypergradient=rule, look_ahead=look).step(x, x)
    state = torch.get_rng_state()

    if not isinstance(look, Kept):
        # The real pass of the decoder came after the codebook's step.
        twin.quantizer.load_state_dict(network.quantizer.state_dict())
    torch.manual_seed(11)
    twin(x)
    assert torch.equal(state, torch.get_rng_state())
    assert_same(buffers(network), buffers(twin))


@every_undone
def test_undone_weights_are_where_one_step_from_the_start_leads(rule):
    """φ and θ after a step are bit for bit the optimizer's step under the new codebook."""
    network = noisy_network()
    twin = copy.deepcopy(network)
    x = batch()
    torch.manual_seed(12)
    meta(network, hypergradient=rule).step(x, x)
    twin.quantizer.load_state_dict(network.quantizer.state_dict())
    torch.manual_seed(12)
    result = twin(x)
    total = squared_error(result.output, x) + 0.1 * result.quantized.commitment_loss
    total.backward()
    optimizers(twin)["lower"].step()
    assert_same(weights(network), weights(twin))


class Failing:
    """A loss that raises at its n-th call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        torch.rand(3)  # a loss may draw random numbers, too
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("on purpose")
        return squared_error(output, y)


def calls(rule, look) -> int:
    """How often a step calls the loss."""
    counting = Failing(at=-1)
    network = noisy_network()
    meta(network, counting, hypergradient=rule, look_ahead=look).step(batch(), batch())
    return -1 - counting.left


@pytest.mark.covering(1)
@every_pair
def test_a_step_that_raises_leaves_no_trace(rule, look):
    total = calls(rule, look)
    assert total >= (1 if isinstance(look, Kept) else 2)
    for at in range(1, total + 1):
        network = noisy_network()
        torch.manual_seed(13)
        before, random, stats = weights(network), torch.get_rng_state(), buffers(network)
        update = meta(network, Failing(at), hypergradient=rule, look_ahead=look)
        with pytest.raises(RuntimeError, match="on purpose"):
            update.step(batch(), batch())
        assert all(p.grad is None for p in network.parameters())
        if isinstance(look, Kept) and at > 1:
            # The real step was done; what failed is the answer of the codebook to it.
            twin = noisy_network()
            torch.manual_seed(13)
            twin(batch())
            torch.rand(3)
            random, stats = torch.get_rng_state(), buffers(twin)
            before = {k: v for k, v in before.items() if k.startswith("quantizer")}
        elif not isinstance(look, Kept) and at == total:
            # The codebook has moved; encoder and decoder must not have.
            before = {k: v for k, v in before.items() if not k.startswith("quantizer")}
        after = weights(network)
        assert_same({k: after[k] for k in before}, before)
        assert torch.equal(torch.get_rng_state(), random)
        assert_same(buffers(network), stats)


def test_the_optimizer_previewed_is_put_back():
    network = noisy_network()
    update = meta(network, look_ahead=Undone(optimizer_step=True))
    update.step(batch(), batch())
    states = copy.deepcopy(update.lower.state_dict()["state"])
    assert states[0]["step"] == 1  # the preview did not count
    update.step(batch(), batch())
    assert update.lower.state_dict()["state"][0]["step"] == 2


class Wrapper:
    """An optimizer in another, as Lightning hands it out: it counts steps and keeps no state."""

    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        self.optimizer.step()


def test_a_preview_of_a_wrapped_optimizer_is_not_counted():
    network, twin = noisy_network(), noisy_network()
    look = Undone(optimizer_step=True)
    update, expected = meta(network, look_ahead=look), meta(twin, look_ahead=look)
    update.lower = Wrapper(update.lower)
    for rule in (update, expected):
        torch.manual_seed(13)
        rule.step(batch(), batch())
    assert update.lower.steps == 1
    assert_same(weights(network), weights(twin))


def test_what_failed_is_not_hidden_by_putting_back_a_buffer_that_needs_a_gradient():
    network = noisy_network()
    network.encoder.register_buffer("shift", torch.ones(2, requires_grad=True))
    with pytest.raises(RuntimeError, match="on purpose"):
        meta(network, Failing(1)).step(batch(), batch())
    assert torch.equal(network.encoder.shift, torch.ones(2))


@pytest.mark.parametrize("look", [None, Undone(optimizer_step=True), Kept()])
def test_fused_optimizers_take_gradients_of_another_layout(look):
    """A fused AdamW walks through memory; gradients of convolutions may be laid out otherwise."""
    torch.manual_seed(0)
    start = vqvae(num_codes=16, dim=16, width=16)
    x = torch.rand(8, 1, 28, 28)
    start.initialize_codebook(x)
    result = start(x).output.square().mean()
    decoder = list(start.decoder_parameters())
    found = torch.autograd.grad(result, decoder)
    assert any(g.stride() != p.stride() for g, p in zip(found, decoder))
    networks = []
    for fused in (True, False):
        network = copy.deepcopy(start)
        levels = {
            "lower": AdamW(network.network_parameters(), lr=1e-2, fused=fused),
            "upper": AdamW(network.codebook_parameters(), lr=1e-2, fused=fused),
        }
        if look is None:
            update = Joint(network, squared_error, **levels)
        else:
            update = Meta(network, squared_error, look_ahead=look, **levels)
        update.step(x, x)
        networks.append(network)
    for p, q in zip(networks[0].parameters(), networks[1].parameters()):
        # A first step of Adam is the sign of a gradient: where that is nothing, either will do.
        assert ((p - q).abs() > 1e-4).float().mean() < 0.01


# -- bad input -------------------------------------------------------------------------------------


def test_optimizers_of_the_wrong_level_are_refused():
    network = noisy_network()
    right = optimizers(network)
    with pytest.raises(ValueError, match=r"lower optimizer .* mqvae\.network_parameters"):
        Meta(network, squared_error, lower=right["upper"], upper=right["upper"])
    with pytest.raises(ValueError, match=r"upper optimizer .* mqvae\.codebook_parameters"):
        Joint(network, squared_error, lower=right["lower"], upper=right["lower"])
    everything = AdamW(network.parameters())
    with pytest.raises(ValueError, match="lower optimizer"):
        Joint(network, squared_error, lower=everything, upper=right["upper"])
    part = AdamW(network.encoder_parameters())
    with pytest.raises(ValueError, match="lower optimizer"):
        Joint(network, squared_error, lower=part, upper=right["upper"])


@pytest.mark.parametrize("option", ["xi", "commitment_weight", "codebook_weight"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_negative_settings_are_refused(option, value):
    network = noisy_network()
    with pytest.raises(ValueError, match=f"{option} must be 0 or more"):
        meta(network, **{option: value})


@pytest.mark.parametrize("make_update", [Joint, Alternated, Meta])
def test_frozen_parts_stay(make_update):
    network = noisy_network()
    network.encoder[0].requires_grad_(False)
    network.quantizer.requires_grad_(False)
    before = weights(network)
    make_update(
        network,
        squared_error,
        lower=AdamW([p for p in network.network_parameters() if p.requires_grad]),
        upper=AdamW(network.codebook_parameters()),
    ).step(batch(), batch())
    after = weights(network)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert "decoder.0.weight" in moved
    assert "encoder.4.weight" in moved
    assert not moved & {"encoder.0.weight", "encoder.0.bias", "quantizer.codebook.weight"}

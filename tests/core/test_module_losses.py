"""A loss that is a module with networks of its own: what a step leaves in it, and what it shows."""

import copy

import pytest
import torch
from problems import QUANTIZERS, make_with
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import AdamW

from mqvae import (
    Alternated,
    Amortized,
    Central,
    DirectOnly,
    Ema,
    Exact,
    FiniteDifference,
    ForwardMode,
    GenericMeta,
    Joint,
    Kept,
    Meta,
    MetaBoth,
    MetaNetwork,
    Synchronous,
    Transport,
    Transported,
    Undone,
    Unrolled,
)
from mqvae.core.gap import gradient_gap


class Judged(nn.Module):
    """Squared error and what a small discriminator says, which a test watches.

    It notes the outputs it is called with, and the random state at each call that it keeps a trace
    of; at the call of number `fails_at` it raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Sequential(
            spectral_norm(nn.Conv2d(2, 4, 3)),
            nn.BatchNorm2d(4),
            nn.Softplus(),
            nn.Dropout(0.3),
            nn.Conv2d(4, 1, 1),
        ).double()
        self.own = {id(b) for b in self.buffers()}
        self.outputs: list[Tensor] = []
        self.real: list[tuple[Tensor, Tensor]] = []
        self.fails_at = -1

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.outputs.append(output.detach().clone())
        if {id(b) for b in self.buffers()} == self.own:
            self.real.append((self.outputs[-1], torch.get_rng_state()))
        loss = (output - target).square().mean() + 0.1 * self.judge(output).square().mean()
        if len(self.outputs) == self.fails_at:
            raise RuntimeError("failed")
        return loss


EXACT = Exact(ForwardMode(), ForwardMode())
STEP = Undone(optimizer_step=True)
RULES = {
    "Joint": (Joint, {}),
    "Ema": (Ema, {}),
    "Ema, transport": (Ema, {"transport": Transport()}),
    "Synchronous": (Synchronous, {}),
    "Alternated": (Alternated, {}),
    "Alternated, nu": (Alternated, {"nu": 0.7}),
    "Meta": (Meta, {}),
    "Meta, kept": (Meta, {"look_ahead": Kept()}),
    "Meta, optimizer's step": (Meta, {"look_ahead": STEP}),
    "Meta, central": (Meta, {"hypergradient": FiniteDifference(Central())}),
    "Direct only": (Meta, {"hypergradient": DirectOnly()}),
    "Direct only, kept": (Meta, {"hypergradient": DirectOnly(), "look_ahead": Kept()}),
    "Amortized": (Meta, {"hypergradient": Amortized(), "look_ahead": STEP}),
    "Amortized, kept": (Meta, {"hypergradient": Amortized(), "look_ahead": Kept()}),
    "Transported": (Meta, {"hypergradient": Transported(), "look_ahead": Kept()}),
    "Exact": (Meta, {"hypergradient": Exact()}),
    "Exact, kept": (Meta, {"hypergradient": Exact(), "look_ahead": Kept()}),
    "Exact, forward mode": (Meta, {"hypergradient": EXACT}),
    "Unrolled": (Meta, {"hypergradient": Unrolled(2), "xi": 0.3}),
    "MetaNetwork": (MetaNetwork, {}),
    "MetaBoth": (MetaBoth, {}),
    "MetaBoth, exact": (MetaBoth, {"hypergradient": Exact()}),
}
every_rule = pytest.mark.parametrize("name", RULES)


def make(name: str):
    """A rule with such a loss, and a batch."""
    kind, options = RULES[name]
    problem = make_with("convolutional", QUANTIZERS["table"], seed=2)
    network, loss = problem.network, Judged()
    levels = {"lower": AdamW(network.network_parameters(), lr=1e-2)}
    if kind is not Ema:
        levels["upper"] = AdamW(network.codebook_parameters(), lr=1e-2)
    return kind(network, loss, **levels, **options), loss, problem.x


def state(loss: Judged) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in loss.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.covering(1)
@every_rule
@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_leaves_the_traces_of_one_pass(name, parts):
    update, loss, x = make(name)
    fresh = copy.deepcopy(loss)
    parameters = {n: p.detach().clone() for n, p in loss.named_parameters()}
    torch.manual_seed(7)
    step = update.step(x, x, parts=parts)
    ((output, random),) = loss.real
    after = torch.get_rng_state()
    assert not torch.equal(state(loss)["judge.1.running_mean"], torch.zeros(4).double())
    assert int(state(loss)["judge.1.num_batches_tracked"]) == 1
    # As if only the one pass had been: on what it saw, from a random state that none has touched.
    torch.manual_seed(7)
    assert torch.equal(random, torch.get_rng_state())
    fresh(output, x)
    assert_equal(state(loss), state(fresh))
    assert torch.equal(after, torch.get_rng_state())
    for n, p in loss.named_parameters():
        assert p.grad is None
        assert torch.equal(p, parameters[n])
    # What an auxiliary network of the task is trained on.
    assert torch.equal(step.output, loss.outputs[0])
    assert not step.output.requires_grad
    assert step.output.shape == x.shape


@every_rule
def test_a_pass_that_raises_leaves_none(name):
    update, loss, x = make(name)
    update.step(x, x)
    passes = len(loss.outputs)
    for fails_at in range(1, passes + 1):
        update, loss, x = make(name)
        loss.fails_at = fails_at
        before = state(loss)
        torch.manual_seed(7)
        random = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="failed"):
            update.step(x, x)
        if fails_at > 1 and getattr(getattr(update, "rule", update), "look_ahead", None) == Kept():
            # The real pass has been, and its step stays.
            assert int(state(loss)["judge.1.num_batches_tracked"]) == 1
        else:
            assert_equal(state(loss), before)
            assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("look", [Undone(), Kept(), STEP])
def test_a_generic_step_leaves_the_traces_of_one_pass(look):
    problem = make_with("convolutional", QUANTIZERS["table"], seed=2)
    network, x = problem.network, problem.x

    class Total(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.judged = Judged()

        def forward(self, network: nn.Module, x: Tensor) -> Tensor:
            result = network(x)
            return self.judged(result.output, x) + result.quantized.codebook_loss

    total = Total()
    fresh = copy.deepcopy(total.judged)
    update = GenericMeta(
        network,
        total,
        codebook=list(network.codebook_parameters()),
        lower=AdamW(network.network_parameters(), lr=1e-2),
        upper=AdamW(network.codebook_parameters(), lr=1e-2),
        look_ahead=look,
    )
    torch.manual_seed(7)
    update.step(x)
    after = torch.get_rng_state()
    ((output, random),) = total.judged.real
    torch.manual_seed(7)
    assert torch.equal(random, torch.get_rng_state())
    fresh(output, x)
    assert_equal(state(total.judged), state(fresh))
    assert torch.equal(after, torch.get_rng_state())


def test_the_gradient_gap_leaves_no_trace():
    problem = make_with("convolutional", QUANTIZERS["table"], seed=2)
    network, loss = problem.network, Judged()
    network.encoder.append(nn.BatchNorm2d(6).double())
    network.decoder.insert(1, nn.BatchNorm2d(5).double())
    before, own = state(loss), {n: v.clone() for n, v in network.state_dict().items()}
    torch.manual_seed(7)
    random = torch.get_rng_state()
    gap = gradient_gap(network, loss, problem.x, problem.y)
    assert gap > 0
    assert_equal(state(loss), before)
    assert_equal(dict(network.state_dict()), own)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in [*network.parameters(), *loss.parameters()])
    # Random numbers are no part of the gap.
    network.quantizer = QUANTIZERS["none"](7, 6)
    assert gradient_gap(network, loss, problem.x, problem.y) == 0

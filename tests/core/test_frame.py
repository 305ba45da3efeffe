"""What holds around every step: it trains or raises, and its look-ahead leaves no trace."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import QUANTIZERS, make, squared_error
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mqvae import (
    Alternated,
    Ema,
    FiniteScalarQuantizer,
    GenericMeta,
    Joint,
    LookupFreeQuantizer,
    Meta,
    MetaBoth,
    MetaNetwork,
    MqvaeError,
    RowwiseAdam,
    Synchronous,
    Undone,
    Unquantized,
    VectorQuantizer,
    VQNetwork,
)
from mqvae.config import Settings, load_preset
from mqvae.core.look_ahead import preview
from mqvae.training import begin, runs

RULES = [Alternated, Ema, Joint, Meta, MetaBoth, MetaNetwork, Synchronous, Unquantized]
KINDS = {
    **QUANTIZERS,
    "lookup-free": lambda codes, dim: LookupFreeQuantizer(2**dim),
    "finite scalar": lambda codes, dim: FiniteScalarQuantizer((4,) * dim),
}


def rule_of(kind: type, network: VQNetwork, **options: Any) -> Any:
    levels = {"lower": AdamW(network.network_parameters(), 1e-2)}
    if kind not in (Ema, Unquantized):
        levels["upper"] = AdamW(network.codebook_parameters(), 1e-2)
    if kind is not GenericMeta:
        return kind(network, squared_error, **levels, **options)

    def loss(module: VQNetwork, x: Tensor, y: Tensor) -> Tensor:
        result = module(x)
        return squared_error(result.output, y) + result.quantized.codebook_loss

    book = list(network.codebook_parameters())
    return GenericMeta(network, loss, codebook=book, **levels, **options)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


# -- a step trains, or raises ----------------------------------------------------------------------


@pytest.mark.covering(1)
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [*RULES, GenericMeta])
def test_a_step_without_gradients_is_refused(kind, off):
    problem = make("linear")
    update = rule_of(kind, problem.network)
    before, random = state(problem.network), torch.get_rng_state()
    with (
        off(),
        pytest.raises(MqvaeError, match=rf"{kind.__name__}\.step .* outside torch\.{off.__name__}"),
    ):
        update.step(problem.x, problem.y)
    assert_same(state(problem.network), before)
    assert torch.equal(torch.get_rng_state(), random)
    with off(), torch.inference_mode(False), torch.enable_grad():
        update.step(problem.x, problem.y)
    assert not torch.equal(problem.network.encoder.weight, before["encoder.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_of_another_width_is_refused_in_training(kind):
    """One channel would broadcast to all of D."""
    network = VQNetwork(nn.Linear(3, 1), KINDS[kind](5, 6), nn.Linear(6, 3), channel_axis=-1)
    codebook = list(network.codebook_parameters())
    update = Joint(
        network,
        squared_error,
        lower=SGD(network.network_parameters(), 0.1),
        upper=SGD(codebook, 0.1) if codebook else None,
    )
    before = state(network)
    with pytest.raises(MqvaeError, match=r"expects embeddings \(\.\.\., 6\).*got \(4, 1\)"):
        update.step(torch.randn(4, 3), torch.randn(4, 3))
    assert_same(state(network), before)
    with pytest.raises(MqvaeError, match=r"expects embeddings \(\.\.\., 6\)"):
        network.quantizer.quantize(torch.randn(4, 1))


# -- the look-ahead leaves no trace ----------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "AdamW": lambda p: AdamW(p, 0.1),
    "Adam, amsgrad": lambda p: Adam(p, 0.1, amsgrad=True, foreach=True),
    "AdamW, fused": lambda p: AdamW(p, 0.1, fused=True),
    "AdamW, rate of a tensor": lambda p: AdamW(p, torch.tensor(0.1), foreach=False),
    "SGD, momentum": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "SGD, groups": lambda p: SGD([{"params": p[:1]}, {"params": p[1:], "lr": 0.5}], 0.1),
    "RowwiseAdam": lambda p: RowwiseAdam(p, 0.1),
}


def flat(optimizer: Optimizer) -> list[Any]:
    """Every object of an optimizer that a step may replace, and what it holds."""
    found: list[Any] = [optimizer.param_groups, optimizer.state]
    for group in optimizer.param_groups:
        found += [group, *group.values()]
    for entry in optimizer.state.values():
        found += [entry, *entry.values()]
    return found


@pytest.mark.covering(1)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_preview_is_the_optimizers_step_and_leaves_no_trace(kind, steps):
    weights = [
        nn.Parameter(torch.randn(4, 3)),
        nn.Parameter(torch.randn(3)),
        nn.Parameter(torch.randn(2, 2)),
    ]
    optimizer = OPTIMIZERS[kind](weights)
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)  # it counts steps
    gradients = [torch.randn(4, 3), torch.randn(3), None]
    for _ in range(steps):
        for weight, g in zip(weights, gradients, strict=True):
            weight.grad = g
        optimizer.step()
        schedule.step()
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    for weight in weights:
        weight.grad = torch.full_like(weight, 7.0)
    before = [w.detach().clone() for w in weights]
    objects, held = flat(optimizer), copy.deepcopy(optimizer.state_dict())
    attributes = dict(optimizer.__dict__)
    versions = [w._version for w in weights]

    ahead = preview(optimizer, weights, gradients)

    assert not called
    assert all(a is b for a, b in zip(flat(optimizer), objects, strict=True))
    assert str(optimizer.state_dict()) == str(held)
    assert optimizer.__dict__.keys() == attributes.keys()
    assert all(optimizer.__dict__[name] is value for name, value in attributes.items())
    assert [w._version for w in weights] == versions
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    assert all(torch.equal(w.grad, torch.full_like(w, 7.0)) for w in weights)
    for weight, g in zip(weights, gradients, strict=True):
        weight.grad = g
    optimizer.step()
    assert called == ["before", "after"]
    assert all(torch.equal(a, w) for a, w in zip(ahead, weights, strict=True))
    assert not torch.equal(ahead[0], before[0])
    assert all(a.grad is None and a.requires_grad for a in ahead)


class Failing(AdamW):
    """Raises at its step if it is told to, in the middle of it."""

    armed = False

    def step(self, closure: Any = None) -> Any:
        found = super().step(closure)
        if self.armed:
            raise RuntimeError("no more")
        return found


def test_a_look_ahead_that_raises_leaves_no_trace():
    network = make("convolutional").network
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    lower = Failing(network.network_parameters(), lr=0.1)
    update = Meta(
        network,
        squared_error,
        lower=lower,
        upper=SGD(network.codebook_parameters(), 0.1),
        look_ahead=Undone(optimizer_step=True),
    )
    update.step(x, x)
    before, objects, held = state(network), flat(lower), str(lower.state_dict())
    random = torch.get_rng_state()
    lower.armed = True
    with pytest.raises(RuntimeError, match="no more"):
        update.step(x, x)
    assert_same(state(network), before)
    assert all(a is b for a, b in zip(flat(lower), objects, strict=True))
    assert str(lower.state_dict()) == held
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("kind", [Meta, MetaBoth, GenericMeta])
def test_hooks_and_schedules_see_one_step_of_each_optimizer(kind):
    problem = make("linear")
    update = rule_of(kind, problem.network, look_ahead=Undone(optimizer_step=True))
    called: list[str] = []
    for level in ("lower", "upper"):
        getattr(update, level).register_step_post_hook(lambda *_, level=level: called.append(level))
    update.step(problem.x, problem.y)
    assert sorted(called) == ["lower", "upper"]


# -- embeddings that are not finite ----------------------------------------------------------------


@pytest.mark.covering(1)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_that_is_not_finite_gets_no_code(kind, value):
    """They had code 0, silently."""
    quantizer = KINDS[kind](5, 6)
    z_e = torch.randn(4, 6)
    z_e[2, 3] = value
    for ask in (quantizer.encode, quantizer.eval(), quantizer.encode):
        with pytest.raises(MqvaeError, match="1 of 24 numbers of the embeddings are inf or nan"):
            ask(z_e)
    if kind == "finite scalar" and not math.isnan(value):
        return  # tanh makes it the outermost level
    # In training nobody looks at a value; what is optimized says it.
    found = quantizer.train()(z_e)
    terms = [found.z_q.sum(), found.commitment_loss, found.codebook_loss, found.auxiliary_loss]
    assert not all(torch.isfinite(term) for term in terms if term is not None)


def test_nothing_is_looked_at_in_a_step(monkeypatch):
    """A GPU would be waited for."""
    problem = make("linear")
    update = rule_of(Meta, problem.network)
    monkeypatch.setattr(VectorQuantizer, "_check_finite", None)
    update.step(problem.x, problem.y)


# -- several processes -----------------------------------------------------------------------------


def test_a_run_begins_with_what_the_first_process_has(tmp_path, monkeypatch):
    """Network, task and EMA of the weights, before k-means and the first checkpoint."""
    order: list[Any] = []
    monkeypatch.setattr(runs, "agree", order.append)
    initialize = runs.initialize_codebook
    monkeypatch.setattr(
        runs, "initialize_codebook", lambda *given: order.append("k-means") or initialize(*given)
    )
    settings = Settings.of(
        load_preset("digits-tiny", {"steps": 1, "trainer": {"accelerator": "cpu"}})
    )
    parts = begin(settings, tmp_path / "run").parts
    assert order == [[parts.network, parts.task, parts.average], "k-means"]

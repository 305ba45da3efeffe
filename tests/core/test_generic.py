"""Meta around modules that are not ours: against Meta, the reference, and double backward."""

import copy
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import reference
import torch
from problems import FAMILIES, GROUPS, make, squared_error
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from vector_quantize_pytorch import VectorQuantize

from mqvae import (
    Central,
    Derivative,
    FiniteDifference,
    ForwardMode,
    GenericMeta,
    Kept,
    Meta,
    OneSided,
    Undone,
)

LOOKS = {
    "undone": Undone(),
    "optimizer's step": Undone(optimizer_step=True),
    "preconditioned": Undone(optimizer_step=True, preconditioned=True),
    "kept": Kept(),
    "kept, preconditioned": Kept(preconditioned=True),
}
every_look = pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Fixed(Derivative):
    """A central difference of given ε, whatever the length of the tangent."""

    epsilon: float = 1e-3

    def __call__(self, f, primals, tangents, centre, length) -> Tensor:
        def at(scale: float) -> Tensor:
            pairs = zip(primals, tangents)
            return f([p if t is None else (p + scale * t).detach() for p, t in pairs])

        return (at(self.epsilon) - at(-self.epsilon)) / (2 * self.epsilon)


def levels(module: nn.Module, codebook: list, kind=AdamW, lower=1e-2, upper=3e-2) -> dict:
    above = {id(p) for p in codebook}
    rest = [p for p in module.parameters() if id(p) not in above]
    return {"lower": kind(rest, lr=lower), "upper": kind(codebook, lr=upper)}


def around(network, problem, kind=AdamW, rates=(1e-2, 3e-2), **options) -> GenericMeta:
    """The rule around one of our own networks, as if it were anybody's."""

    def loss(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        result = module(x)
        commitment = problem.beta * result.quantized.commitment_loss
        codebook = problem.codebook_weight * result.quantized.codebook_loss
        return problem.loss(result.output, y) + commitment + codebook

    book = list(network.codebook_parameters())
    optimizers = levels(network, book, kind, *rates)
    return GenericMeta(network, loss, codebook=book, **optimizers, **options)


# -- what it computes ------------------------------------------------------------------------------


@pytest.mark.covering(2)
@every_look
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_meta_with_free_codes(family, groups, look):
    problem = make(family, groups)
    network, twin = problem.network, copy.deepcopy(problem.network)
    book = list(network.codebook_parameters())
    rule = Meta(
        network,
        problem.loss,
        **levels(network, book),
        hypergradient=FiniteDifference(Fixed(), free_codes=True),
        xi=0.3,
        look_ahead=look,
        commitment_weight=problem.beta,
        codebook_weight=problem.codebook_weight,
    )
    update = around(twin, problem, derivative=Fixed(), xi=0.3, look_ahead=look)
    for _ in range(3):
        one, other = rule.step(problem.x, problem.y), update.step(problem.x, problem.y)
    for p, q in zip(network.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    assert other.direct_norm > 0
    assert other.indirect_norm > 0
    for name in ("direct_norm", "indirect_norm", "cosine"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-10, atol=0)


@pytest.mark.covering(1)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_equation_13_with_whole_passes(family, groups):
    problem, xi, epsilon = make(family, groups, beta=0.4, seed=2), 0.3, 1e-3
    expected = reference.above(problem, xi)[2]
    of_encoder, of_decoder = reference.paper_difference(problem, xi, epsilon, frozen=False)
    assert torch.count_nonzero(of_decoder) == 0
    book = problem.network.quantizer.codebook.weight
    before = book.detach().clone()
    update = around(problem.network, problem, SGD, (0.0, 1.0), derivative=Fixed(epsilon), xi=xi)
    step = update.step(problem.x, problem.y)
    torch.testing.assert_close(before - book, expected + of_encoder, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(step.indirect_norm, of_encoder.norm(), rtol=1e-10, atol=0)


class Mixture(nn.Module):
    """A smooth look-up, through which the loss reaches codebook and network alike."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        self.table, self.scale = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.ones(3))
        self.double()

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x).tanh()

    def decode(self, z: Tensor) -> Tensor:
        codebook = self.table * self.scale
        return self.decoder((z @ codebook.T).softmax(-1) @ codebook).tanh()


def mixed(module: Mixture, x: Tensor) -> Tensor:
    return (module.decode(module.encode(x)) - x).square().mean()


@pytest.mark.parametrize(
    ("derivative", "tolerance"),
    [(Central(1e-4), 1e-7), (OneSided(1e-6), 1e-4)],
    ids=["central", "one-sided"],
)
def test_a_smooth_module_against_double_backward(derivative, tolerance):
    """Two codebook parameters, a loss that reaches them through the decoder, and no freezing."""
    torch.manual_seed(4)
    module, xi = Mixture(), 0.8
    x = torch.randn(7, 4, dtype=torch.float64)
    book = [module.table, module.scale]
    network = [*module.encoder.parameters(), *module.decoder.parameters()]
    g = torch.autograd.grad(mixed(module, x), network)
    ahead = copy.deepcopy(module)
    ahead_network = [*ahead.encoder.parameters(), *ahead.decoder.parameters()]
    with torch.no_grad():
        for p, direction in zip(ahead_network, g):
            p -= xi * direction
    found = torch.autograd.grad(mixed(ahead, x), [*ahead_network, ahead.table, ahead.scale])
    v, direct = found[:-2], found[-2:]
    g_c = torch.autograd.grad(mixed(module, x), book, create_graph=True)
    leaves = [torch.ones_like(c, requires_grad=True) for c in g_c]
    weighted = sum((c * w).sum() for c, w in zip(g_c, leaves))
    by_network = torch.autograd.grad(weighted, network, create_graph=True)
    along = sum((a * b).sum() for a, b in zip(by_network, v))
    change = torch.autograd.grad(along, leaves)
    expected = [d - xi * c for d, c in zip(direct, change)]

    before = [p.detach().clone() for p in book]
    optimizers = levels(module, book, SGD, 0.0, 1.0)
    GenericMeta(module, mixed, codebook=book, derivative=derivative, xi=xi, **optimizers).step(x)
    for old, new, hyper, part in zip(before, book, expected, change):
        assert part.norm() > 1e-4
        torch.testing.assert_close(old - new, hyper, rtol=tolerance, atol=tolerance)


def test_a_second_batch_is_the_upper_level_s():
    problem = make("convolutional")
    other = torch.randn_like(problem.x)
    reports = []
    for above in (None, (problem.x, problem.y), (other, other)):
        update = around(copy.deepcopy(problem.network), problem)
        reports.append(update.step(problem.x, problem.y, above=above))
    same, also, fresh = reports
    assert same.loss == also.loss == fresh.loss
    assert same.direct_norm == also.direct_norm != fresh.direct_norm


# -- a codebook of somebody else's -----------------------------------------------------------------


class Theirs(nn.Module):
    """Batch norm, dropout, and a quantizer of vector-quantize-pytorch."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4)
        )
        self.vq = VectorQuantize(
            dim=4, codebook_size=16, learnable_codebook=True, ema_update=False, **options
        )
        self.decoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))

    @property
    def book(self) -> nn.Parameter:
        return self.vq._codebook.embed


def their_loss(module: Theirs, x: Tensor) -> Tensor:
    z_q, _, vq_loss = module.vq(module.encoder(x))
    return squared_error(module.decoder(z_q), x) + vq_loss


THEIRS = {
    "straight-through": {"rotation_trick": False},
    "rotation": {"rotation_trick": True},
    "synchronous": {"rotation_trick": False, "sync_update_v": 0.5},
    "replacing": {"rotation_trick": False, "threshold_ema_dead_code": 2},
    "affine": {"rotation_trick": False, "affine_param": True},
    "k-means": {"rotation_trick": False, "kmeans_init": True},
}
every_kind = pytest.mark.parametrize("kind", THEIRS)


def theirs(kind: str) -> Theirs:
    torch.manual_seed(3)
    return Theirs(**THEIRS[kind])


def rows() -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(7))


def trained(module: Theirs, loss=their_loss, **options) -> GenericMeta:
    return GenericMeta(module, loss, codebook=[module.book], **levels(module, [module.book]),
                       **options)  # fmt: skip


class Watching(Derivative):
    """No derivative, but g_C at the centre beside what the rule took for it."""

    def __call__(self, f, primals, tangents, centre, length) -> Tensor:
        self.centre, self.found = centre, f([p.detach() for p in primals])
        return torch.zeros_like(centre)


@pytest.mark.covering(1)
@every_look
@every_kind
def test_the_centre_of_the_difference_is_known(kind, look):
    """Passes of a difference give what training passes give, and nothing before them shifts them.

    Theirs lets the task loss reach the codebook where the quantizer's input needs no gradient.
    """
    module, derivative = theirs(kind), Watching()
    update = trained(module, look_ahead=look, derivative=derivative)
    for _ in range(3):
        update.step(rows())
        assert torch.equal(derivative.centre, derivative.found)
        assert derivative.centre.norm() > 0


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().clone() for name, b in module.named_buffers()}


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit: some of their buffers begin as whatever was in memory, NaN among it."""
    assert found.keys() == expected.keys()
    assert not [k for k in found if not torch.equal(bits(found[k]), bits(expected[k]))]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


@pytest.mark.covering(1)
@every_look
@every_kind
def test_the_look_ahead_leaves_no_trace(kind, look):
    """Buffers, replaced codewords and random state end as after the one real pass."""
    module, twin, seen = theirs(kind), theirs(kind), []
    book = module.book

    def loss(module: Theirs, x: Tensor) -> Tensor:
        if module.book is book:  # the real pass; the others see copies
            seen.append(book.detach().clone())
        return their_loss(module, x) + 0 * torch.rand(())

    update = trained(module, loss, look_ahead=look)
    for _ in range(2):
        random = torch.get_rng_state()
        update.step(rows())
        after = torch.get_rng_state()
        torch.set_rng_state(random)
        with torch.no_grad():
            twin.book.copy_(seen[-1])
        loss(twin, rows())
        assert torch.equal(after, torch.get_rng_state())
        assert_same(state(module), state(twin))
        if not isinstance(look, Kept):  # there the codebook has been stepped since
            assert torch.equal(module.book, twin.book)
        twin.load_state_dict(module.state_dict())
    assert len(seen) == 2


class Failing:
    """A loss that raises at its n-th call, after the passes have been made."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, module: Theirs, x: Tensor) -> Tensor:
        total = their_loss(module, x)
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("on purpose")
        return total


@pytest.mark.covering(1)
@every_look
@every_kind
def test_a_step_that_raises_leaves_no_trace(kind, look):
    counting = Failing(at=-1)
    trained(theirs(kind), counting, look_ahead=look).step(rows())
    calls, kept = -1 - counting.left, isinstance(look, Kept)
    assert calls == (3 if kept else 4)
    for at in range(1, calls + 1):
        module = theirs(kind)
        before, buffers, random = parameters(module), state(module), torch.get_rng_state()
        update = trained(module, Failing(at), look_ahead=look)
        with pytest.raises(RuntimeError, match="on purpose"):
            update.step(rows())
        assert all(p.grad is None for p in module.parameters())
        if kept and at > 1:
            # The real step was done; what failed is the answer of the codebook to it.
            twin = theirs(kind)
            their_loss(twin, rows())
            buffers, random = state(twin), torch.get_rng_state()
            before = {"vq._codebook.embed": twin.book.detach()}
        elif at == calls:
            # The codebook has moved; the others must not have.
            before.pop("vq._codebook.embed")
        elif not kept:
            assert not update.lower.state_dict()["state"]
        after = parameters(module)
        assert_same({name: after[name] for name in before}, before)
        assert_same(state(module), buffers)
        assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("look", [Undone(), Kept()], ids=["undone", "kept"])
def test_it_trains_theirs(look):
    module = theirs("straight-through")
    before = module.book.detach().clone()
    update = trained(module, look_ahead=look, xi=0.3)
    losses = [update.step(rows()).loss.item() for _ in range(80)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert not torch.equal(module.book, before)


# -- frozen, unused, shared ------------------------------------------------------------------------


def test_frozen_and_unused_parameters_stay():
    """Not even weight decay moves them."""
    module = theirs("straight-through")
    module.idle, module.second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))
    module.encoder[0].requires_grad_(False)
    before = parameters(module)
    book = [module.book, module.second]
    optimizers = levels(module, book)
    for look in (Undone(), Kept(), Undone(optimizer_step=True)):
        GenericMeta(module, their_loss, codebook=book, look_ahead=look, **optimizers).step(rows())
    after = parameters(module)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"encoder.0.weight", "encoder.0.bias", "idle", "second"}


def test_a_frozen_codebook_stays_and_a_frozen_network_has_no_indirect_term():
    module = theirs("straight-through")
    module.book.requires_grad_(False)
    before = parameters(module)
    step = trained(module).step(rows())
    assert step.direct_norm == step.indirect_norm == step.cosine == 0
    assert torch.equal(module.book, before["vq._codebook.embed"])
    assert not torch.equal(module.encoder[0].weight, before["encoder.0.weight"])

    module = theirs("straight-through")
    module.encoder.requires_grad_(False)
    module.decoder.requires_grad_(False)
    before = parameters(module)
    step = trained(module).step(rows())
    assert step.indirect_norm == 0 < step.direct_norm
    after = parameters(module)
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"vq._codebook.embed"}


def test_tied_parameters_move_together():
    class Tied(Mixture):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Linear(3, 4).double()
            self.encoder.weight = nn.Parameter(self.decoder.weight.T.detach().clone())
            self.mirror = self.encoder

        def encode(self, x: Tensor) -> Tensor:
            return (self.encoder(x) + self.mirror(x)).tanh()

    torch.manual_seed(5)
    module = Tied()
    plain = copy.deepcopy(module)
    plain.encode = lambda x: (2 * plain.encoder(x)).tanh()
    x = torch.randn(9, 4, dtype=torch.float64)
    for model in (module, plain):
        book = [model.table, model.scale]
        GenericMeta(model, mixed, codebook=book, **levels(model, book)).step(x)
    assert module.mirror is module.encoder
    for p, q in zip(module.parameters(), plain.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_half_precision_differences_are_taken_in_full():
    module = theirs("straight-through")
    passes = []

    class Listening(OneSided):
        def __call__(self, f, primals, tangents, centre, length) -> Tensor:
            passes.append((torch.is_autocast_enabled("cpu"), centre))
            return super().__call__(f, primals, tangents, centre, length)

    with torch.autocast("cpu", torch.bfloat16):
        step = trained(module, derivative=Listening()).step(rows())
    assert passes == [(False, None)]
    assert torch.isfinite(step.indirect_norm)
    assert step.indirect_norm > 0


@every_look
def test_autocast_keeps_no_cast_of_weights_before_the_step(look):
    module = theirs("straight-through")
    update = trained(module, look_ahead=look)
    with torch.autocast("cpu", torch.bfloat16):
        update.step(rows())
        module.eval()
        inside = module.encoder(rows())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.encoder(rows()), inside)


# -- bad input -------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    module = theirs("straight-through")
    book = [module.book]
    right = levels(module, book)

    def build(**changed):
        return GenericMeta(module, their_loss, **{"codebook": book, **right, **changed})

    with pytest.raises(ValueError, match="forward mode takes a detached tensor for a constant"):
        trained(theirs("straight-through"), derivative=ForwardMode())
    with pytest.raises(ValueError, match="xi must be 0 or more"):
        build(xi=-1.0)
    with pytest.raises(ValueError, match=r"codebook must be .* got 0 .* vq\._codebook\.embed"):
        build(codebook=[])
    with pytest.raises(ValueError, match="codebook must be one or more parameters of the module"):
        build(codebook=[nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=r"lower .* outside .* also holds: vq\._codebook\.embed"):
        build(lower=AdamW(module.parameters()))
    with pytest.raises(ValueError, match=r"lower .* lacks: decoder\.0\.bias, decoder\.0\.weight,"):
        build(lower=AdamW(module.encoder.parameters()))
    with pytest.raises(ValueError, match=r"upper .* also holds: one that is not the module's"):
        build(upper=AdamW([*book, nn.Parameter(torch.ones(2))]))
    with pytest.raises(ValueError, match="needs Adam"):
        build(lower=SGD(right["lower"].param_groups[0]["params"]), look_ahead=Kept(True))


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda module, x: module.encoder(x), r"a tensor \(40, 4\) with requires_grad=True"),
        (lambda module, x: module.encoder(x).mean().detach(), "requires_grad=False"),
        (lambda module, x: 1.0, "a float"),
    ],
    ids=["a matrix", "detached", "a number"],
)
@pytest.mark.parametrize("look", [Undone(), Kept()], ids=["undone", "kept"])
def test_a_loss_that_is_no_scalar_is_refused(loss, got, look):
    module = theirs("straight-through")
    before = state(module)
    with pytest.raises(ValueError, match=f"must return a scalar tensor with a gradient, .*{got}"):
        trained(module, loss, look_ahead=look).step(rows())
    assert_same(state(module), before)


def test_without_gradients_there_is_no_step():
    with torch.no_grad(), pytest.raises(ValueError, match=r"torch\.no_grad"):
        trained(theirs("straight-through"), look_ahead=Kept()).step(rows())


def test_a_wrapped_module_is_refused(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        module = nn.parallel.DistributedDataParallel(theirs("straight-through"))
        book = [module.module.book]
        with pytest.raises(ValueError, match=r"pass .* module\.module"):
            GenericMeta(module, their_loss, codebook=book, **levels(module, book))
    finally:
        torch.distributed.destroy_process_group()


# -- the examples ----------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch):
    """Imports an example as its own file does: from its folder."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in ("their_codebook", "lightning_module"):
        sys.modules.pop(name, None)


def digits() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images[:640]).float()[:, None] / 16


def test_the_plain_loop(example):
    own = example("their_codebook")
    model = own.Model()
    before = model.vq._codebook.embed.detach().clone()
    buffers = {n: b.clone() for n, b in model.vq.named_buffers()}
    losses = own.train(model, digits(), 25)
    assert len(losses) == 25
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert not torch.equal(model.vq._codebook.embed, before)
    assert_same(dict(model.vq.named_buffers()), buffers)
    assert model.encoder[1].num_batches_tracked == 25  # and not once more for a look-ahead


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_lightning_module(example):
    own = example("lightning_module")
    losses = []

    class Recorded(own.Digits):
        def on_train_start(self) -> None:
            super().on_train_start()
            self.update.look_ahead = Undone(optimizer_step=True)  # whose preview counts no step

        def on_train_batch_end(self, *args) -> None:
            losses.append(self.trainer.callback_metrics["loss"].item())

    module = Recorded()
    before = module.model.vq._codebook.embed.detach().clone()
    trainer = own.train(module, digits(), 3, progress=False)
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not torch.equal(module.model.vq._codebook.embed, before)
    assert module.model.encoder[1].num_batches_tracked == 30
    # Lightning counts the steps of both optimizers, and a previewed one is none.
    assert trainer.global_step == 60
    for optimizer in trainer.optimizers:
        steps = [own["step"].item() for own in optimizer.state_dict()["state"].values()]
        assert set(steps) == {30}

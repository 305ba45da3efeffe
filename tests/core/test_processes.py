"""Two processes (gloo) against each other, and against one process on the joined batch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pairs import meet
from problems import QUANTIZERS, make_with, squared_error
from torch import Tensor, nn
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
    LookupFreeQuantizer,
    Meta,
    MetaBoth,
    MetaNetwork,
    MovingAverage,
    RateAware,
    Replacement,
    ReplaceUnused,
    Synchronous,
    Transport,
    Transported,
    Undone,
    Unquantized,
    Unrolled,
    Update,
    VectorQuantizer,
    VQNetwork,
    vqvae,
)
from mqvae.core import distributed
from mqvae.data import InMemory
from mqvae.metrics import evaluate
from mqvae.tasks import Reconstruction

STEPS = 4  # where unused codewords are replaced; elsewhere two
SEED = 100  # of the first process


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


@dataclass
class Case:
    """A module that a rule trains."""

    module: nn.Module
    update: Any
    step: Callable[[Tensor], Any]

    def state(self, report: Any) -> dict[str, Tensor]:
        """All that must be alike in two processes; `report` is the last step's."""
        found = dict(self.module.state_dict())
        for level in ("lower", "upper"):
            optimizer = getattr(self.update, level)
            for i, own in (optimizer.state_dict()["state"] if optimizer else {}).items():
                found.update({f"{level} {i} {name}": value for name, value in own.items()})
        if hasattr(self.update, "state_dict"):
            found.update({f"rule {name}": v for name, v in self.update.state_dict().items()})
        for name in ("direct_norm", "indirect_norm", "cosine"):
            if getattr(report, name) is not None:
                found[name] = getattr(report, name)
        return {name: value.detach().clone() for name, value in found.items()}


# -- the cases -------------------------------------------------------------------------------------


def optimizers(network: VQNetwork) -> dict[str, AdamW | None]:
    codebook = list(network.codebook_parameters())
    return {
        "lower": AdamW([p for p in network.network_parameters() if p.requires_grad], lr=1e-2),
        "upper": AdamW(codebook, lr=3e-2) if codebook else None,
    }


RATE = RateAware(bits=1.0, after=0)
KINDS = {
    **QUANTIZERS,
    "lookup-free": lambda codes, dim: LookupFreeQuantizer(2**dim),
    "rate": lambda codes, dim: VectorQuantizer(codes, dim, rate=RATE),
    "average": lambda codes, dim: VectorQuantizer(codes, dim, codebook=MovingAverage(0.8)),
    "rate, groups": lambda codes, dim: VectorQuantizer(codes, dim, groups=2, rate=RATE),
}


def rule(kind: type, quantizer: str = "table", *, parts: int = 1, frozen: bool = False, **options):
    def build() -> Case:
        network = make_with("convolutional", KINDS[quantizer]).network
        network.encoder.requires_grad_(not frozen)
        levels = optimizers(network)
        if kind is Ema:
            del levels["upper"]
        update = kind(network, squared_error, **levels, **options)
        return Case(network, update, lambda x: update.step(x, x, parts=parts))

    return build


class Around(nn.Module):
    """No VQNetwork, with one inside."""

    def __init__(self, network: VQNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).output


def any_module(kind: type, quantizer: str = "table", *, batches: int = 1, **options):
    """Steps along several batches, of a module that is passed through as a whole."""

    def build() -> Case:
        network = make_with("convolutional", KINDS[quantizer]).network
        module = Around(network)
        frame = {**optimizers(network), "max_norm": 0.1}
        update = Update(module, squared_error, kind(**options), **frame)

        def step(x: Tensor) -> Any:
            for _ in range(batches - 1):
                update.accumulate(2 * x, x)
            return update(x, x)

        return Case(module, update, step)

    return build


def warm(kind: type = Joint, share: float = 0.4, **options):
    """A step without quantization, and one in which a share of the samples is not quantized."""

    def build() -> Case:
        network = make_with("convolutional", QUANTIZERS["table"]).network
        levels = optimizers(network)
        network.quantizer.unquantized = share
        before = Unquantized(network, squared_error, lower=levels["lower"])
        update = kind(network, squared_error, **levels, **options)

        def step(x: Tensor) -> Any:
            before.step(x, x)
            return update.step(x, x)

        return Case(network, update, step)

    return build


def generic_loss(network: VQNetwork, x: Tensor) -> Tensor:
    result = network(x)
    losses = 0.1 * result.quantized.commitment_loss + result.quantized.codebook_loss
    return squared_error(result.output, x) + losses


def generic(**options):
    def build() -> Case:
        network = make_with("convolutional", QUANTIZERS["table"]).network
        book = list(network.codebook_parameters())
        update = GenericMeta(network, generic_loss, codebook=book, **optimizers(network), **options)
        return Case(network, update, update.step)

    return build


EXACT = Exact(ForwardMode(), ForwardMode())
OPTIMIZER_STEP = Undone(optimizer_step=True)
CASES = {
    "Joint": rule(Joint),
    "Joint, parts": rule(Joint, parts=2),
    "Joint, groups": rule(Joint, "groups"),
    "Joint, residual": rule(Joint, "residual"),
    "Joint, cosine": rule(Joint, "cosine"),
    "Joint, hyper-network": rule(Joint, "hyper-network"),
    "Joint, rotation": rule(Joint, "rotation"),
    "Joint, lookup-free": rule(Joint, "lookup-free"),
    "Synchronous": rule(Synchronous),
    "Alternated": rule(Alternated),
    "Alternated, nu": rule(Alternated, nu=0.7),
    "Ema": rule(Ema, decay=0.8),
    "Ema, groups": rule(Ema, "shared groups", decay=0.8),
    "Ema, transport": rule(Ema, decay=0.8, transport=Transport()),
    "Ema, transport, groups": rule(Ema, "groups", decay=0.8, transport=Transport()),
    "Ema, rate": rule(Ema, "rate", decay=0.8),
    "Joint, rate, groups": rule(Joint, "rate, groups"),
    "Meta": rule(Meta),
    "Meta, parts": rule(Meta, parts=2),
    "Meta, kept": rule(Meta, look_ahead=Kept()),
    "Meta, optimizer's step": rule(Meta, look_ahead=OPTIMIZER_STEP),
    "Meta, preconditioned": rule(Meta, look_ahead=Kept(preconditioned=True)),
    "Meta, central": rule(Meta, hypergradient=FiniteDifference(Central())),
    "Meta, free codes": rule(Meta, hypergradient=FiniteDifference(free_codes=True)),
    "Meta, frozen encoder": rule(Meta, frozen=True),
    "Meta, affine": rule(Meta, "affine groups"),
    "Meta, linear map": rule(Meta, "linear map"),
    "Meta, hyper-network": rule(Meta, "hyper-network"),
    "Meta, residual": rule(Meta, "residual"),
    "Meta, rotation": rule(Meta, "rotation"),
    "Amortized": rule(Meta, hypergradient=Amortized(), look_ahead=OPTIMIZER_STEP),
    "Amortized, kept": rule(Meta, hypergradient=Amortized(), look_ahead=Kept()),
    "Transported": rule(Meta, hypergradient=Transported(), look_ahead=Kept()),
    "Transported, groups": rule(Meta, "groups", hypergradient=Transported(), look_ahead=Kept()),
    "Transported, shared groups": rule(
        Meta, "shared groups", hypergradient=Transported(), look_ahead=Kept()
    ),
    "Transported, residual": rule(Meta, "residual", hypergradient=Transported(), look_ahead=Kept()),
    "Direct only": rule(Meta, hypergradient=DirectOnly()),
    "Direct only, kept": rule(Meta, hypergradient=DirectOnly(), look_ahead=Kept()),
    "Exact": rule(Meta, hypergradient=Exact()),
    "Exact, kept": rule(Meta, hypergradient=Exact(), look_ahead=Kept()),
    "Exact, forward mode": rule(Meta, hypergradient=EXACT),
    "Exact, optimizer's step": rule(Meta, hypergradient=EXACT, look_ahead=OPTIMIZER_STEP),
    "Unrolled": rule(Meta, hypergradient=Unrolled(1)),
    "Unrolled, 3 steps": rule(Meta, hypergradient=Unrolled(3), xi=0.3),
    "Unrolled, frozen encoder": rule(Meta, hypergradient=Unrolled(2), frozen=True),
    "Unrolled, stopped": rule(Meta, hypergradient=Unrolled(3, stop_gradients=True), xi=0.3),
    "MetaNetwork": rule(MetaNetwork),
    "MetaBoth": rule(MetaBoth),
    "MetaBoth, exact": rule(MetaBoth, hypergradient=EXACT),
    "Any module": any_module(Joint, batches=2),
    "Any module, average": any_module(Joint, "average"),
    "Any module, synchronous": any_module(Synchronous, nu=0.7),
    "Any module, alternated": any_module(Alternated, nu=0.7),
    "Warm": warm(),
    "Warm, nu": warm(Synchronous, nu=0.7),
    "Warm, exact": warm(Meta, hypergradient=EXACT),
    "Warm, unrolled": warm(Meta, hypergradient=Unrolled(2)),
    "Generic": generic(),
    "Generic, kept": generic(look_ahead=Kept()),
    "Generic, optimizer's step": generic(look_ahead=OPTIMIZER_STEP, derivative=Central()),
    "Generic, preconditioned": generic(look_ahead=Kept(preconditioned=True)),
}


class Watched(Replacement):
    """Replaces, and remembers how many rows, and how many by embeddings of this process."""

    def __init__(self) -> None:
        self.policy = ReplaceUnused(2)
        self.replaced = 0
        self.own = 0

    def __call__(self, unused_steps, pool) -> tuple[Tensor, Tensor]:
        rows, codewords = self.policy(unused_steps, pool)
        self.replaced += len(rows)
        parts = pool.parts.flatten(0, 1)
        self.own += sum(bool((parts == codeword).all(1).any()) for codeword in codewords)
        return rows, codewords


def replacing(
    kind: type,
    *,
    groups: int = 1,
    shared: bool = False,
    **options,
):
    """A codebook with many more codewords than a batch has embeddings."""

    def quantizer(codes: int, dim: int) -> VectorQuantizer:
        return VectorQuantizer(
            *(200, dim),
            groups=groups,
            shared_codebook=shared,
            replacement=Watched(),
        )

    def build() -> Case:
        network = make_with("convolutional", quantizer).network
        levels = optimizers(network)
        if kind is Ema:
            del levels["upper"]
        update = kind(network, squared_error, **levels, **options)
        return Case(network, update, lambda x: update.step(x, x))

    return build


# What draws random numbers, each process its own.
RANDOM_CASES = {"Gumbel": rule(Joint, "gumbel")}
REPLACING_CASES = {
    "Joint": replacing(Joint),
    "Joint, groups": replacing(Joint, groups=3),
    "Joint, shared groups": replacing(Joint, groups=2, shared=True),
    "Alternated": replacing(Alternated),
    "Ema": replacing(Ema),
    "Meta": replacing(Meta),
    "Meta, kept": replacing(Meta, look_ahead=Kept()),
    "Meta, groups": replacing(Meta, groups=3),
    "Meta, shared groups": replacing(Meta, groups=2, shared=True),
    "MetaBoth": replacing(MetaBoth),
    "MetaNetwork": replacing(MetaNetwork),
}
INITIALIZED = [kind for kind in QUANTIZERS if kind != "none"]


# What a step sends, reduction by reduction: what for, and how many numbers.
LOOK, STEP, ANSWER, BOOK = "look-ahead", "step of φ, θ", "v", "step of C"
NETWORK, TABLE = "P_φ + P_θ", "K·D"
DRIFT = "K + K·D + 2 D² + 3 D + 1"
SENT: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "Joint": ("`Joint`", [("all", "P_φ + P_θ + P_C")]),
    "Synchronous": ("`Synchronous`", [("all", "P_φ + P_θ + K·D")]),
    "Ema": ("`Ema`", [(STEP, NETWORK), ("averages", "K + K·D")]),
    "Ema, transport": (
        "`Ema(transport=Transport())`",
        [(STEP, NETWORK), ("drift", DRIFT), ("averages", "K + K·D")],
    ),
    "Alternated": ("`Alternated`", [(BOOK, TABLE), (STEP, NETWORK)]),
    "Direct only, kept": ("`Meta(DirectOnly())`, `Kept()`", [(STEP, NETWORK), (BOOK, TABLE)]),
    "Direct only": (
        "`Meta(DirectOnly())`",
        [(LOOK, NETWORK), (BOOK, TABLE), (STEP, NETWORK)],
    ),
    "Amortized, kept": ("`Meta(Amortized())`, `Kept()`", [(STEP, NETWORK), (BOOK, "2 K·D")]),
    "Transported": (
        "`Meta(Transported())`, `Kept()`",
        [(STEP, NETWORK), ("drift", DRIFT), (BOOK, TABLE)],
    ),
    "Amortized": (
        "`Meta(Amortized())`, `Undone(optimizer_step=True)`",
        [(LOOK, NETWORK), (BOOK, "2 K·D"), (STEP, NETWORK)],
    ),
    "Meta, kept": (
        "`Meta(FiniteDifference())`, `Kept()`",
        [(STEP, NETWORK), (ANSWER, "P_φ"), (BOOK, "2 K·D")],
    ),
    "Meta": (
        "`Meta(FiniteDifference())`",
        [(LOOK, NETWORK), (ANSWER, "P_φ"), (BOOK, "2 K·D"), (STEP, NETWORK)],
    ),
    "Exact, kept": (
        "`Meta(Exact())`, `Kept()`",
        [(STEP, NETWORK), (ANSWER, NETWORK), ("length", "1"), (BOOK, "2 K·D")],
    ),
    "Exact": (
        "`Meta(Exact())`",
        [(LOOK, NETWORK), (ANSWER, NETWORK), ("length", "1"), (BOOK, "2 K·D"), (STEP, NETWORK)],
    ),
    "Unrolled": (
        "`Meta(Unrolled(1))`",
        [
            (LOOK, NETWORK),
            ("virtual step", NETWORK),
            (ANSWER, NETWORK),
            (BOOK, "2 K·D"),
            (STEP, NETWORK),
        ],
    ),
    "Unrolled, 3 steps": (
        "`Meta(Unrolled(3))`",
        [
            (LOOK, NETWORK),
            *[("virtual step", NETWORK)] * 3,
            (ANSWER, NETWORK),
            *[("back through it", NETWORK)] * 2,
            (BOOK, "2 K·D"),
            (STEP, NETWORK),
        ],
    ),
    "MetaNetwork": (
        "`MetaNetwork` (†)",
        [("look-ahead of C", TABLE), ("v_C", TABLE), (STEP, NETWORK), (BOOK, TABLE)],
    ),
    "MetaBoth": (
        "`MetaBoth(FiniteDifference())` (‡)",
        [
            ("both look-aheads", "P_φ + P_θ + K·D"),
            (ANSWER, "P_φ"),
            ("v_C", TABLE),
            ("both steps", "P_φ + P_θ + 2 K·D"),
        ],
    ),
    "Generic, kept": (
        "`GenericMeta`, `Kept()`",
        [(STEP, NETWORK), (ANSWER, NETWORK), (BOOK, "2 P_C")],
    ),
    "Generic": (
        "`GenericMeta`",
        [(LOOK, NETWORK), (ANSWER, NETWORK), (BOOK, "2 P_C"), (STEP, NETWORK)],
    ),
}
PAGE = Path(__file__).parents[2] / "docs" / "processes-cost.md"


def sizes_of(network: VQNetwork) -> dict[str, int]:
    """What the letters of the formulas stand for."""

    def count(parameters: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() for p in parameters if p.requires_grad)

    table = network.quantizer.table()
    return {
        "P_φ": count(network.encoder_parameters()),
        "P_θ": count(network.decoder_parameters()),
        "P_C": count(network.codebook_parameters()),
        "1": 1,
        "K": len(table),
        "D": table.shape[1],
        "D²": table.shape[1] ** 2,
        "K·D": table.numel(),
    }


def numbers(formula: str, sizes: dict[str, int]) -> int:
    """The value of a formula as "P_φ + 2 K·D"."""
    total = 0
    for term in formula.split(" + "):
        factor, _, letter = term.rpartition(" ")
        total += int(factor or 1) * sizes[letter]
    return total


def rows_of_the_page() -> list[str]:
    """The table of docs/processes-cost.md."""
    sizes = sizes_of(vqvae(1, num_codes=1024, dim=64, width=64))
    lines = ["| rule | reductions | what they are for, and numbers | MB |", "|---|---|---|---|"]
    for title, sent in SENT.values():
        megabytes = 4e-6 * sum(numbers(formula, sizes) for _, formula in sent)
        steps = "; ".join(f"{what}: {formula}" for what, formula in sent)
        lines.append(f"| {title} | {len(sent)} | {steps} | {megabytes:.1f} |")
    return lines


# -- in each process -------------------------------------------------------------------------------


def work(rank: int, folder: str) -> dict[str, Any]:
    families = {"equal": CASES, "random": RANDOM_CASES, "replacing": REPLACING_CASES}
    # All networks and rules are there before the process group: none may have noted its absence.
    built = {f: {name: case() for name, case in cases.items()} for f, cases in families.items()}
    networks = {kind: make_with("convolutional", QUANTIZERS[kind]).network for kind in INITIALIZED}
    seeded_apart = [seeded(rank) for _ in range(len(APART) + 1)]
    meet(rank, folder)
    torch.manual_seed(SEED + rank)
    found: dict[str, Any] = {"sent": {}}
    for family, cases in built.items():
        found[family], found["sent"][family] = {}, {}
        for name, case in cases.items():
            if family == "replacing":
                torch.manual_seed(SEED + rank)
            try:
                for x in batches()[: None if family == "replacing" else 2]:
                    with collectives() as sent:
                        report = case.step(x.chunk(2)[rank])
            except Exception as error:
                error.add_note(f"in the case '{name}', process {rank}")
                raise
            found[family][name], found["sent"][family][name] = case.state(report), sent
    watched = {name: c.module.quantizer.replacement for name, c in built["replacing"].items()}
    found["watched"] = {name: (w.replaced, w.own) for name, w in watched.items()}
    found["initialized"], found["initialized alike"] = {}, {}
    x = batches()[0]
    part = x[:5] if rank == 0 else x[5:]
    for kind, network in networks.items():
        network.initialize_codebook(part)
        found["initialized"][kind] = copied(network.quantizer)
        network.initialize_codebook(part, generator=torch.Generator().manual_seed(1))
        found["initialized alike"][kind] = copied(network.quantizer)
    found["functions"] = functions(rank)
    found["apart"] = {name: trained(seeded_apart.pop(), kind) for name, kind in APART.items()}
    groups = [dist.new_group([0]), dist.new_group([1])]
    found["own"] = trained(seeded_apart.pop(), Meta, process_group=groups[rank])
    try:
        trained(seeded(rank), Meta, process_group=groups[1 - rank])
    except ValueError as error:
        found["stranger"] = str(error)
    network = make_with("convolutional", QUANTIZERS["table"]).network
    network.initialize_codebook(batches()[rank], process_group=groups[rank])
    found["own codebook"] = copied(network.quantizer)
    if rank == 0:
        with collectives() as sent:
            alone()
        found["alone"] = sent
    dist.barrier()
    return found


APART = {"Joint": Joint, "Ema": Ema, "Meta": Meta, "Generic": GenericMeta, "Warm": Unquantized}


def seeded(seed: int) -> VQNetwork:
    """Weights, a codebook and batch statistics of a seed."""
    network = make_with("convolutional", QUANTIZERS["table"], seed=seed).network
    network.encoder.append(nn.BatchNorm2d(6).double())
    with torch.no_grad():
        network.encoder[-1].running_mean.fill_(seed)
    return network


def trained(network: VQNetwork, kind: type, **options: Any) -> dict[str, Tensor]:
    """What two steps make of it. Each process takes the whole batch, so that two do as one does."""
    levels = optimizers(network)
    if kind in (Ema, Unquantized):
        del levels["upper"]
    if kind is GenericMeta:
        options["codebook"] = list(network.codebook_parameters())
    loss = squared_error if kind is not GenericMeta else generic_loss
    update = kind(network, loss, **levels, **options)
    for each in batches()[:2]:
        update.step(each) if kind is GenericMeta else update.step(each, each)
    return copied(network)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def alone() -> None:
    """What one process may do without the others."""
    torch.manual_seed(0)
    x = torch.rand(6, 1, 8, 8)
    network = vqvae(1, num_codes=8, dim=4, width=8)
    network(x)
    z_e = network.embed(x)
    codes = network.quantizer(z_e).codes
    network.quantizer.record(z_e, codes)
    network.quantizer.update()
    network.quantizer = VectorQuantizer(8, 4, replacement=ReplaceUnused(after=1))
    network.eval()
    network.quantizer.record(z_e, codes)
    network.quantizer.update()
    network.decode(network.encode(x))
    pixels = (x * 255).to(torch.uint8)
    images = InMemory("noise", "test", pixels, torch.zeros(6, dtype=torch.int64), "here")
    evaluate(network.train(), Reconstruction(), images)


@contextmanager
def collectives() -> Iterator[list[tuple[str, int, int]]]:
    """Those made inside: name, numbers, bytes."""
    names = ["all_reduce", "all_gather", "broadcast", "barrier", "all_gather_object", "reduce"]
    own = {name: getattr(dist, name) for name in names}
    made: list[tuple[str, int, int]] = []

    def noting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            tensors = [t for t in args if isinstance(t, Tensor)]
            made.append((name, sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors)))
            return own[name](*args, **options)

        return call

    for name in names:
        setattr(dist, name, noting(name))
    try:
        yield made
    finally:
        for name, function in own.items():
            setattr(dist, name, function)


def functions(rank: int) -> dict[str, Tensor]:
    """The collective functions by themselves."""
    half, double = (
        torch.tensor([1.0, 2.0]).bfloat16(),
        torch.tensor([1 / 3 + rank], dtype=torch.float64),
    )
    mean = distributed.mean_across_processes([half, None, double])
    # f = Σ (mean over processes of (rank + 1) a²) · a: by a, 3 · 1.5 a².
    a = torch.tensor([2.0, 5.0], requires_grad=True)
    frozen = torch.ones(1)
    inside, same = distributed.shared([a, frozen])
    (outside,) = distributed.mean_with_graph([(rank + 1) * inside**2])
    (slope,) = torch.autograd.grad((outside * a).sum(), a)
    with collectives() as sent:
        kept = distributed.mean_across_processes([None])
    return {
        "half": mean[0],
        "double": mean[2],
        "nones": torch.tensor([mean[1] is None, kept == [None], not sent, same is frozen]),
        "gathered": distributed.from_all_processes(torch.full((rank + 1, 2), float(rank))),
        "first": distributed.from_first_process(torch.tensor([rank + 7])),
        "sum": distributed.sum_across_processes(torch.tensor([rank + 1])),
        "outside": outside.detach(),
        "slope": slope,
    }


# -- the tests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(pair, tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return pair(work, str(tmp_path_factory.mktemp("processes")))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.mark.parametrize("name", CASES)
def test_both_processes_do_what_one_does_with_the_joined_batch(both, name):
    one, other = (found["equal"][name] for found in both)
    assert_same(one, other)
    case = CASES[name]()
    start = copied(case.module)
    for x in batches()[:2]:
        report = case.step(x)
    expected = case.state(report)
    assert one.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(one[key], value, rtol=1e-10, atol=1e-10, msg=key)
    book = [k for k, _ in case.module.named_parameters() if k.startswith("quantizer")]
    assert not any(torch.equal(one[k], start[k]) for k in book)


@pytest.mark.parametrize("name", RANDOM_CASES)
def test_random_numbers_of_their_own_leave_both_processes_alike(both, name):
    one, other = (found["random"][name] for found in both)
    assert_same(one, other)
    start = RANDOM_CASES[name]().module.state_dict()
    for key, value in start.items():
        assert not torch.equal(one[key], value)
        assert torch.isfinite(one[key]).all()


@pytest.mark.parametrize("name", REPLACING_CASES)
def test_both_processes_replace_what_one_does_with_the_joined_batch(both, name):
    one, other = (found["replacing"][name] for found in both)
    assert_same(one, other)
    case = REPLACING_CASES[name]()
    torch.manual_seed(SEED)
    for x in batches():
        report = case.step(x)
    for key, value in case.state(report).items():
        torch.testing.assert_close(one[key], value, rtol=1e-10, atol=1e-10, msg=key)
    (replaced, own), (also, others) = (found["watched"][name] for found in both)
    assert replaced == also == case.module.quantizer.replacement.replaced > 100
    assert own + others == replaced
    assert min(own, others) > replaced // 4  # both halves of the batch are drawn from
    assert one["quantizer.unused_steps"].max() < 2
    assert (one["quantizer.unused_steps"] > 0).any()


@pytest.mark.parametrize("kind", INITIALIZED)
def test_both_processes_start_from_the_same_codebook(both, kind):
    one, other = (found["initialized"][kind] for found in both)
    assert_same(one, other)
    network = make_with("convolutional", QUANTIZERS[kind]).network
    network.quantizer.load_state_dict(one)
    network.eval()
    with torch.no_grad():
        z_e = network.quantizer.place(network.channels_last(network.encoder(batches()[0])))
        z_q = network.quantizer.decode(network.quantizer.encode(z_e))
        spread = (z_e - z_e.mean((0, 1, 2))).square().mean()
        # Centres of both processes' embeddings: each half is near to them.
        for half in ((z_e - z_q)[:5], (z_e - z_q)[5:]):
            assert half.square().mean() < 0.8 * spread


@pytest.mark.parametrize("kind", INITIALIZED)
def test_with_one_seed_the_codebook_is_that_of_the_joined_batch(both, kind):
    one, other = (found["initialized alike"][kind] for found in both)
    assert_same(one, other)
    network = make_with("convolutional", QUANTIZERS[kind]).network
    network.initialize_codebook(batches()[0], generator=torch.Generator().manual_seed(1))
    untouched = ("embedding", "hidden")
    for key, value in network.quantizer.state_dict().items():
        if not any(part in key for part in untouched):
            torch.testing.assert_close(one[key], value, rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", SENT)
def test_a_step_sends_no_more_than_it_must(both, name):
    """All in float64 here."""
    sizes = sizes_of(CASES[name]().module)
    expected = [numbers(formula, sizes) for _, formula in SENT[name][1]]
    for found in both:
        assert found["sent"]["equal"][name] == [("all_reduce", n, 8 * n) for n in expected]


@pytest.mark.parametrize("name", ["Joint, hyper-network", "Meta, hyper-network"])
def test_what_a_codebooks_map_adds(both, name):
    sizes = sizes_of(CASES[name]().module)
    assert sizes["P_C"] != sizes["K·D"]
    like = name.partition(",")[0]
    expected = [numbers(formula, sizes) for _, formula in SENT[like][1]]
    assert [n for _, n, _ in both[0]["sent"]["equal"][name]] == expected


def test_what_replacement_adds(both):
    rows, dim, processes = 200, 6, 2
    *step, count, which, vectors = both[0]["sent"]["replacing"]["Joint"]
    assert len(step) == 1
    assert count == ("all_reduce", rows + processes, 8 * (rows + processes))
    assert which[:1] == ("broadcast",) and 0 < which[1] < rows
    assert vectors == ("all_reduce", which[1] * dim, 8 * which[1] * dim)


def test_the_page_says_what_a_step_sends():
    text = PAGE.read_text()
    for row in rows_of_the_page():
        assert row in text.splitlines(), row


@pytest.mark.parametrize("name", APART)
def test_processes_that_were_seeded_apart_train_the_network_of_the_first(both, name):
    """Their weights were 0.905 apart after two steps, and nobody said so."""
    one, other = (found["apart"][name] for found in both)
    expected = trained(seeded(0), APART[name])
    for key, value in expected.items():
        if "running" in key and not key.endswith("tracked"):
            # Plain batch norm sees each process's own half, which here is the whole batch.
            torch.testing.assert_close(other[key], one[key], rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(one[key], other[key]), key
        if name != "Ema":  # which counts each embedding twice here
            torch.testing.assert_close(one[key], value, rtol=1e-9, atol=1e-9, msg=key)


def test_a_process_of_another_group_is_never_averaged_in(both):
    for rank, found in enumerate(both):
        expected = trained(seeded(rank), Meta)
        for key, value in expected.items():
            torch.testing.assert_close(found["own"][key], value, rtol=1e-9, atol=1e-9, msg=key)
        assert (
            f"process {rank} is not in process_group, which has [{1 - rank}]" in found["stranger"]
        )
    one, other = (found["own"] for found in both)
    assert not torch.equal(one["encoder.0.weight"], other["encoder.0.weight"])
    books = [found["own codebook"]["codebook.weight"] for found in both]
    assert not torch.equal(*books)


def test_one_process_may_look_and_measure_alone(both):
    assert both[0]["alone"] == []


def test_the_collective_functions(both):
    for found in both:
        got = found["functions"]
        assert got["half"].dtype == torch.bfloat16
        assert got["half"].tolist() == [1.0, 2.0]
        assert got["double"].item() == 1 / 3 + 0.5  # not rounded on the way
        assert got["nones"].all()
        assert got["gathered"].tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
        assert got["first"].item() == 7
        assert got["sum"].item() == 3
        assert got["outside"].tolist() == [6.0, 37.5]
        assert got["slope"].tolist() == [3 * 1.5 * 4, 3 * 1.5 * 25]

"""What one step of each method costs, relative to `Joint` on the same network and batch."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from benchmarks import peers
from benchmarks.table import Cell, Table
from benchmarks.timing import in_turns
from mqvae.core.codebook import Affine, HyperNetwork, LinearMap
from mqvae.core.distance import Cosine
from mqvae.core.estimator import Rotation
from mqvae.core.hypergradients import (
    Amortized,
    DirectOnly,
    Exact,
    FiniteDifference,
    ForwardMode,
    Transported,
    Unrolled,
)
from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import NoQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer
from mqvae.core.quantizers.gumbel import GumbelQuantizer
from mqvae.core.replacement import ReplaceUnused
from mqvae.core.rules import (
    Alternated,
    Ema,
    GenericMeta,
    Joint,
    Kept,
    Meta,
    MetaBoth,
    MetaNetwork,
    Rule,
    Synchronous,
    Undone,
    Update,
)
from mqvae.core.transport import Transport
from mqvae.networks.vqvae import vqvae
from mqvae.tasks import Reconstruction

OPTIMIZER_STEP = Undone(optimizer_step=True)
PRECONDITIONED = Undone(optimizer_step=True, preconditioned=True)
FORWARD = ForwardMode()

Contestant = Callable[[VQNetwork, Tensor], Callable[[], Any]]
"""Makes a step of a network, which it may change, and of a batch of images."""


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        make: The contestant.
        at_most: The ratio that the project holds itself to.
        predicted: The ratio by operation count, encoder and decoder alike.
        short: Whether it is a row of the short tables, or of that of all other methods.
    """

    make: Contestant
    at_most: float | None = None
    predicted: float | None = None
    short: bool = False

    def columns(self, ratio: Cell) -> dict[str, Cell]:
        """What was expected of a ratio, and whether it came."""
        held = None
        if self.at_most is not None:
            assert isinstance(ratio, float)
            held = "yes" if ratio <= self.at_most else "no"
        return {"by operation count": self.predicted, "at most": self.at_most, "held": held}


def rule(
    kind: type[Rule],
    at_most: float | None = None,
    predicted: float | None = None,
    *,
    quantizer: Callable[[int, int], Quantizer] | None = None,
    short: bool = False,
    **arguments: Any,
) -> Case:
    """A row of one of the rules, over the plain quantizer or another."""

    def make(network: VQNetwork, x: Tensor) -> Callable[[], Any]:
        if quantizer is not None:
            plain = network.quantizer
            network.quantizer = quantizer(plain.num_codes, plain.dim).to(x.device)
            network.initialize_codebook(x)
        codebook = list(network.codebook_parameters())
        levels: dict[str, Any] = {
            "lower": AdamW(network.network_parameters(), lr=3e-4, weight_decay=1e-4)
        }
        if kind.steps_codebook:
            levels["upper"] = AdamW(codebook, lr=6e-2, weight_decay=1e-4) if codebook else None
        update = Update(network, Reconstruction(), kind(**arguments), **levels)
        return lambda: update.step(x, x)

    return Case(make, at_most, predicted, short)


def meta(
    at_most: float | None = None,
    predicted: float | None = None,
    short: bool = False,
    **arguments: Any,
) -> Case:
    return rule(Meta, at_most, predicted, short=short, **arguments)


def generic(**arguments: Any) -> Contestant:
    """`GenericMeta`, which knows nothing of encoder, quantizer and decoder."""

    def make(network: VQNetwork, x: Tensor) -> Callable[[], Any]:
        def loss(network: VQNetwork, x: Tensor) -> Tensor:
            result = network(x)
            quantized = result.quantized
            task = Reconstruction()(result.output, x)
            return task + 0.1 * quantized.commitment_loss + quantized.codebook_loss

        book = list(network.codebook_parameters())
        levels = peers.optimizers(network)
        update = GenericMeta(
            network,
            loss,
            codebook=book,
            lower=levels["lower"],
            upper=levels["upper"],
            **arguments,
        )
        return lambda: update.step(x)

    return make


CASES: Mapping[str, Case] = {
    "Joint": rule(Joint, short=True),
    "Ema": rule(Ema),
    "Ema(transport)": rule(Ema, 1.3, 1.17, short=True, transport=Transport()),
    "Alternated": rule(Alternated),
    "Synchronous": rule(Synchronous),
    "Alternated(nu=1)": rule(Alternated, nu=1.0),
    "Meta(DirectOnly), kept": meta(
        predicted=1.17, short=True, hypergradient=DirectOnly(), look_ahead=Kept()
    ),
    "Meta(DirectOnly), undone": meta(predicted=2.0, hypergradient=DirectOnly()),
    "Meta(Amortized), kept": meta(
        1.3, 1.17, short=True, hypergradient=Amortized(), look_ahead=Kept()
    ),
    "Meta(Transported), kept": meta(
        1.3, 1.17, short=True, hypergradient=Transported(), look_ahead=Kept()
    ),
    "Meta(FiniteDifference), kept": meta(2.1, 2.0, short=True, look_ahead=Kept()),
    "Meta(FiniteDifference), undone": meta(2.9, 2.83, short=True),
    "Meta(FiniteDifference), undone, AdamW's step": meta(look_ahead=OPTIMIZER_STEP),
    "Meta(FiniteDifference), preconditioned": meta(look_ahead=PRECONDITIONED),
    "Meta(FiniteDifference(ForwardMode)), undone": meta(hypergradient=FiniteDifference(FORWARD)),
    "Meta(Exact), kept": meta(2.6, 2.5, short=True, hypergradient=Exact(), look_ahead=Kept()),
    "Meta(Exact), undone": meta(3.4, 3.33, short=True, hypergradient=Exact()),
    "Meta(Exact(ForwardMode)), kept": meta(
        hypergradient=Exact(FORWARD, FORWARD), look_ahead=Kept()
    ),
    "Meta(Exact(ForwardMode)), undone": meta(hypergradient=Exact(FORWARD, FORWARD)),
    "Meta(Unrolled(1)), reverse mode": meta(short=True, hypergradient=Unrolled(1)),
    "Meta(Unrolled(2))": meta(hypergradient=Unrolled(2)),
    "MetaNetwork (†)": rule(MetaNetwork),
    "MetaBoth (‡)": rule(MetaBoth),
    "GenericMeta, kept": Case(generic(look_ahead=Kept()), predicted=2.33),
    "GenericMeta, undone": Case(generic(), predicted=3.33),
    "Betty 0.1.1, kept": Case(
        lambda network, x: peers.betty(network, x, roll_back=False), predicted=2.67, short=True
    ),
    "Betty 0.1.1, undone": Case(
        lambda network, x: peers.betty(network, x, roll_back=True), predicted=3.67, short=True
    ),
    "double backward through the usual loss": Case(peers.double_backward, short=True),
    "Joint, Gumbel": rule(Joint, quantizer=GumbelQuantizer),
    "Joint, no quantization": rule(Joint, quantizer=lambda codes, dim: NoQuantizer(dim)),
    "Joint, +replace": rule(
        Joint, quantizer=lambda k, d: VectorQuantizer(k, d, replacement=ReplaceUnused())
    ),
    "Joint, +group (4)": rule(Joint, quantizer=lambda k, d: VectorQuantizer(k, d, groups=4)),
    "Joint, residual (2 stages)": rule(
        Joint,
        quantizer=lambda k, d: ResidualQuantizer([VectorQuantizer(k // 2, d) for _ in range(2)]),
    ),
    "Joint, Cosine": rule(Joint, quantizer=lambda k, d: VectorQuantizer(k, d, distance=Cosine())),
    "Joint, Rotation": rule(
        Joint, quantizer=lambda k, d: VectorQuantizer(k, d, estimator=Rotation())
    ),
    "Joint, Affine": rule(Joint, quantizer=lambda k, d: VectorQuantizer(k, d, codebook=Affine())),
    "Joint, LinearMap": rule(
        Joint, quantizer=lambda k, d: VectorQuantizer(k, d, codebook=LinearMap())
    ),
    "Joint, HyperNetwork": rule(
        Joint, quantizer=lambda k, d: VectorQuantizer(k, d, codebook=HyperNetwork())
    ),
}


@dataclass(frozen=True)
class Size:
    """Sizes of the VQ-VAE and of its batch."""

    width: int = 64
    dim: int = 64
    num_codes: int = 1024
    batch_size: int = 64
    side: int = 28
    channels: int = 1

    def network(self) -> VQNetwork:
        return vqvae(self.channels, num_codes=self.num_codes, dim=self.dim, width=self.width)

    def conditions(self) -> dict[str, Cell]:
        return {
            "width": self.width,
            "codes": f"{self.num_codes} of {self.dim}",
            "batch": f"{self.batch_size} of {self.channels}×{self.side}×{self.side}",
        }


DEMO, PAPER = Size(), Size(width=256, dim=512)


def step_costs(
    name: str,
    cases: Mapping[str, Case],
    network: Callable[[], VQNetwork],
    x: Tensor,
    *,
    rounds: int,
    conditions: Mapping[str, Cell],
) -> Table:
    """Time one step of every case on copies of the same network, taking turns.

    Args:
        name: Of the table.
        cases: The first one is the measure of the others.
        network: Makes the network.
        x: The batch.
        rounds: Turns.
        conditions: Sizes, for the table.
    """
    torch.manual_seed(0)
    plain = network().to(x.device)
    plain.initialize_codebook(x)
    steps: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    for label, case in cases.items():
        try:
            steps[label] = case.make(copy.deepcopy(plain), x)
        except peers.NotHere as reason:
            missing[label] = str(reason)
    rows = in_turns(steps, rounds=rounds, device=x.device.type)
    for row, label in zip(rows, steps, strict=True):
        row |= cases[label].columns(row["ratio"])
    return Table(
        name,
        "One step, relative to Joint on the same network and batch",
        {**conditions, "rounds": rounds},
        rows,
        [f"{label}: {reason}." for label, reason in missing.items()],
    )


def run(*, device: str, rounds: int | None, only: str) -> list[Table]:
    """The rules at the demo's and at the paper's width, and all other methods at the demo's."""
    tables = []
    for name, size, count, short in (
        ("step-demo", DEMO, 30, True),
        ("step-paper", PAPER, 5, True),
        ("step-methods", DEMO, 12, False),
    ):
        torch.manual_seed(0)
        x = torch.rand(size.batch_size, size.channels, size.side, size.side, device=device)
        wanted = [n for n, c in CASES.items() if only in n and c.short is short]
        if not wanted:
            continue
        tables.append(
            step_costs(
                name,
                {n: c for n, c in CASES.items() if n == "Joint" or n in wanted},
                size.network,
                x,
                rounds=rounds or count,
                conditions=size.conditions(),
            )
        )
    return tables

"""What one step of each method costs, relative to `Joint` on the same network and batch.

    python benchmarks/step_cost.py [--only Meta] [--width 64 --batch-size 64 --rounds 20]

The methods take turns, one step each, in one process; the ratio is that of the medians over the
rounds, and the spread the quartiles of the ratios within a round. What the project holds itself
to is in the last column.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import AdamW

from mqvae import (
    Affine,
    Alternated,
    Cosine,
    DirectOnly,
    Ema,
    Exact,
    FiniteDifference,
    ForwardMode,
    GumbelQuantizer,
    HyperNetwork,
    Joint,
    Kept,
    LeastRecentlyUsed,
    LinearMap,
    Meta,
    MetaBoth,
    MetaNetwork,
    NoQuantizer,
    Quantizer,
    ResidualQuantizer,
    Rotation,
    Synchronous,
    Undone,
    Unrolled,
    Update,
    VectorQuantizer,
    vqvae,
)
from mqvae.tasks import Reconstruction

OPTIMIZER_STEP = Undone(optimizer_step=True)
PRECONDITIONED = Undone(optimizer_step=True, preconditioned=True)
FORWARD = ForwardMode()


@dataclass(frozen=True)
class Case:
    """A rule with its arguments, the quantizer if it is not the plain one, and a limit."""

    rule: type[Update] = Meta
    arguments: dict[str, Any] = field(default_factory=dict)
    quantizer: Callable[[int, int], Quantizer] | None = None
    at_most: float | None = None


def meta(at_most: float | None = None, **arguments: Any) -> Case:
    return Case(Meta, arguments, at_most=at_most)


def quantizer(rule: type[Update] = Meta, **arguments: Any) -> Case:
    return Case(rule, quantizer=lambda codes, dim: VectorQuantizer(codes, dim, **arguments))


CASES = {
    "Joint": Case(Joint),
    "Ema": Case(Ema),
    "Alternated": Case(Alternated),
    "Synchronous": Case(Synchronous),
    "Alternated(nu=1)": Case(Alternated, {"nu": 1.0}),
    "Meta(DirectOnly), kept": meta(hypergradient=DirectOnly(), look_ahead=Kept()),
    "Meta(DirectOnly), undone": meta(hypergradient=DirectOnly()),
    "Meta(FiniteDifference), kept": meta(2.4, look_ahead=Kept()),
    "Meta(FiniteDifference), undone": meta(3.3),
    "Meta(FiniteDifference), undone, AdamW's step": meta(look_ahead=OPTIMIZER_STEP),
    "Meta(FiniteDifference), preconditioned": meta(look_ahead=PRECONDITIONED),
    "Meta(FiniteDifference(ForwardMode)), undone": meta(hypergradient=FiniteDifference(FORWARD)),
    "Meta(Exact), kept": meta(2.9, hypergradient=Exact(), look_ahead=Kept()),
    "Meta(Exact), undone": meta(3.8, hypergradient=Exact()),
    "Meta(Exact(ForwardMode)), kept": meta(
        hypergradient=Exact(FORWARD, FORWARD), look_ahead=Kept()
    ),
    "Meta(Exact(ForwardMode)), undone": meta(hypergradient=Exact(FORWARD, FORWARD)),
    "Meta(Unrolled(1))": meta(hypergradient=Unrolled(1)),
    "Meta(Unrolled(2))": meta(hypergradient=Unrolled(2)),
    "MetaNetwork (†)": Case(MetaNetwork),
    "MetaBoth (‡)": Case(MetaBoth),
    "Joint, Gumbel": Case(Joint, quantizer=GumbelQuantizer),
    "Joint, no quantization": Case(Joint, quantizer=lambda codes, dim: NoQuantizer(dim)),
    "Joint, +replace": quantizer(Joint, replacement=LeastRecentlyUsed()),
    "Joint, +group (4)": quantizer(Joint, groups=4),
    "Joint, residual (2 stages)": Case(
        Joint,
        quantizer=lambda codes, dim: ResidualQuantizer(
            [VectorQuantizer(codes // 2, dim) for _ in range(2)]
        ),
    ),
    "Joint, Cosine": quantizer(Joint, distance=Cosine()),
    "Joint, Rotation": quantizer(Joint, estimator=Rotation()),
    "Joint, Affine": quantizer(Joint, codebook=Affine()),
    "Joint, LinearMap": quantizer(Joint, codebook=LinearMap()),
    "Joint, HyperNetwork": quantizer(Joint, codebook=HyperNetwork()),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--num-codes", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="rules whose name holds this, beside Joint")
    options = parser.parse_args()

    torch.manual_seed(0)
    x = torch.rand(options.batch_size, 1, options.side, options.side, device=options.device)
    plain = vqvae(1, num_codes=options.num_codes, dim=options.dim, width=options.width)
    plain.to(options.device).initialize_codebook(x)
    cases = {n: c for n, c in CASES.items() if n == "Joint" or options.only in n}
    updates: dict[str, Update] = {}
    for name, case in cases.items():
        own = copy.deepcopy(plain)
        if case.quantizer is not None:
            own.quantizer = case.quantizer(options.num_codes, options.dim).to(options.device)
            own.initialize_codebook(x)
        optimizers: dict[str, Any] = {
            "lower": AdamW(own.network_parameters(), lr=3e-4, weight_decay=1e-4)
        }
        codebook = list(own.codebook_parameters())
        if case.rule is not Ema:
            upper = AdamW(codebook, lr=6e-2, weight_decay=1e-4) if codebook else None
            optimizers["upper"] = upper
        updates[name] = case.rule(own, Reconstruction().loss, **optimizers, **case.arguments)

    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for round_ in range(options.rounds + 2):
        for name, update in updates.items():
            began = time.perf_counter()
            update.step(x, x)
            if options.device != "cpu":
                torch.cuda.synchronize()
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - began)

    where = f"{torch.get_num_threads()} threads" if options.device == "cpu" else options.device
    print(
        f"VQ-VAE width {options.width}, {options.num_codes} codes of {options.dim}, batch "
        f"{options.batch_size} of {options.side}×{options.side}, {options.rounds} rounds, "
        f"{where}, torch {torch.__version__}\n"
    )
    print(f"{'method':<46}{'ms':>8}{'ratio':>8}{'quartiles':>14}{'at most':>9}")
    joint = statistics.median(seconds["Joint"])
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds["Joint"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        limit = cases[name].at_most
        middle = statistics.median(taken)
        print(
            f"{name:<46}{middle * 1e3:>8.1f}{middle / joint:>8.2f}{low:>8.2f}–{high:.2f}"
            f"{limit or '':>9}"
        )


if __name__ == "__main__":
    main()

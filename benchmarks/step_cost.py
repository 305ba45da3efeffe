"""What one step of each rule costs, relative to `Joint` on the same network and batch.

    python benchmarks/step_cost.py [--width 64 --dim 64 --batch-size 64 --rounds 20]

The rules take turns, one step each, in one process; the ratio is that of the medians over the
rounds, and the spread the quartiles of the ratios within a round. Targets in the last column.
"""

import argparse
import copy
import statistics
import time

import torch
from torch.optim import AdamW

from mqvae import (
    Alternated,
    DirectOnly,
    Exact,
    FiniteDifference,
    ForwardMode,
    Joint,
    Kept,
    Meta,
    Undone,
    Update,
    vqvae,
)
from mqvae.tasks import Reconstruction

OPTIMIZER_STEP = Undone(optimizer_step=True)
FORWARD = ForwardMode()

RULES = {
    "Joint": (Joint, {}, None),
    "Alternated": (Alternated, {}, None),
    "DirectOnly, kept": (Meta, {"hypergradient": DirectOnly(), "look_ahead": Kept()}, None),
    "DirectOnly, undone": (Meta, {"hypergradient": DirectOnly()}, None),
    "FiniteDifference, kept": (Meta, {"look_ahead": Kept()}, 2.4),
    "FiniteDifference, undone": (Meta, {}, 3.3),
    "FiniteDifference, undone, AdamW's step": (Meta, {"look_ahead": OPTIMIZER_STEP}, None),
    "FiniteDifference(ForwardMode), undone": (
        Meta,
        {"hypergradient": FiniteDifference(FORWARD)},
        None,
    ),
    "Exact, kept": (Meta, {"hypergradient": Exact(), "look_ahead": Kept()}, 2.9),
    "Exact, undone": (Meta, {"hypergradient": Exact()}, 3.8),
    "Exact(ForwardMode), kept": (
        Meta,
        {"hypergradient": Exact(FORWARD, FORWARD), "look_ahead": Kept()},
        None,
    ),
    "Exact(ForwardMode), undone": (Meta, {"hypergradient": Exact(FORWARD, FORWARD)}, None),
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
    options = parser.parse_args()

    torch.manual_seed(0)
    x = torch.rand(options.batch_size, 1, options.side, options.side, device=options.device)
    network = vqvae(1, num_codes=options.num_codes, dim=options.dim, width=options.width)
    network.to(options.device).initialize_codebook(x)
    updates: dict[str, Update] = {}
    for name, (rule, arguments, _) in RULES.items():
        own = copy.deepcopy(network)
        updates[name] = rule(
            own,
            Reconstruction().loss,
            lower=AdamW(own.network_parameters(), lr=3e-4, weight_decay=1e-4),
            upper=AdamW(own.codebook_parameters(), lr=6e-2, weight_decay=1e-4),
            **arguments,
        )

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
    print(f"{'rule':<40}{'ms':>8}{'ratio':>8}{'quartiles':>14}{'at most':>9}")
    joint = statistics.median(seconds["Joint"])
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds["Joint"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        limit = RULES[name][2]
        middle = statistics.median(taken)
        print(
            f"{name:<40}{middle * 1e3:>8.1f}{middle / joint:>8.2f}{low:>8.2f}–{high:.2f}"
            f"{limit or '':>9}"
        )


if __name__ == "__main__":
    main()

"""Ways to make a step cheaper that were tried: optimizers, memory format, torch.compile.

    python -m benchmarks.step_variants [--rounds 15] [--width 64 --dim 64]

Each is timed in turns with the plain step of the same rule. What came out is in notes.md.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW

from benchmarks.step import Size
from benchmarks.timing import alternate
from mqvae import Amortized, Joint, Kept, Meta, Update
from mqvae.tasks import Reconstruction

RULES: dict[str, tuple[type[Update], dict[str, Any]]] = {
    "Joint": (Joint, {}),
    "Meta(Amortized), kept": (Meta, {"hypergradient": Amortized(), "look_ahead": Kept()}),
    "Meta(FiniteDifference), kept": (Meta, {"look_ahead": Kept()}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    size = Size(width=options.width, dim=options.dim)
    x = torch.rand(size.batch_size, 1, size.side, size.side)
    plain = size.network()
    plain.initialize_codebook(x)

    def step(
        rule: str, *, channels_last: bool = False, compiled: bool = False, **adamw: bool
    ) -> Callable[[], Any]:
        kind, arguments = RULES[rule]
        network = copy.deepcopy(plain)
        batch = x
        if channels_last:
            network.to(memory_format=torch.channels_last)
            batch = x.to(memory_format=torch.channels_last)
        if compiled:
            network.encoder = torch.compile(network.encoder)
            network.decoder = torch.compile(network.decoder)
        update = kind(
            network,
            Reconstruction(),
            lower=AdamW(network.network_parameters(), lr=3e-4, **adamw),
            upper=AdamW(network.codebook_parameters(), lr=6e-2, **adamw),
            **arguments,
        )
        if compiled:
            began = time.perf_counter()
            update.step(batch, batch)
            print(f"{rule}: compiled in {time.perf_counter() - began:.1f} s", flush=True)
        return lambda: update.step(batch, batch)

    print(f"width {size.width}, codes of {size.dim}, {torch.get_num_threads()} threads\n")
    print(f"{'rule':<32}{'variant':<18}{'ms':>8}{'ratio':>8}{'quartiles':>14}")
    for rule in RULES:
        contestants = {
            "plain": step(rule),
            "foreach": step(rule, foreach=True),
            "fused": step(rule, fused=True),
            "channels last": step(rule, channels_last=True),
        }
        if not options.no_compile:
            contestants["torch.compile"] = step(rule, compiled=True)
        for name, timing in alternate(contestants, rounds=options.rounds).items():
            print(
                f"{rule:<32}{name:<18}{timing.seconds * 1e3:>8.1f}{timing.ratio:>8.3f}"
                f"{timing.low:>8.2f}–{timing.high:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

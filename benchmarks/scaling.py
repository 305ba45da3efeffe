"""How times grow: the quantizer with N, K and D, a step with batch, image size and width."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.quantizer import evaluation, inputs, our_quantizer, product, training
from benchmarks.step import CASES, DEMO, step_costs
from benchmarks.table import Cell, Table
from benchmarks.timing import alternate

BASE = {"N": 4096, "K": 1024, "D": 64}
SWEEPS: Mapping[str, tuple[int, ...]] = {
    "N": (256, 1024, 4096, 16384, 65536),
    "K": (64, 256, 1024, 4096, 16384, 65536),
    "D": (4, 16, 64, 256, 1024),
}
STEP_SWEEPS: Mapping[str, tuple[int, ...]] = {
    "batch_size": (16, 64, 256),
    "side": (16, 28, 56),
    "width": (32, 64, 128),
}
STEP_NAMES = {"batch_size": "images in the batch", "side": "side of an image", "width": "width"}
RULES = ("Joint", "Meta(Amortized), kept", "Meta(FiniteDifference), undone")


def run(*, device: str, rounds: int | None) -> list[Table]:
    """One table for the quantizer, one for steps."""
    quantizer: list[dict[str, Cell]] = []
    for swept, values in SWEEPS.items():
        for value in values:
            n, k, d = {**BASE, swept: value}.values()
            z_e, table = inputs(n, k, d, device)
            module, quantize, codebook = our_quantizer(table)
            contestants: dict[str, Callable[[], Any]] = {
                "matrix product": product(z_e, table),
                "training": training(quantize, z_e, codebook),
                "eval": evaluation(module, quantize, z_e),
            }
            timings = alternate(contestants, rounds=rounds or 7, device=device)
            quantizer.append(
                {
                    "swept": swept,
                    "value": value,
                    **{f"{name}, ms": t.seconds * 1e3 for name, t in timings.items()},
                }
            )
    steps: list[dict[str, Cell]] = []
    for swept, values in STEP_SWEEPS.items():
        for value in values:
            size = replace(DEMO, **{swept: value})
            torch.manual_seed(0)
            x = torch.rand(size.batch_size, size.channels, size.side, size.side, device=device)
            measured = step_costs(
                "",
                {rule: CASES[rule] for rule in RULES},
                size.network,
                x,
                rounds=rounds or 7,
                conditions={},
            )
            steps.append(
                {
                    "swept": STEP_NAMES[swept],
                    "value": value,
                    **{f"{row['step']}, ms": row["ms"] for row in measured.rows},
                }
            )
    base = {name: str(value) for name, value in BASE.items()}
    return [
        Table("scaling-quantizer", "The quantizer as one size grows", base, quantizer),
        Table("scaling-step", "A step as one size grows", DEMO.conditions(), steps),
    ]

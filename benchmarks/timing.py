"""Times that can be compared: contestants take turns, medians, spread shown."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.table import Cell
from mqvae.errors import MqvaeError

WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant, and how it compares with the first.

    Attributes:
        seconds: Median.
        ratio: Median over the first contestant's median.
        low: Lower quartile of the ratios within a round.
        high: Upper quartile of the ratios within a round.
    """

    seconds: float
    ratio: float
    low: float
    high: float

    def columns(self) -> dict[str, float]:
        return {
            "ms": self.seconds * 1e3,
            "ratio": self.ratio,
            "lower quartile": self.low,
            "upper quartile": self.high,
        }


def alternate(
    contestants: Mapping[str, Callable[[], Any]], *, rounds: int, device: str = "cpu"
) -> dict[str, Timing]:
    """Time contestants that take turns in one process; each is compared with the first.

    The order within a round is drawn anew: who comes after somebody that gives back much memory
    pays for getting it again.

    Args:
        contestants: What is timed, by name; the first one is the measure of the others.
        rounds: Turns that count, after two that do not.
        device: Where they work; times end when it is done.
    """
    if rounds < 2:
        raise MqvaeError(f"rounds must be 2 or more, got {rounds}: one has no spread.")
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    order, draw = list(contestants), random.Random(0)
    was_on = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is there already is not looked through after every round
    try:
        for round_ in range(WARM_UP + rounds):
            draw.shuffle(order)
            for name in order:
                began = time.perf_counter()
                contestants[name]()
                if device != "cpu":
                    torch.accelerator.synchronize()
                if round_ >= WARM_UP:
                    taken[name].append(time.perf_counter() - began)
            gc.collect()
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()
    return compared(taken)


def in_turns(
    steps: Mapping[str, Callable[[], Any]], *, rounds: int, device: str
) -> list[dict[str, Cell]]:
    """The rows of a table of steps, timed as `alternate` does."""
    timings = alternate(steps, rounds=rounds, device=device)
    return [{"step": label, **timing.columns()} for label, timing in timings.items()]


def compared(taken: dict[str, list[float]]) -> dict[str, Timing]:
    """Medians and ratios of seconds, one list per contestant, of as many rounds each."""
    first = next(iter(taken.values()))
    timings = {}
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(seconds, first, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(seconds)
        timings[name] = Timing(median, median / statistics.median(first), low, high)
    return timings

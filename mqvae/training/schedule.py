"""Schedules: of the learning rate, and of the share of samples that are quantized."""

import math
from collections.abc import Callable
from dataclasses import dataclass


def warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate after i steps: linear over the warm-up, then a cosine to 0."""
    return learning_rate(steps, warmup, "cosine")


def learning_rate(steps: int, warmup: float, schedule: str) -> Callable[[int], float]:
    """Factor of the learning rate after i steps: linear over the warm-up, a share of them, and then
    as a schedule says: "cosine" or "linear" falls to 0, "constant" stays.
    """
    rise = round(steps * warmup)

    def factor(i: int) -> float:
        if i < rise:
            return (i + 1) / rise
        gone = min(1.0, (i - rise) / max(1, steps - rise))
        if schedule == "constant":
            return 1.0
        return 1 - gone if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))

    return factor


@dataclass(frozen=True)
class Onset:
    """Schedule of the quantization warm-up."""

    first: int  # training steps without any
    whole: int  # training steps until all samples are quantized

    @classmethod
    def of(cls, steps: int, unquantized: float, gradual: float) -> "Onset":
        """From shares of the training steps."""
        first = round(steps * unquantized)
        return cls(first, first + round(steps * gradual))

    def unquantized(self, i: int) -> float:
        """Share of the samples that are not quantized, after i steps."""
        if i < self.first:
            return 1.0
        return max(0.0, (self.whole - i) / max(1, self.whole - self.first))

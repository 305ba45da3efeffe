"""The learning rate over a run."""

import math
from collections.abc import Callable


def warmup_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate after i steps: linear over the warm-up, then a cosine to 0."""
    rise = round(steps * warmup)

    def factor(i: int) -> float:
        if i < rise:
            return (i + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (i - rise) / max(1, steps - rise))))

    return factor

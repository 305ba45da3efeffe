"""The EMA of the weights."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mqvae.core.network import VQNetwork

Weights = tuple[Tensor, ...] | list[Tensor]


def averaged(average: AveragedModel) -> VQNetwork:
    """The network whose weights are the EMA."""
    assert isinstance(average.module, VQNetwork)
    return average.module


def towards(decay: float) -> Callable[[Weights, Weights, Tensor | int], None]:
    """One step of an EMA whose decay after n steps is min(decay, (1 + n) / (10 + n)).

    So TensorFlow's `ExponentialMovingAverage` with `num_updates`: the first weights, which know
    nothing, weigh little from the first steps on.
    """

    @torch.no_grad()
    def step(average: Weights, now: Weights, done: Tensor | int) -> None:
        done = int(done)
        kept = min(decay, (1 + done) / (10 + done))
        torch._foreach_lerp_(average, now, 1 - kept)

    return step

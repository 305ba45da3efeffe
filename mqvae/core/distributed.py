"""The mean over processes, asked for at the time of the call."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


T = TypeVar("T", Tensor, Tensor | None)


@torch.no_grad()
def mean_across_processes(tensors: Sequence[T]) -> list[T]:
    """The tensors, each replaced by its mean over all processes; one reduction for all.

    Every process must pass tensors of the same shapes. None stays None.
    """
    present = [t for t in tensors if t is not None]
    if world_size() == 1 or not present:
        return list(tensors)
    flat = torch.cat([t.detach().flatten().to(present[0].dtype) for t in present])
    dist.all_reduce(flat)
    parts = iter((flat / world_size()).split([t.numel() for t in present]))
    return [None if t is None else next(parts).view_as(t).to(t.dtype) for t in tensors]

"""The mean over processes, asked for at the time of the call."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mqvae.errors import MqvaeError

if TYPE_CHECKING:
    ProcessGroup: TypeAlias = dist.ProcessGroup
else:  # torch may be built without them
    ProcessGroup = Any

_group: ContextVar[ProcessGroup | None] = ContextVar("process_group", default=None)


@contextmanager
def within(group: ProcessGroup | None) -> Iterator[None]:
    """Inside, the processes that train together are those of a group; None changes nothing."""
    if group is None:
        yield
        return
    if dist.get_rank(group) < 0:
        raise MqvaeError(
            f"process {dist.get_rank()} is not in process_group, which has "
            f"{dist.get_process_group_ranks(group)}: name the group that this process trains in, "
            "or make the step in the others alone."
        )
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    there = dist.is_available() and dist.is_initialized()
    return dist.get_world_size(_group.get()) if there else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; known before the others are met."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def process_rank() -> int:
    """Which of them this one is; 0 without torch.distributed."""
    return dist.get_rank(_group.get()) if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def agree(modules: Iterable[object]) -> None:
    """Give parameters and buffers of modules the first process's values; pass over what is none.

    Processes that were seeded apart would train networks of their own otherwise.
    """
    if world_size() > 1:
        for module in modules:
            if isinstance(module, nn.Module):
                for tensor in [*module.parameters(), *module.buffers()]:
                    tensor.copy_(from_first_process(tensor))


T = TypeVar("T", Tensor, Tensor | None)


@torch.no_grad()
def mean_across_processes(tensors: Sequence[T]) -> list[T]:
    """The mean of each over all processes, by one reduction; None stays None, shapes must agree."""
    return _reduced(tensors, world_size())


@torch.no_grad()
def sums_across_processes(tensors: Sequence[T]) -> list[T]:
    """The tensors, each replaced by its sum over all processes, as `mean_across_processes`."""
    return _reduced(tensors, None)


def _reduced(tensors: Sequence[T], divisor: int | None) -> list[T]:
    present = [t for t in tensors if t is not None]
    if world_size() == 1 or not present:
        return list(tensors)
    dtype = reduce(torch.promote_types, [t.dtype for t in present])
    flat = torch.cat([t.detach().flatten().to(dtype) for t in present])
    dist.all_reduce(flat, group=_group.get())
    flat = flat if divisor is None else flat / divisor
    parts = iter(flat.split([t.numel() for t in present]))
    return [None if t is None else next(parts).view_as(t).to(t.dtype) for t in tensors]


def mean_with_graph(tensors: Sequence[T]) -> list[T]:
    """`mean_across_processes` that gradients pass, each process's own part unchanged.

    With `shared`, reverse mode goes through what all processes compute together: of a scalar that
    all have, the gradient by what all have alike is the mean of what each finds.
    """
    present = [t for t in tensors if t is not None]
    if world_size() == 1 or not present:
        return list(tensors)
    found = iter(_Mean.apply(*present))
    return [t if t is None else next(found) for t in tensors]


def shared(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that all processes have alike, on their way to what each does with its own batch.

    Values are unchanged; gradients become their mean over processes.
    """
    trained = [t for t in tensors if t.requires_grad]
    if world_size() == 1 or not trained:
        return list(tensors)
    found = iter(_Shared.apply(*trained))
    return [next(found) if t.requires_grad else t for t in tensors]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(mean_across_processes(tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = _group.get()  # a GPU's gradients are found in another thread
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        with within(ctx.group):
            return tuple(mean_across_processes(gradients))


@torch.no_grad()
def sum_across_processes(tensor: Tensor) -> Tensor:
    """The tensor's sum over all processes."""
    return sums_across_processes([tensor])[0]


@torch.no_grad()
def alone(tensor: Tensor) -> Tensor:
    """The tensor itself: what `sum_across_processes` is to a process that works alone."""
    return tensor


def from_first_process(tensor: Tensor) -> Tensor:
    """The tensor as the first process has it; shapes must agree."""
    if world_size() > 1:
        tensor = tensor.contiguous().clone()
        dist.broadcast(tensor, group_src=0, group=_group.get())
    return tensor


@torch.no_grad()
def from_all_processes(tensor: Tensor) -> Tensor:
    """The tensors of all processes below each other; their lengths may differ."""
    if world_size() == 1:
        return tensor
    length = torch.tensor([len(tensor)], device=tensor.device)
    lengths = [torch.zeros_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length, group=_group.get())
    longest = max(int(n) for n in lengths)
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded, group=_group.get())
    return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])

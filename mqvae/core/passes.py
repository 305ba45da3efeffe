"""Passes through a network that leave no trace, and the random state they share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from mqvae.errors import MqvaeError


class RandomState:
    """The global random state of the CPU and of one device, as it was when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, random numbers are those drawn since; outside, nothing has been drawn."""
        now = RandomState(self.device)
        self.restore()
        try:
            yield
        finally:
            now.restore()


def call(module: nn.Module, parameters: Sequence[Tensor] | None, *inputs: Any) -> Tensor:
    """`module(*inputs)` at other parameters, its buffers (batch-norm statistics) unchanged.

    Where these are in full precision and its own in half, so are buffers and inputs.
    """
    tensors: dict[str, Tensor] = {name: b.clone() for name, b in module.named_buffers()}
    if parameters is not None:
        own = dict(module.named_parameters())
        pairs = zip(own.values(), parameters, strict=True)
        if any(p.dtype.itemsize > o.dtype.itemsize for o, p in pairs):
            tensors = {name: full(b) for name, b in tensors.items()}
            inputs = tree_map_only(Tensor, full, inputs)
        tensors.update(zip(own, parameters, strict=True))
    return functional_call(module, tensors, inputs)


def traceless(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`, as a module with its buffers unchanged."""
    if isinstance(function, nn.Module) and next(function.buffers(), None) is not None:
        return call(function, None, *inputs)
    return function(*inputs)


def in_parts(function: Callable[[Any], Tensor], x: Any, parts: int) -> Tensor:
    """`function(x)` part by part, each part's graph made again when its gradient is wanted."""
    if parts == 1:
        return function(x)
    if not isinstance(x, Tensor):
        raise MqvaeError(
            f"parts={parts} cuts a tensor along its first axis, got a {type(x).__name__}: "
            "take smaller batches and update.accumulate instead."
        )
    if not torch.is_grad_enabled():
        return torch.cat([function(part) for part in x.chunk(parts)])
    return torch.cat([checkpoint(function, part, use_reentrant=False) for part in x.chunk(parts)])


def device_of(inputs: Any) -> torch.device:
    """Where the first tensor of nested inputs is; the CPU without one."""
    found = (leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
    return next(found, torch.device("cpu"))


def full(tensor: Tensor) -> Tensor:
    """In single precision at least; what is no floating-point number as it is."""
    half = tensor.is_floating_point() and tensor.dtype.itemsize < 4
    return tensor.float() if half else tensor


def finite_rows(values: Tensor) -> Tensor:
    """Values (K, d), zero in each row that holds a number which is not finite."""
    return values.where(torch.isfinite(values).all(1, keepdim=True), 0)


def without_autocast(device: torch.device | str) -> AbstractContextManager[Any]:
    """Inside, nothing is cast to half precision; of a device that casts nothing it does nothing."""
    kind = device if isinstance(device, str) else device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def casting(device: torch.device) -> bool:
    """Whether autocast is on for a device."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


@contextmanager
def fresh_casts() -> Iterator[None]:
    """Inside, autocast casts weights anew at every pass; afterwards none of its casts are left.

    It would keep the cast of a weight until its outermost region ends, and a pass after a step
    would be made with the weights before it.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        torch.clear_autocast_cache()


Buffers = list[dict[str, Tensor | None]]
"""The buffers of each of some modules."""


class Snapshot:
    """Buffers of modules, and the random state of CPU and device, as a step finds them."""

    def __init__(self, modules: Sequence[object], device: torch.device) -> None:
        # What is no module is passed over.
        of = [m.modules() for m in modules if isinstance(m, nn.Module)]
        self._modules = list(dict.fromkeys(part for parts in of for part in parts))
        self._device = device
        self.retake()

    def retake(self) -> None:
        """Record the current state as the one to return to."""
        self._random = RandomState(self._device)
        self._registered = [dict(m._buffers) for m in self._modules]
        self._buffers = _clones(self._registered)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside all is as recorded; outside, what happens inside has not happened."""
        now = [m._buffers for m in self._modules]
        # Whole dictionaries: a pass may register a buffer anew.
        self._register(_clones(self._buffers))
        try:
            with self._random.replayed():
                yield
        finally:
            self._register(now)

    @contextmanager
    def put_back_if_raised(self, tensors: Sequence[Tensor] = ()) -> Iterator[None]:
        """If the block raises all is as recorded, and `tensors` are as they are now."""
        before = [t.detach().clone() for t in tensors]
        try:
            yield
        except BaseException:
            self._register(self._registered)
            self._random.restore()
            now = [*_tensors(self._registered), *tensors]
            with torch.no_grad():
                for tensor, value in zip(now, [*_tensors(self._buffers), *before], strict=True):
                    tensor.copy_(value)
            raise

    def _register(self, buffers: Buffers) -> None:
        for module, own in zip(self._modules, buffers, strict=True):
            module._buffers = own


def _tensors(buffers: Buffers) -> list[Tensor]:
    return [b for own in buffers for b in own.values() if b is not None]


def _clones(buffers: Buffers) -> Buffers:
    """The buffers of modules, copied; what two of them share they share again."""
    copies = {id(b): b.detach().clone() for b in _tensors(buffers)}
    return [
        {name: None if b is None else copies[id(b)] for name, b in own.items()} for own in buffers
    ]

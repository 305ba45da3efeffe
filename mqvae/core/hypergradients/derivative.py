"""Derivatives of a function along a tangent, by differences or forward mode."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mqvae.core.bilevel import moved
from mqvae.core.distributed import sum_across_processes, world_size
from mqvae.core.optimizer import Gradients
from mqvae.core.passes import casting, full, without_autocast
from mqvae.errors import MqvaeError

Function = Callable[[list[Tensor]], Tensor]


class Derivative(ABC):
    """The derivative of f(p) along a tangent: d/dτ f(p + τ·tangent) at τ = 0.

    Called with f, the point p, the tangent (None where p does not move), f(p) if it is known, and
    the tangent's length, which is that of all processes together where each has a part of it.
    """

    @abstractmethod
    def __call__(
        self,
        f: Function,
        primals: Sequence[Tensor],
        tangents: Gradients,
        centre: Tensor | None,
        length: Tensor,
    ) -> Tensor: ...


@dataclass(frozen=True)
class _Difference(Derivative):
    """A difference over a step of ε = radius / ‖tangent‖, as long whatever the tangent's scale."""

    radius: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise MqvaeError(f"radius must be above 0 and finite, got {self.radius}.")

    def __call__(
        self,
        f: Function,
        primals: Sequence[Tensor],
        tangents: Gradients,
        centre: Tensor | None,
        length: Tensor,
    ) -> Tensor:
        epsilon = self.radius / length.clamp(min=torch.finfo(length.dtype).tiny ** 0.5)
        plus = f(moved(primals, tangents, epsilon))
        if isinstance(self, Central):
            return (plus - f(moved(primals, tangents, -epsilon))) / (2 * epsilon)
        return (plus - (f(list(primals)) if centre is None else centre)) / epsilon


@dataclass(frozen=True)
class OneSided(_Difference):
    """(f(p + εt) − f(p)) / ε with ε = radius / ‖t‖: one pass where f(p) is known; error O(ε).

    Args:
        radius: Length of the step, in units of the parameters.

    Raises:
        ValueError: if `radius` is not above 0 and finite.
    """


@dataclass(frozen=True)
class Central(_Difference):
    """(f(p + εt) − f(p − εt)) / 2ε with ε = radius / ‖t‖: two passes, error O(ε²).

    Args:
        radius: Length of the step, in units of the parameters.

    Raises:
        ValueError: if `radius` is not above 0 and finite.
    """


@dataclass(frozen=True)
class ForwardMode(Derivative):
    """Forward-mode differentiation: exact, about two passes.

    Every operation of the network and, for `Exact`, of the loss must support it. `mse_loss` of
    some torch versions does not: write the square out, as `mqvae.tasks` does.
    """

    def __call__(
        self,
        f: Function,
        primals: Sequence[Tensor],
        tangents: Gradients,
        centre: Tensor | None,
        length: Tensor,
    ) -> Tensor:
        with warnings.catch_warnings(), forward_ad.dual_level():
            # The first use of forward mode makes torch script some formulas, and warn of it.
            warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
            point = [
                p.detach() if t is None else forward_ad.make_dual(p.detach(), t)
                for p, t in zip(primals, tangents, strict=True)
            ]
            primal, tangent = forward_ad.unpack_dual(f(point))
        return torch.zeros_like(primal) if tangent is None else tangent


def along(
    derivative: Derivative,
    f: Function,
    primals: Sequence[Tensor],
    tangents: Gradients,
    centre: Tensor | None,
    *,
    own: int = 0,
    widen: bool = True,
) -> Tensor:
    """The derivative in full precision: half precision cannot tell two near passes apart.

    Weights in half precision are displaced in single precision: a step between two of their
    numbers would be rounded away; `widen` says whether f takes such a point. The first `own`
    tangents are each process's own part of one of all.
    """
    device = primals[0].device
    half = widen and any(p.is_floating_point() and p.dtype.itemsize < 4 for p in primals)
    if half:
        primals = [full(p) for p in primals]
        tangents = [None if t is None else full(t) for t in tangents]
    if half or casting(device):
        centre = None  # known in half precision only
    with without_autocast(device):
        if all(t is None for t in tangents):
            return torch.zeros_like(f(list(primals)) if centre is None else centre)
        norms = [t.norm() for t in tangents if t is not None]
        if own and world_size() > 1 and not isinstance(derivative, ForwardMode):
            parts = torch.stack(norms[:own]).square().sum()
            norms[:own] = [sum_across_processes(parts).sqrt()]
        return derivative(f, primals, tangents, centre, torch.stack(norms).norm())

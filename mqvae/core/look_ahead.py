"""The lower level's answer to C: the virtual step, undone or kept."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, LowerPass, moved, scaled
from mqvae.core.optimizer import Gradients, apply, clipped
from mqvae.errors import MqvaeError


@dataclass(frozen=True)
class Ahead:
    """The result of a look-ahead, from which a hypergradient is computed."""

    lower: Batch  # on which φ and θ step
    upper: Batch  # on which C is judged; the paper takes `lower` itself
    here: LowerPass  # on `lower` at (φ, θ, C)
    phi: list[Tensor]  # φ' = φ − ξ g_φ, where the virtual lower step leads
    theta: list[Tensor]  # θ' = θ − ξ g_θ
    xi: float  # ξ, size of that step
    slopes: Gradients | None = None
    """Derivative of that step by [*g_φ, *g_θ], number by number; None for descent, whose
    derivative is ξ and is applied by the rules."""

    def through_step(self, v_phi: Gradients, v_theta: Gradients) -> tuple[Gradients, Gradients]:
        """v along the virtual step: v itself for descent, preconditioned for AdamW."""
        found = scaled([*v_phi, *v_theta], self.slopes)
        return found[: len(v_phi)], found[len(v_phi) :]


class LookAhead(ABC):
    """Whether the virtual lower step stays: `Undone` or `Kept`."""

    kept: ClassVar[bool]
    """Whether the virtual step is the real one."""

    preconditioned: bool
    """Whether it is differentiated as AdamW takes it."""

    @property
    def optimizer_step(self) -> bool:
        """Whether the virtual step is the lower optimizer's, instead of plain descent."""
        return True

    def check(self, lower: Optimizer, xi: float) -> None:
        """Refuse, by a ValueError, an optimizer whose step cannot be differentiated, and ξ = 0
        where there is a step.
        """
        amsgrad = any(group.get("amsgrad") for group in lower.param_groups)
        adam = isinstance(lower, torch.optim.Adam | torch.optim.AdamW) and not amsgrad
        if self.preconditioned and not adam:
            raise MqvaeError(
                "preconditioned=True needs Adam or AdamW without amsgrad as the lower optimizer, "
                f"got {type(lower).__name__}."
            )
        if xi == 0 and self.optimizer_step:
            raise MqvaeError(
                f"xi=0 is a virtual step of no length, but {self} looks ahead by the optimizer's "
                "own step, whatever xi is: take look_ahead=Undone(), or Alternated, which is "
                "Algorithm 1 at xi=0."
            )

    def ahead(
        self,
        optimizer: Optimizer,
        lower: Batch,
        upper: Batch,
        here: LowerPass,
        xi: float,
        max_norm: float | None = None,
    ) -> Ahead:
        """Take the virtual step from a pass along its gradients."""
        cut = len(here.phi)
        before, after, slopes = self.answer(
            optimizer, [*here.phi, *here.theta], [*here.g_phi, *here.g_theta], xi, max_norm
        )
        here = replace(here, phi=before[:cut], theta=before[cut:])
        return Ahead(lower, upper, here, after[:cut], after[cut:], xi, slopes)

    def answer(
        self,
        optimizer: Optimizer,
        weights: Sequence[Tensor],
        gradients: Gradients,
        xi: float,
        max_norm: float | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Gradients | None]:
        """Take the virtual step of the lower level's optimizer from weights along gradients.

        Returns:
            The weights where the gradients were taken, which stay what they are; those after the
            step; and `Ahead.slopes`.
        """
        if max_norm is not None and self.optimizer_step:
            gradients = clipped(gradients, max_norm)
        slopes = adam_slopes(optimizer, weights, gradients) if self.preconditioned else None
        return *self._take(optimizer, list(weights), gradients, xi), slopes

    @abstractmethod
    def _take(
        self, lower: Optimizer, weights: list[Tensor], gradients: Gradients, xi: float
    ) -> tuple[list[Tensor], list[Tensor]]: ...


@dataclass(frozen=True)
class Undone(LookAhead):
    """The look-ahead is undone: φ and θ step from where they were, with the new C (Algorithm 1).

    Args:
        optimizer_step: Look ahead by the step the lower optimizer would take instead of by plain
            descent, φ − ξ g_φ; its state is put back as well.
        preconditioned: Differentiate that step as AdamW takes it: v̂ = lr · v / (√s + eps) with s
            the second moment, instead of as if it were descent. Needs `optimizer_step`.

    Raises:
        ValueError: if `preconditioned` without `optimizer_step`.
    """

    kept = False
    optimizer_step: bool = False
    preconditioned: bool = False

    def __post_init__(self) -> None:
        if self.preconditioned and not self.optimizer_step:
            raise MqvaeError(
                "preconditioned=True differentiates the optimizer's own step: it needs "
                "optimizer_step=True; plain descent has no second moment."
            )

    def _take(
        self, lower: Optimizer, weights: list[Tensor], gradients: Gradients, xi: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        if self.optimizer_step:
            return weights, preview(lower, weights, gradients)
        return weights, moved(weights, gradients, -xi)


@dataclass(frozen=True)
class Kept(LookAhead):
    """The look-ahead is the lower optimizer's real step and stays; C answers to it.

    Args:
        preconditioned: Differentiate the step as AdamW takes it, as in `Undone`.
    """

    kept = True
    preconditioned: bool = False

    def _take(
        self, lower: Optimizer, weights: list[Tensor], gradients: Gradients, xi: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        here = [w.detach().clone() for w in weights]
        apply(lower, weights, gradients)
        return here, weights


def preview(optimizer: Optimizer, weights: Sequence[Tensor], gradients: Gradients) -> list[Tensor]:
    """The weights after the optimizer's step, which is taken by a twin of it on copies of them.

    Neither the weights nor anything of the optimizer is touched, and none of its hooks runs.
    """
    # Lightning's wrapper would count the step.
    optimizer = getattr(optimizer, "optimizer", optimizer)
    after = [w.detach().clone().requires_grad_(w.requires_grad) for w in weights]
    copies = {id(w): copy for w, copy in zip(weights, after, strict=True)}
    twin: Any = object.__new__(type(optimizer))
    twin.__dict__.update(optimizer.__dict__)
    twin.param_groups = []
    for group in optimizer.param_groups:
        options = deepcopy({key: value for key, value in group.items() if key != "params"})
        params = [copies.get(id(p), p) for p in group["params"]]
        twin.param_groups.append({"params": params, **options})
    twin.state = defaultdict(dict)
    for parameter, entry in optimizer.state.items():
        twin.state[copies.get(id(parameter), parameter)] = deepcopy(entry)
    # Torch wraps the step of every optimizer class into one that runs hooks.
    step: Any = type(optimizer).step
    twin.step = MethodType(step.__wrapped__ if getattr(step, "hooked", False) else step, twin)
    apply(twin, after, gradients)
    return after


@torch.no_grad()
def adam_slopes(optimizer: Optimizer, weights: Sequence[Tensor], gradients: Gradients) -> Gradients:
    """lr / (√s + eps) for every number, s the bias-corrected second moment of the next step.

    The derivative of AdamW's step by its gradient, the second moment held and momentum summed.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    slopes: Gradients = []
    for weight, g in zip(weights, gradients, strict=True):
        if g is None:
            slopes.append(None)
            continue
        group = groups[id(weight)]
        state = optimizer.state.get(weight, {})
        _, beta2 = group["betas"]
        if not group["decoupled_weight_decay"]:
            g = g + group["weight_decay"] * weight  # Adam's decay is a part of its gradient
        step = float(state.get("step", 0)) + 1
        moment = (1 - beta2) * g.square()
        if "exp_avg_sq" in state:
            moment = moment + beta2 * state["exp_avg_sq"]
        slopes.append(group["lr"] / ((moment / (1 - beta2**step)).sqrt() + group["eps"]))
    return slopes

"""Steps of optimizers along given gradients, and one for tables of which a batch uses a part."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from mqvae.errors import MqvaeError, at_least

Gradients: TypeAlias = list[Tensor | None]
"""One gradient per parameter; None where a parameter is frozen or unused."""


class RowwiseAdam(Optimizer):
    """Adam that leaves rows without a gradient alone: their values and their moments stay.

    Plain Adam moves a codeword on for many steps after it was last chosen, and between two hits
    its second moment fades faster than its first grows, so that rare hits are long steps. Here
    both advance with the hits. As torch's SparseAdam does for sparse gradients; the bias is
    corrected by the number of steps. There is no weight decay.

    Args:
        params: Parameters or groups of them, whose first axis has the rows.
        lr: Learning rate.
        betas: Decays of first and second moment.
        eps: Added to the root of the second moment.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        at_least(0, lr=lr, eps=eps)
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise MqvaeError(f"betas must lie in [0, 1), got {betas}.")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along the gradients.

        Args:
            closure: Computes them anew and returns the loss, which is then returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    def _step(self, parameter: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        # All rows, of which some stay: to know how many, a GPU would be waited for.
        here = (g.reshape(len(g), -1) != 0).any(1).view(-1, *[1] * (g.ndim - 1))
        beta1, beta2 = group["betas"]
        mean = state["exp_avg"].lerp(g, 1 - beta1)
        square = state["exp_avg_sq"].lerp(g.square(), 1 - beta2)
        state["exp_avg"].copy_(mean.where(here, state["exp_avg"]))
        state["exp_avg_sq"].copy_(square.where(here, state["exp_avg_sq"]))
        step = int(state["step"])
        size = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        parameter.sub_((size * mean / (square.sqrt() + group["eps"])).where(here, 0))


@torch.no_grad()
def forget_rows(optimizer: Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Set what an optimizer remembers of some rows of a parameter, (rows,) bool, to zero."""
    for value in optimizer.state.get(parameter, {}).values():
        if torch.is_tensor(value) and value.shape == parameter.shape:
            value.masked_fill_(rows.view(-1, *[1] * (value.ndim - 1)), 0)


def apply(
    optimizer: Optimizer | None,
    parameters: Iterable[Tensor],
    gradients: Gradients,
    *,
    max_norm: float | None = None,
    scaler: "torch.amp.GradScaler | None" = None,
) -> None:
    """One step of an optimizer along given gradients, clipped to a norm; none without one.

    Nothing stays behind in `.grad`. A scaler leaves out a step whose gradients are not finite.
    """
    parameters = list(parameters)
    if optimizer is None:
        return
    if max_norm is not None:
        gradients = clipped(gradients, max_norm)
    for parameter, g in zip(parameters, gradients, strict=True):
        # Convolutions return gradients laid out otherwise than their weights. `backward` would put
        # that right; fused optimizers, which walk through memory, would take number for number.
        if g is not None and g.stride() != parameter.stride():
            g = torch.empty_like(parameter).copy_(g)
        parameter.grad = g
    try:
        if scaler is None or all(g is None for g in gradients):
            optimizer.step()
        else:
            for parameter in parameters:
                if parameter.grad is not None:  # who unscales also looks for what is not finite
                    parameter.grad = scaler.scale(parameter.grad)
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
    finally:
        for parameter in parameters:
            parameter.grad = None


@torch.no_grad()
def clipped(gradients: Gradients, max_norm: float) -> Gradients:
    """Gradients, scaled down where the norm of all together is above `max_norm`."""
    found = [g for g in gradients if g is not None]
    if not found:
        return gradients
    norm = torch.stack([n.float() for n in torch._foreach_norm(found)]).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_
    return [None if g is None else g * factor.to(g.dtype) for g in gradients]


def only_finite(gradients: Gradients) -> Gradients:
    """Gradients with 0 in place of each number that is not finite."""
    return [None if g is None else g.nan_to_num(0.0, 0.0, 0.0) for g in gradients]


def check_holds(
    name: str,
    optimizer: Optimizer,
    level: Sequence[Tensor],
    which: str,
    names: Mapping[int, str],
    remedy: str,
) -> None:
    """Refuse, by a ValueError, an optimizer that holds too little for its level, or too much."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    foreign = held - {id(p) for p in level}
    missing = {id(p) for p in level if p.requires_grad} - held
    if foreign or missing:
        listed = sorted(names.get(p, "one that is not the module's") for p in foreign)
        raise MqvaeError(
            f"the {name} optimizer must hold the parameters {which}. "
            + (f"It also holds: {', '.join(listed)}. " if foreign else "")
            + (f"It lacks: {', '.join(sorted(names[p] for p in missing))}. " if missing else "")
            + remedy
        )

"""An optimizer for a table of which each batch uses a part."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from mqvae.errors import MqvaeError


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
        if not lr >= 0:
            raise MqvaeError(f"lr must be 0 or more, got {lr}.")
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise MqvaeError(f"betas must lie in [0, 1), got {betas}.")
        if not eps >= 0:
            raise MqvaeError(f"eps must be 0 or more, got {eps}.")
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

    def _step(self, parameter: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        rows = (g.reshape(len(g), -1) != 0).any(1)
        beta1, beta2 = group["betas"]
        if not g.is_cpu:  # all rows, of which some stay: to know how many, a GPU is waited for
            here = rows.view(-1, *[1] * (g.ndim - 1))
            mean = state["exp_avg"].lerp(g, 1 - beta1)
            square = state["exp_avg_sq"].lerp(g.square(), 1 - beta2)
            state["exp_avg"].copy_(mean.where(here, state["exp_avg"]))
            state["exp_avg_sq"].copy_(square.where(here, state["exp_avg_sq"]))
            change = self._change(state, group, mean, square)
            parameter.sub_(change.where(here, 0))
            return
        rows = rows.nonzero().flatten()
        g = g[rows]
        mean = state["exp_avg"][rows].lerp_(g, 1 - beta1)
        square = state["exp_avg_sq"][rows].lerp_(g.square(), 1 - beta2)
        state["exp_avg"][rows] = mean
        state["exp_avg_sq"][rows] = square
        parameter[rows] = parameter[rows] - self._change(state, group, mean, square)

    def _change(
        self, state: dict[str, Any], group: dict[str, Any], mean: torch.Tensor, square: torch.Tensor
    ) -> torch.Tensor:
        beta1, beta2 = group["betas"]
        step = int(state["step"])
        size = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        return size * mean / (square.sqrt() + group["eps"])


@torch.no_grad()
def forget_rows(optimizer: Optimizer, parameter: torch.Tensor, rows: torch.Tensor) -> None:
    """Set what an optimizer remembers of some rows of a parameter, (rows,) bool, to zero."""
    for value in optimizer.state.get(parameter, {}).values():
        if torch.is_tensor(value) and value.shape == parameter.shape:
            value.masked_fill_(rows.view(-1, *[1] * (value.ndim - 1)), 0)

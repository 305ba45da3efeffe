"""Reverse mode through several virtual steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.bilevel import Batch, gradient
from mqvae.core.distributed import mean_with_graph, shared
from mqvae.core.hypergradients.rule import (
    Hypergradient,
    HypergradientRule,
    require_straight_through,
    selecting,
    upper_gradients,
)
from mqvae.core.look_ahead import Ahead, LookAhead
from mqvae.core.optimizer import Gradients
from mqvae.core.quantizers import CodebookQuantizer
from mqvae.errors import MqvaeError, at_least


@dataclass(frozen=True)
class Unrolled(HypergradientRule):
    """Reverse mode through k virtual steps, the graph kept (Section 4.2, Appendix F).

    With one step it equals `Exact`. Memory and time grow with k: every step holds the graph of its
    gradient. Codes are looked up anew at each step and frozen within it.

    Args:
        steps: Number k of virtual steps of plain descent.
        stop_gradients: Detach φ and θ from C between the steps: a k-step look-ahead of which only
            the direct term is left.

    Raises:
        ValueError: if `steps` is not positive.
    """

    steps: int = 1
    stop_gradients: bool = False

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)

    @property
    def uses_upper_loss(self) -> bool:
        return not self.stop_gradients

    def check(self, quantizer: CodebookQuantizer, look_ahead: LookAhead) -> None:
        require_straight_through(quantizer, "Unrolled")
        if look_ahead.optimizer_step:
            raise MqvaeError(
                "Unrolled differentiates plain descent: use it with look_ahead=Undone(), whose "
                "virtual step is not the optimizer's."
            )

    def __call__(self, ahead: Ahead) -> Hypergradient:
        lower, here = ahead.lower, ahead.here
        table = selecting(lower.network).table().detach().requires_grad_()
        ends, cut = [*here.phi, *here.theta], len(here.phi)
        for _ in range(self.steps):
            # The steps are those of all processes together: each has its own share of g alone.
            here_all = shared(ends)
            g = mean_with_graph(_update_field(lower, here_all[:cut], here_all[cut:], table))
            ends = [p if d is None else p - ahead.xi * d for p, d in zip(ends, g, strict=True)]
            if self.stop_gradients:
                ends = [p.detach().requires_grad_(p.requires_grad) for p in ends]
        wanted = not self.stop_gradients
        leaves = [e.detach().requires_grad_(e.requires_grad and wanted) for e in ends]
        direct, v_phi, v_theta = upper_gradients(ahead.upper, leaves[:cut], leaves[cut:])
        reached = [
            (e * v).sum() for e, v in zip(ends, [*v_phi, *v_theta], strict=True) if v is not None
        ]
        if not reached:
            return Hypergradient(direct)
        (indirect,) = gradient(torch.stack(reached).sum(), [table])
        return Hypergradient(direct, torch.zeros_like(direct) if indirect is None else indirect)


def _update_field(batch: Batch, phi: list[Tensor], theta: list[Tensor], table: Tensor) -> Gradients:
    """[*g_φ, *g_θ] of the straight-through estimator, differentiable by φ, θ and C."""
    quantizer = selecting(batch.network)
    z_e = batch.embed(phi)
    z_q = quantizer.lookup(quantizer.nearest_codes(z_e, table), table)
    z = quantizer.passed_on(z_e, z_q)
    to_z, *g_theta = gradient(batch.task(z, theta), [z, *theta], create_graph=True)
    cotangent = quantizer.of_quantized(2 * batch.weights.commitment / z_e.numel() * (z_e - z_q))
    if to_z is not None:
        cotangent = cotangent + to_z
    # Not through ẑ = z_e + sg(z_q − z_e): its second derivative would see z_e where z_q is meant.
    return [*gradient(z_e, phi, cotangent=cotangent, create_graph=True), *g_theta]

"""The hypergradient from passes that are made anyway."""

from dataclasses import dataclass

import torch

from mqvae.core.hypergradient.ahead import Ahead
from mqvae.core.hypergradient.rule import (
    Hypergradient,
    HypergradientRule,
    codebook_gradient,
    scatter,
)
from mqvae.core.quantizer import CodebookQuantizer


@dataclass(frozen=True)
class Amortized(HypergradientRule):
    """Eq. 13 at the price of its direct term: one forward pass of the encoder.

        indirect = ξ (2/ND) · scatter_k(z_e(φ) − z_e(φ'))

    Two things are taken from where they are known already. The gradient v_φ at φ' is that at φ,
    along which the lower optimizer has stepped; the upper pass through network and loss is left
    out. And the derivative of the embeddings along that step is the secant from φ to φ', whose
    other end the direct term needs. So v is preconditioned as the optimizer preconditions it.

    A codeword moves to where its embeddings are after the step, and once more as far as the step
    moved them. Needs a look-ahead by the optimizer's own step; with `Kept()` it is the cheapest
    MQ-VAE there is.
    """

    @property
    def uses_upper_loss(self) -> bool:
        return False

    def check(self, quantizer: CodebookQuantizer, look_ahead: object) -> None:
        if not getattr(look_ahead, "optimizer_step", True):
            raise ValueError(
                "Amortized takes the answer from the step the lower optimizer makes: use it with "
                "look_ahead=Kept(), or Undone(optimizer_step=True)."
            )

    def __call__(self, ahead: Ahead) -> Hypergradient:
        lower, upper, here = ahead.lower, ahead.upper, ahead.here
        device = here.z_e.device.type
        # Half precision cannot tell two near passes apart: both ends are made anew then.
        known = not torch.is_autocast_enabled(device)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            z_here = here.z_e.detach() if known else lower.embed(here.phi)
            z_ahead = lower.embed(ahead.phi)
            z_above = z_ahead if upper is lower else upper.embed(ahead.phi)
        change = z_here - z_ahead
        scale = ahead.xi * 2 * lower.weights.codebook / change.numel()
        return Hypergradient(
            codebook_gradient(upper, z_above), scale * scatter(lower, here.quantized.codes, change)
        )

"""The hypergradient without its indirect term."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.bilevel import Batch, LowerPass
from mqvae.core.hypergradient.rule import Hypergradient, HypergradientRule, codebook_gradient


@dataclass(frozen=True)
class DirectOnly(HypergradientRule):
    """No indirect term: the codebook loss at φ' (Eq. 20; Appendix F's stop-gradient).

    Costs one forward pass of the encoder.
    """

    def __call__(
        self,
        lower: Batch,
        here: LowerPass,
        upper: Batch,
        phi_ahead: list[Tensor],
        theta_ahead: list[Tensor],
        xi: float,
    ) -> Hypergradient:
        with torch.no_grad():
            z_e = upper.embed(phi_ahead)
        direct = codebook_gradient(upper, z_e)
        return Hypergradient(direct, torch.zeros_like(direct))

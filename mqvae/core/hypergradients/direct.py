"""The hypergradient without its indirect term."""

from dataclasses import dataclass

import torch

from mqvae.core.hypergradients.rule import Hypergradient, HypergradientRule, codebook_gradient
from mqvae.core.look_ahead import Ahead


@dataclass(frozen=True)
class DirectOnly(HypergradientRule):
    """No indirect term: the codebook loss at φ' (Eq. 20; Appendix F's stop-gradient).

    Costs one forward pass of the encoder.
    """

    uses_upper_loss = False

    def __call__(self, ahead: Ahead) -> Hypergradient:
        with torch.no_grad():
            z_e = ahead.upper.embed(ahead.phi)
        return Hypergradient(codebook_gradient(ahead.upper, z_e))

"""The hypergradient from passes that are made anyway."""

from dataclasses import dataclass

from mqvae.core.hypergradients.rule import (
    Hypergradient,
    HypergradientRule,
    codebook_gradient,
    embedded,
    ends,
    require_optimizer_step,
    scatter,
)
from mqvae.core.look_ahead import Ahead, LookAhead
from mqvae.core.quantizers import CodebookQuantizer


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

    uses_upper_loss = False

    def check(self, quantizer: CodebookQuantizer, look_ahead: LookAhead) -> None:
        require_optimizer_step(look_ahead, "Amortized")

    def __call__(self, ahead: Ahead) -> Hypergradient:
        lower, upper, here = ahead.lower, ahead.upper, ahead.here
        z_here, z_ahead = ends(lower, here, ahead.phi)
        z_above = z_ahead if upper is lower else embedded(upper, ahead.phi)
        change = z_here - z_ahead
        scale = ahead.xi * 2 * lower.weights.codebook / change.numel()
        return Hypergradient(
            codebook_gradient(upper, z_above), scale * scatter(lower, here.quantized.codes, change)
        )

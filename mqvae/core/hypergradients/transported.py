"""The indirect term outside the optimizer, at its natural scale."""

from dataclasses import dataclass, field

from mqvae.core.hypergradients.rule import (
    Hypergradient,
    HypergradientRule,
    codebook_gradient,
    embedded,
    ends,
    require_optimizer_step,
    selecting,
)
from mqvae.core.look_ahead import Ahead, LookAhead
from mqvae.core.quantizers import CodebookQuantizer
from mqvae.core.transport import Transport


@dataclass(frozen=True)
class Transported(HypergradientRule):
    """Codewords are carried along by their embeddings; what is left is the direct term's.

        C ← C + T(Δ),   Δ = z_e(φ') − z_e(φ);      then   g_C(φ', C)   by the upper optimizer

    with the codes of before the step, unless the upper-level batch is another.

    AdamW divides the scale of its gradient away, so that Eq. 13's indirect term does no more than
    tilt a step whose length its learning rate decides. Here that term is applied as Newton's step
    instead, and unused codewords go with it (`Transport`): the optimizer has nothing left to
    follow, and its learning rate hardly matters. Costs one forward pass of the encoder.

    Needs a look-ahead by the optimizer's own step; `Kept()` is the one it is meant for.

    Args:
        transport: How far codewords go.
    """

    transport: Transport = field(default_factory=Transport)

    uses_upper_loss = False

    def check(self, quantizer: CodebookQuantizer, look_ahead: LookAhead) -> None:
        require_optimizer_step(look_ahead, "Transported")
        quantizer.require_movable()

    def __call__(self, ahead: Ahead) -> Hypergradient:
        lower, upper, here = ahead.lower, ahead.upper, ahead.here
        quantizer = selecting(lower.network)
        z_here, z_ahead = ends(lower, here, ahead.phi)
        codes = here.quantized.codes
        shift = ahead.xi * quantizer.transported(self.transport, codes, z_here, z_ahead - z_here)
        table = quantizer.translated(shift)
        if upper is lower:
            # They moved together: a second search, most of a step where codes are many, would find
            # the same.
            direct = codebook_gradient(upper, z_ahead, codes, table)
        else:
            direct = codebook_gradient(upper, embedded(upper, ahead.phi), table=table)
        return Hypergradient(direct, shift=shift)

"""The codebook as a moving average of its embeddings."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from mqvae.core.averages import Averages
from mqvae.core.bilevel import Batch
from mqvae.core.codebook import MovingAverage, Table
from mqvae.core.hypergradients.rule import ends, selecting
from mqvae.core.look_ahead import Kept
from mqvae.core.passes import finite_rows
from mqvae.core.quantizers import VectorQuantizer
from mqvae.core.rules.joint import Joint
from mqvae.core.rules.levels import Levels
from mqvae.core.rules.step import Step
from mqvae.core.transport import Transport
from mqvae.errors import MqvaeError, at_least, below_one


@dataclass(frozen=True, kw_only=True)
class Ema(Joint):
    """`Joint` over codewords that are moving averages of the embeddings that choose them (Eq. 17).

        N_k ← γ N_k + (1 − γ) n_k        m_k ← γ m_k + (1 − γ) Σ z_e        e_k = m_k / N_k

    with n_k the number of embeddings of code k in the batch: `MovingAverage` for a codebook that is
    a plain table, whose average the update remembers. Smoothing, e_k = (m_k + ε e_k) / (N_k + ε),
    pulls no codeword to the origin; one that no embedding chose stays where it is, to the bit,
    unless it is carried along. A quantizer that is frozen or in eval mode keeps its codewords.

    An average lags behind embeddings that move. With a transport what is remembered is carried
    along by the step of the encoder before the embeddings after that step come in,

        m_k ← m_k + N_k T_k;    N_k ← γ N_k + (1 − γ) n_k;    m_k ← γ m_k + (1 − γ) Σ z_e(φ')

    with T_k as in `Transport`, at the price of one forward pass of the encoder. Codes are those of
    before the step. The memory γ then matters little, and there is no learning rate.

    Under `Cosine()` the averages are of unit vectors: spherical k-means in place of k-means.

    Args:
        decay: γ.
        epsilon: ε, smoothing of N, in embeddings.
        commitment_weight: β.
        transport: How far codewords go with their embeddings; None for not at all.

    Raises:
        ValueError: if `decay` is not in [0, 1), `epsilon` is negative, the codebook is no plain
            table, or for what `Update` refuses.

    Source: van den Oord et al. 2017, Appendix A.1.
    """

    method = "VQ-VAE + EMA"
    steps_codebook = False
    any_module = False

    decay: float = 0.99
    epsilon: float = 1e-5
    transport: Transport | None = None
    codebook_weight: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one(decay=self.decay)
        at_least(0, epsilon=self.epsilon)

    @property
    def gathers(self) -> bool:
        return self.transport is None

    def check(self, update: Levels) -> None:
        plain_table(update.network)
        if self.transport is not None and update.scaler is not None:
            raise MqvaeError(
                "Ema(transport=…) takes no GradScaler, as the codewords go with the step that is "
                "made: leave out the transport, or train in bfloat16."
            )

    def averages(self, update: Levels) -> Averages:
        codewords = plain_table(update.network).codebook()
        return Averages(codewords, self.decay, self.epsilon)

    def around(self, update: Levels) -> AbstractContextManager[None]:
        assert update.averages is not None
        return plain_table(update.network).averaged_by(update.averages)

    def step(self, update: Levels, batch: Batch, above: object) -> Step:
        quantizer = plain_table(update.network)
        if self.transport is None or not quantizer.updates:
            return super().step(update, batch, above)
        z_e = batch.embed_for_real()
        here = batch.lower_pass(z_e, for_real=True).everywhere()
        codes = here.quantized.codes
        ahead = Kept().ahead(update.lower, batch, batch, here, 1.0, update.max_norm)
        z_here, z_ahead = ends(batch, ahead.here, ahead.phi)
        averages = quantizer.averages
        assert averages is not None
        averages.follow(quantizer.codebook(), quantizer.table())
        change = z_ahead - z_here
        shift = finite_rows(quantizer.transported(self.transport, codes, z_here, change))
        quantizer.translate(shift)
        averages.carry(shift, quantizer.codebook())
        return update.finish(batch, here.task, here.quantized, z_ahead)


def plain_table(network: torch.nn.Module) -> VectorQuantizer:
    """The quantizer of a VQNetwork; refuses, by a ValueError, any whose codewords are no table."""
    quantizer = selecting(network)
    codebook = quantizer.codebook if isinstance(quantizer, VectorQuantizer) else None
    if isinstance(codebook, MovingAverage):
        raise MqvaeError(
            "the codebook is a MovingAverage() already, which every rule takes along: use Joint "
            "with upper=None in place of Ema, or Table()."
        )
    if not (isinstance(quantizer, VectorQuantizer) and isinstance(codebook, Table)):
        raise MqvaeError(
            "Ema sets codewords one by one: it needs a VectorQuantizer whose codebook is a "
            f"plain Table(), got {quantizer}."
        )
    return quantizer

"""The codebook as a moving average of its embeddings."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mqvae.core.averages import Averages, check_decay
from mqvae.core.bilevel import Batch
from mqvae.core.codebook import MovingAverage, Table
from mqvae.core.distributed import sums_across_processes
from mqvae.core.hypergradients.rule import ends, scatter, selecting
from mqvae.core.look_ahead import Ahead, Kept
from mqvae.core.passes import finite_rows
from mqvae.core.quantizers import VectorQuantizer
from mqvae.core.rules.step import Found, Step, step_of
from mqvae.core.rules.update import OnePass, Update
from mqvae.core.transport import Transport
from mqvae.errors import MqvaeError


@dataclass(frozen=True, kw_only=True)
class Ema(OnePass):
    """Codewords are moving averages of the embeddings that choose them (Eq. 17).

        N_k ← γ N_k + (1 − γ) n_k        m_k ← γ m_k + (1 − γ) Σ z_e        e_k = m_k / N_k

    with n_k the number of embeddings of code k in the batch. Smoothing counts ε embeddings at where
    the codeword is, e_k = (m_k + ε e_k) / (N_k + ε), so that it pulls no codeword to the origin;
    one that no embedding of the batch chose stays where it is, to the bit, unless it is carried
    along (below). φ and θ step as in `Joint`. A quantizer that is frozen or in eval mode keeps its
    codewords, and the averages wait.

    Averages are kept in float32 at least and follow the codebook's device and type. A codeword that
    anything else has set since the last step (an initialization, loaded weights, a replacement)
    starts again as an average of itself. Sums that are not finite are left out, as if no embedding
    had chosen that code.

    An average lags behind embeddings that move. With a transport it does not: what is remembered is
    carried along by the step of the encoder before the embeddings after that step come in,

        m_k ← m_k + N_k T_k;    N_k ← γ N_k + (1 − γ) n_k;    m_k ← γ m_k + (1 − γ) Σ z_e(φ')

    with T_k as in `Transport`, at the price of one forward pass of the encoder. Codes are those of
    before the step: codewords and embeddings move together, and a second search, most of a step
    where codes are many, would find the same. The memory γ then matters little, and there is no
    rate at all.

    The codebook must be a plain table; `codebook=MovingAverage()` is the same average as a property
    of the quantizer, for `Joint`, any module and loops of your own.

    Under `Cosine()` the averages are of unit vectors, and a codeword is the direction of its own:
    spherical k-means in place of k-means.

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
    scales = True

    decay: float = 0.99
    epsilon: float = 1e-5
    transport: Transport | None = None
    codebook_weight: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.decay, self.epsilon)

    @property
    def gathers(self) -> bool:
        return self.transport is None

    def check(self, update: Update) -> None:
        plain_table(update.network, "Ema")
        if self.transport is not None and update.scaler is not None:
            raise MqvaeError(
                "Ema(transport=…) takes no GradScaler, as the codewords go with the step that is "
                "made: leave out the transport, or train in bfloat16."
            )

    def averages(self, update: Update) -> Averages:
        codebook = plain_table(update.network, "Ema").codebook
        return Averages(codebook(), self.decay, self.epsilon)

    def gradients(self, update: Update, batch: Batch) -> Found:
        z_e = batch.embed_for_real()
        here = batch.lower_pass(z_e, for_real=True)
        codes = here.quantized.codes
        step, sums = step_of(batch, here.task, here.quantized), _sums(batch, codes, z_e.detach())
        return Found(step, [*here.g_phi, *here.g_theta], [], z_e, codes, sums=sums)

    def learn(self, update: Update, sums: tuple[Tensor, ...]) -> None:
        quantizer = plain_table(update.network, "Ema")
        if quantizer.codebook.learns and quantizer.training:
            averages = _following(update, quantizer)
            counts, total = sums_across_processes(sums)
            # Without embeddings nothing moves, not even by rounding.
            averages.take(quantizer.codebook, quantizer.table(), counts, total, all_move=False)

    def step(self, update: Update, batch: Batch, above: object) -> Step:
        quantizer = plain_table(update.network, "Ema")
        if self.transport is None or not (quantizer.codebook.learns and quantizer.training):
            return super().step(update, batch, above)
        z_e = batch.embed_for_real()
        here = batch.lower_pass(z_e, for_real=True).everywhere()
        codes = here.quantized.codes
        averages = _following(update, quantizer)
        ahead = Kept().ahead(update.lower, batch, batch, here, 1.0, update.max_norm)
        z_ahead = _carry(self.transport, ahead, averages, quantizer)
        counts, total = sums_across_processes(_sums(batch, codes, z_ahead))
        averages.take(quantizer.codebook, quantizer.table(), counts, total, all_move=True)
        update.record(z_ahead, codes)
        update.learn()
        return step_of(batch, here.task, here.quantized)


def _following(update: Update, quantizer: VectorQuantizer) -> Averages:
    """The averages, with what anything else has set in the codebook."""
    assert update.averages is not None
    update.averages.follow(quantizer.codebook(), quantizer.table())
    return update.averages


@torch.no_grad()
def _carry(
    transport: Transport, ahead: Ahead, averages: Averages, quantizer: VectorQuantizer
) -> Tensor:
    """Take codewords and averages along with the embeddings; returns where those are then."""
    z_here, z_ahead = ends(ahead.lower, ahead.here, ahead.phi)
    codes = ahead.here.quantized.codes
    shift = finite_rows(quantizer.transported(transport, codes, z_here, z_ahead - z_here))
    averages.carry(shift)
    quantizer.translate(shift)
    return z_ahead


@torch.no_grad()
def _sums(batch: Batch, codes: Tensor, z_e: Tensor) -> tuple[Tensor, Tensor]:
    """How many embeddings chose each row, (rows,), and their sums, (rows, d)."""
    quantizer = plain_table(batch.network, "Ema")
    sums = scatter(batch, codes, z_e)
    rows = quantizer.rows(codes).flatten()
    ones = torch.ones_like(rows, dtype=sums.dtype)
    return sums.new_zeros(len(sums)).scatter_add_(0, rows, ones), sums


def plain_table(network: torch.nn.Module, rule: str) -> VectorQuantizer:
    """The quantizer of a VQNetwork, whose codewords are one parameter.

    Raises:
        ValueError: if they are not.
    """
    quantizer = selecting(network)
    kind = getattr(quantizer, "codebook_map", None)
    if isinstance(kind, MovingAverage):
        raise MqvaeError(
            f"the codebook is a {kind} already, which every rule takes along: use Joint with "
            f"upper=None in place of {rule}, or Table()."
        )
    if not (isinstance(quantizer, VectorQuantizer) and isinstance(kind, Table)):
        raise MqvaeError(
            f"{rule} sets codewords one by one: it needs a VectorQuantizer whose codebook is a "
            f"plain Table(), got {quantizer}."
        )
    return quantizer

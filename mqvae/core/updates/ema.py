"""The codebook as a moving average of its embeddings."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.averages import Averages
from mqvae.core.bilevel import Batch, Loss
from mqvae.core.codebook import MovingAverage, Table
from mqvae.core.distributed import ProcessGroup, sums_across_processes
from mqvae.core.hypergradient import Ahead
from mqvae.core.hypergradient.rule import ends, scatter, selecting
from mqvae.core.network import VQNetwork
from mqvae.core.passes import Snapshot, finite_rows
from mqvae.core.quantizer import VectorQuantizer
from mqvae.core.transport import Transport
from mqvae.core.updates.lookahead import Kept
from mqvae.core.updates.meta import ahead_of
from mqvae.core.updates.update import Step, Update, step_of
from mqvae.errors import MqvaeError


class Ema(Update):
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

    Under `Cosine()` the averages are of unit vectors, and a codeword is the direction of its own:
    spherical k-means in place of k-means.

    Args:
        network: The network that is trained; its codebook must be a plain table.
        loss: L_task(output, target) → scalar, a mean over the batch.
        lower: Optimizer of φ and θ.
        decay: γ.
        epsilon: ε, smoothing of N, in embeddings.
        commitment_weight: β.
        transport: How far codewords go with their embeddings; None for not at all.
        process_group: The processes that train together; None for all that there are.

    Raises:
        ValueError: if `decay` is not in [0, 1), `epsilon` is negative, the codebook is no plain
            table, or for what `Update` refuses.

    Source: van den Oord et al. 2017, Appendix A.1.
    """

    method = "VQ-VAE + EMA"
    steps_codebook = False

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        *,
        lower: Optimizer,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        commitment_weight: float = 0.1,
        transport: Transport | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            network,
            loss,
            lower=lower,
            upper=None,
            commitment_weight=commitment_weight,
            codebook_weight=0.0,
            process_group=process_group,
        )
        self.quantizer = plain_table(network, "Ema")
        self.averages = Averages(self.quantizer.codebook(), decay, epsilon)
        self.transport = transport

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        z_e = batch.embed_for_real()
        here = batch.lower_pass(z_e, for_real=True).everywhere()
        codes, z_e = here.quantized.codes, z_e.detach()
        waits = not (self.quantizer.codebook.learns and self.quantizer.training)
        if not waits:
            self._follow()
        if self.transport is None or waits:
            self._descend_network(here.g_phi, here.g_theta)
        else:
            ahead = ahead_of(Kept(), self.lower, batch, batch, here, 1.0)
            z_e = self._carry(self.transport, ahead)
        if not waits:
            self._average(batch, codes, z_e)
        self._after_step(z_e, codes)
        if not waits and self.quantizer.replacement is not None:
            self._follow()
        return step_of(batch, here.task, here.quantized)

    def _follow(self) -> None:
        self.averages.follow(self.quantizer.codebook(), self.quantizer.table())

    @torch.no_grad()
    def _carry(self, transport: Transport, ahead: Ahead) -> Tensor:
        """Take codewords and averages along with the embeddings; returns where those are then."""
        z_here, z_ahead = ends(ahead.lower, ahead.here, ahead.phi)
        codes = ahead.here.quantized.codes
        shift = self.quantizer.transported(transport, codes, z_here, z_ahead - z_here)
        shift = finite_rows(shift)
        self.averages.carry(shift)
        self.quantizer.translate(shift)
        return z_ahead

    @torch.no_grad()
    def _average(self, batch: Batch, codes: Tensor, z_e: Tensor) -> None:
        codewords, table = self.quantizer.codebook(), self.quantizer.table()
        rows = self.quantizer.rows(codes).flatten()
        counts = self.averages.sizes.new_zeros(len(table))
        counts.scatter_add_(0, rows, torch.ones_like(rows, dtype=counts.dtype))
        counts, sums = sums_across_processes([counts, scatter(batch, codes, z_e)])
        # Without embeddings nothing moves, not even by rounding, unless it is carried along.
        found = self.averages.step(
            counts, sums, codewords, table, all_move=self.transport is not None
        )
        self.quantizer.codebook.assign(found)
        self.averages.codewords.copy_(self.quantizer.codebook())

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, N and m, and the codewords that they are of."""
        return {name: getattr(self.averages, name) for name in ("sizes", "sums", "codewords")}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put `state_dict` back; that of a run made before codewords were in it, too.

        Raises:
            ValueError: if it is another rule's.
        """
        if state.keys() == {"started", "sizes", "sums"}:
            codewords = self.quantizer.codebook()
            state = {"sizes": state["sizes"], "sums": state["sums"], "codewords": codewords}
        super().load_state_dict(state)


def plain_table(network: VQNetwork, rule: str) -> VectorQuantizer:
    """The network's quantizer, whose codewords are one parameter.

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

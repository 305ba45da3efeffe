"""The codebook as a moving average of its embeddings."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, Loss, LowerPass
from mqvae.core.codebook import Table
from mqvae.core.distance import Euclidean
from mqvae.core.distributed import sums_across_processes
from mqvae.core.hypergradient.rule import scatter, selecting
from mqvae.core.network import VQNetwork
from mqvae.core.passes import Snapshot
from mqvae.core.quantizer import VectorQuantizer
from mqvae.core.updates.update import Step, Update, step_of


class Ema(Update):
    """Codewords are moving averages of the embeddings that choose them (Eq. 17).

        N_k ← γ N_k + (1 − γ) n_k        m_k ← γ m_k + (1 − γ) Σ z_e        e_k = m_k / N_k

    with n_k the number of embeddings of code k in the batch, and N smoothed so that a rarely used
    codeword does not divide by nearly nothing. φ and θ step as in `Joint`. A quantizer that is
    frozen or in eval mode keeps its codewords, and the averages wait.

    Args:
        network: The network that is trained; its codebook must be a plain table.
        loss: L_task(output, target) → scalar, a mean over the batch.
        lower: Optimizer of φ and θ.
        decay: γ.
        epsilon: Laplace smoothing of N.
        commitment_weight: β.

    Raises:
        ValueError: if `decay` is not in [0, 1), `epsilon` is negative, the codebook is no plain
            Euclidean table, or for what `Update` refuses.

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
    ) -> None:
        super().__init__(
            network,
            loss,
            lower=lower,
            upper=None,
            commitment_weight=commitment_weight,
            codebook_weight=0.0,
        )
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}.")
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be 0 or more, got {epsilon}.")
        self.quantizer = plain_table(network, "Ema")
        self.decay = decay
        self.epsilon = epsilon
        self._started = torch.zeros((), dtype=torch.bool)
        table = self.quantizer.table().detach()
        self._sizes = torch.zeros(len(table), dtype=table.dtype, device=table.device)
        self._sums = torch.zeros_like(table)

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        z_e = batch.embed_for_real()
        here = batch.lower_pass(z_e, for_real=True).everywhere()
        self._descend_network(here.g_phi, here.g_theta)
        trained = any(p.requires_grad for p in self.quantizer.codebook.parameters())
        if self.quantizer.training and trained:
            self._average(batch, here)
        self._after_step(z_e, here.quantized.codes, here.task_gradient)
        return step_of(batch, here.task, here.quantized)

    @torch.no_grad()
    def _average(self, batch: Batch, here: LowerPass) -> None:
        table = self.quantizer.table()
        if not self._started:
            # Not at construction: the codebook may be initialized between then and the first step.
            self._sizes.fill_(1)
            self._sums.copy_(table)
            self._started.fill_(True)
        rows = self.quantizer.rows(here.quantized.codes).flatten()
        counts = torch.bincount(rows, minlength=len(table)).to(table.dtype)
        sums = scatter(batch, here.quantized.codes, here.z_e.detach())
        counts, sums = sums_across_processes([counts, sums])
        self._sizes.lerp_(counts, 1 - self.decay)
        self._sums.lerp_(sums, 1 - self.decay)
        total = self._sizes.sum()
        smoothed = (self._sizes + self.epsilon) / (total + len(table) * self.epsilon) * total
        # A size may have fallen to nothing where nothing smooths it.
        smoothed = smoothed.clamp(min=torch.finfo(table.dtype).tiny)
        self.quantizer.codebook.assign(self._sums / smoothed[:, None])

    @torch.no_grad()
    def forget(self, rows: Tensor) -> None:
        """Rows that were replaced start again as an average of themselves."""
        if self._started:
            self._sizes[rows] = 1
            self._sums[rows] = self.quantizer.table()[rows]

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, N and m."""
        return {"started": self._started, "sizes": self._sizes, "sums": self._sums}


def plain_table(network: VQNetwork, rule: str) -> VectorQuantizer:
    """The network's quantizer, whose codewords are one parameter.

    Raises:
        ValueError: if they are not, or are compared on a sphere.
    """
    quantizer = selecting(network)
    if not (
        isinstance(quantizer, VectorQuantizer)
        and isinstance(quantizer.codebook_map, Table)
        and isinstance(quantizer.distance, Euclidean)
    ):
        raise ValueError(
            f"{rule} sets codewords one by one: it needs a VectorQuantizer whose codebook is a "
            f"plain Table() with Euclidean() distance, got {quantizer}."
        )
    return quantizer

"""The codebook first, then encoder and decoder."""

from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, Loss
from mqvae.core.distributed import ProcessGroup, mean_across_processes
from mqvae.core.hypergradient.rule import codebook_gradient, scatter, selecting
from mqvae.core.network import VQNetwork
from mqvae.core.passes import Snapshot
from mqvae.core.updates.update import Step, Update, step_of
from mqvae.errors import MqvaeError


class Alternated(Update):
    """C first, on the codebook loss alone; then φ and θ with the new C (Eq. 15, 16).

    Algorithm 1 with ξ = 0. The paper sets β = 0 here; `commitment_weight` says which is wanted.
    With ν > 0 it is "+alt+sync": C's step follows the task gradient at ẑ too, which takes a pass
    of the decoder under the old C.

    Args:
        network: The network that is trained.
        loss: L_task(output, target) → scalar, a mean over the batch.
        lower: Optimizer of φ and θ.
        upper: Optimizer of C.
        nu: ν, weight of the task gradient on C (`Synchronous`).
        commitment_weight: β.
        codebook_weight: Weight of the codebook loss.
        process_group: The processes that train together; None for all that there are.

    Raises:
        ValueError: if `nu` is negative, the quantizer does not select, or for what `Update`
            refuses.

    Source: Huh et al. 2023, "Straightening out the straight-through estimator".
    """

    method = "VQ-VAE + alt"

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        *,
        lower: Optimizer,
        upper: Optimizer,
        nu: float = 0.0,
        commitment_weight: float = 0.1,
        codebook_weight: float = 1.0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            network,
            loss,
            lower=lower,
            upper=upper,
            commitment_weight=commitment_weight,
            codebook_weight=codebook_weight,
            process_group=process_group,
        )
        if not nu >= 0:
            raise MqvaeError(f"nu must be 0 or more, got {nu}.")
        selecting(network)
        self.nu = nu

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        z_e = batch.embed_for_real()
        if self.nu > 0:
            quantized, task_gradient = batch.task_gradient(z_e)
            g_c = codebook_gradient(batch, z_e.detach(), quantized.codes)
            reached = self.network.quantizer.of_quantized(task_gradient)
            g_c = g_c + self.nu * scatter(batch, quantized.codes, reached)
        else:
            g_c = codebook_gradient(batch, z_e.detach())
        (g_c,) = mean_across_processes([g_c])
        self._descend_codebook(g_c)
        here = batch.lower_pass(z_e, for_real=True).everywhere()
        self._descend_network(here.g_phi, here.g_theta)
        self._after_step(z_e, here.quantized.codes)
        return step_of(batch, here.task, here.quantized)

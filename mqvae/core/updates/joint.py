"""φ, θ and C stepped at once: the VQ-VAE, plain and synchronous."""

from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, Loss, averaged, gradient
from mqvae.core.distributed import ProcessGroup, mean_across_processes
from mqvae.core.hypergradient.rule import codebook_gradient, scatter, selecting
from mqvae.core.network import VQNetwork
from mqvae.core.passes import Snapshot
from mqvae.core.updates.update import Step, Update, apply, step_of
from mqvae.errors import MqvaeError


class Joint(Update):
    """One pass, φ, θ and C stepped at once: the VQ-VAE (Eq. 6).

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    method = "VQ-VAE"

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        network = self.network
        z_e = batch.embed_for_real()
        quantized = network.quantizer.quantize(z_e)
        task = batch.task_for_real(quantized.z_q)
        lower: list[Tensor] = list(network.network_parameters())
        upper: list[Tensor] = list(network.codebook_parameters())
        total = self.weights.total(task, quantized)
        found = mean_across_processes(gradient(total, [*lower, *upper]))
        apply(self.lower, lower, found[: len(lower)])
        self._step_codebook(upper, found[len(lower) :])
        self._after_step(z_e, quantized.codes)
        return step_of(batch, task, quantized)


class Synchronous(Update):
    """`Joint`, and a codeword also gets the task gradient at ẑ, times ν (Eq. 18, 19).

    As if the decoder had got ẑ + ν z_q − sg(ν z_q). Descending, C moves by −ν ∂L_task/∂z_q; the
    sign of Eq. 19 is that of an ascent.

    Args:
        network: The network that is trained.
        loss: L_task(output, target) → scalar, a mean over the batch.
        lower: Optimizer of φ and θ.
        upper: Optimizer of C.
        nu: ν.
        commitment_weight: β.
        codebook_weight: Weight of the codebook loss.
        process_group: The processes that train together; None for all that there are.

    Raises:
        ValueError: if `nu` is negative, the quantizer does not select, or for what `Update`
            refuses.

    Source: Huh et al. 2023, "Straightening out the straight-through estimator".
    """

    method = "VQ-VAE + sync"

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        *,
        lower: Optimizer,
        upper: Optimizer,
        nu: float = 1.0,
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
        # Of a frozen encoder z_e has no graph, without which there is no ∂L_task/∂ẑ.
        z_e = batch.embed_for_real().requires_grad_()
        here = batch.lower_pass(z_e, for_real=True)
        g_c = codebook_gradient(batch, z_e.detach(), here.quantized.codes)
        reached = self.network.quantizer.of_quantized(here.task_gradient)
        g_c = g_c + self.nu * scatter(batch, here.quantized.codes, reached)
        g_phi, g_theta, (g_c,) = averaged(here.g_phi, here.g_theta, [g_c])
        self._descend_network(g_phi, g_theta)
        self._descend_codebook(g_c)
        self._after_step(z_e, here.quantized.codes)
        return step_of(batch, here.task, here.quantized)

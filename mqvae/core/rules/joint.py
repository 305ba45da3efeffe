"""φ, θ and C stepped at once: the VQ-VAE, plain and synchronous."""

from dataclasses import dataclass

from mqvae.core.bilevel import Batch
from mqvae.core.hypergradients.rule import require_all_select, synchronous_gradient
from mqvae.core.rules.levels import Levels
from mqvae.core.rules.module import ModuleBatch
from mqvae.core.rules.rule import OnePass
from mqvae.core.rules.step import Found, step_of
from mqvae.errors import at_least


@dataclass(frozen=True, kw_only=True)
class Joint(OnePass):
    """One pass, φ, θ and C stepped at once: the VQ-VAE (Eq. 6); of any module.

    Args:
        commitment_weight: β, weight of the commitment loss.
        codebook_weight: Weight of the codebook loss.

    Raises:
        ValueError: if a weight is negative, or for what `Update` refuses.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    method = "VQ-VAE"
    any_module = True
    scales = True

    def gradients(self, update: Levels, batch: Batch | ModuleBatch) -> Found:
        if isinstance(batch, ModuleBatch):
            return batch.find(update.lower_parameters, update.upper_parameters)
        z_e = batch.embed_for_real()
        quantized = batch.network.quantizer.quantize(z_e)
        task = batch.task_for_real(quantized.z_q)
        lower = update.lower_parameters
        total = batch.weights.total(task, quantized)
        found = batch.gradient(total, [*lower, *update.upper_parameters])
        g_lower, g_upper = found[: len(lower)], found[len(lower) :]
        step = step_of(task, [quantized], batch.output)
        return Found(step, g_lower, g_upper, z_e, quantized.codes)


@dataclass(frozen=True, kw_only=True)
class Synchronous(OnePass):
    """`Joint`, and a codeword also gets the task gradient at ẑ, times ν (Eq. 18, 19).

    As if the decoder had got ẑ + ν z_q − sg(ν z_q). Descending, C moves by −ν ∂L_task/∂z_q; the
    sign of Eq. 19 is that of an ascent.

    Args:
        nu: ν.
        commitment_weight: β.
        codebook_weight: Weight of the codebook loss.

    Raises:
        ValueError: if `nu` is negative, the quantizer does not select, or for what `Update`
            refuses.

    Source: Huh et al. 2023, "Straightening out the straight-through estimator".
    """

    method = "VQ-VAE + sync"
    any_module = True
    scales = True

    nu: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, nu=self.nu)

    def check(self, update: Levels) -> None:
        require_all_select(update.network)

    def gradients(self, update: Levels, batch: Batch | ModuleBatch) -> Found:
        if isinstance(batch, ModuleBatch):
            return batch.find(update.lower_parameters, update.upper_parameters, self.nu)
        # Of a frozen encoder z_e has no graph, without which there is no ∂L_task/∂ẑ.
        z_e = batch.embed_for_real().requires_grad_()
        here = batch.lower_pass(z_e, for_real=True)
        codes = here.quantized.codes
        g_c = synchronous_gradient(batch, z_e, codes, here.task_gradient, self.nu)
        step = step_of(here.task, [here.quantized], batch.output)
        return Found(step, [*here.g_phi, *here.g_theta], [g_c], z_e, codes, of_table=True)

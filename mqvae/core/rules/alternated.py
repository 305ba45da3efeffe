"""The codebook first, then encoder and decoder."""

from dataclasses import dataclass

from mqvae.core.bilevel import Batch
from mqvae.core.distributed import mean_across_processes
from mqvae.core.hypergradients.rule import (
    codebook_gradient,
    require_all_select,
    synchronous_gradient,
)
from mqvae.core.rules.levels import Levels
from mqvae.core.rules.module import ModuleBatch
from mqvae.core.rules.rule import Rule
from mqvae.core.rules.step import Step
from mqvae.errors import at_least


@dataclass(frozen=True, kw_only=True)
class Alternated(Rule):
    """C first, on the codebook loss alone; then φ and θ with the new C (Eq. 15, 16).

    Algorithm 1 with ξ = 0. The paper sets β = 0 here; `commitment_weight` says which is wanted.
    With ν > 0 it is "+alt+sync": C's step follows the task gradient at ẑ too, which takes a pass
    of the decoder under the old C. Of any module; one that is no VQNetwork is passed through twice.

    Args:
        nu: ν, weight of the task gradient on C (`Synchronous`).
        commitment_weight: β.
        codebook_weight: Weight of the codebook loss.

    Raises:
        ValueError: if `nu` is negative, the quantizer does not select, or for what `Update`
            refuses.

    Source: Huh et al. 2023, "Straightening out the straight-through estimator".
    """

    method = "VQ-VAE + alt"
    any_module = True
    scales = True

    nu: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, nu=self.nu)

    def check(self, update: Levels) -> None:
        require_all_select(update.network)

    def step(self, update: Levels, batch: Batch | ModuleBatch, above: object) -> Step:
        if isinstance(batch, ModuleBatch):
            return self._step_module(update, batch)
        z_e = batch.embed_for_real()
        if self.nu > 0:
            quantized, task_gradient = batch.task_gradient(z_e)
            g_c = synchronous_gradient(batch, z_e, quantized.codes, task_gradient, self.nu)
        else:
            g_c = codebook_gradient(batch, z_e.detach())
        (g_c,) = mean_across_processes([g_c])
        update.descend_codebook(g_c)
        here = batch.lower_pass(z_e, for_real=True).everywhere()
        update.descend_network([*here.g_phi, *here.g_theta])
        return update.finish(batch, here.task, here.quantized, z_e)

    def _step_module(self, update: Levels, batch: ModuleBatch) -> Step:
        upper = update.upper_parameters
        before = batch.find([], upper, self.nu, trace=False)
        update.step_codebook(upper, mean_across_processes(before.upper))
        return update.descend(batch.find(update.lower_parameters, []))

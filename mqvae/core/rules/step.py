"""What a pass finds, and what a step reports."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mqvae.core.optimizer import Gradients
from mqvae.core.quantizers import Quantized
from mqvae.shown import Shown


@dataclass(frozen=True, repr=False)
class Step(Shown):
    """What a step reports.

    Attributes:
        task: L_task of the first pass, a scalar.
        commitment: mean ‖z_e − sg(z_q)‖², unweighted; of several quantizers their sum.
        codebook: mean ‖sg(z_e) − z_q‖², unweighted; of several quantizers their sum.
        auxiliary: The quantizer's own term, unweighted: `Quantized.auxiliary_loss`; None without.
        codebook_gradient: Largest number of the gradient that an optimizer stepped C along, by
            size; not finite if some were not, along which C was not stepped. None without one.
        codes: The codes of the batch; of a module with several quantizers, or several passes
            through one, those of the first.
        output: The output of the first pass, detached: the decoder's, (B, ...), or the module's.
        direct_norm: Norm of the direct hypergradient; None for rules without one.
        indirect_norm: Norm of the indirect hypergradient.
        cosine: Cosine between the two; 0 where one of them vanishes.
        quantized: What each quantizer of a module gave, by its name in the module, pass by pass;
            empty for a VQNetwork.
    """

    task: Tensor
    commitment: Tensor
    codebook: Tensor
    codes: Tensor
    output: Any
    auxiliary: Tensor | None = None
    codebook_gradient: Tensor | None = None
    direct_norm: Tensor | None = None
    indirect_norm: Tensor | None = None
    cosine: Tensor | None = None
    quantized: dict[str, tuple[Quantized, ...]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Found:
    """What one pass found: what to step along, and what the quantizer learns from."""

    step: Step
    lower: Gradients  # of the lower level's parameters
    upper: Gradients  # of the upper level's; or of the table itself, (rows, d); or none
    z_e: Tensor | None = None  # (..., D); None where quantizers record theirs, or learn nothing
    codes: Tensor | None = None
    of_table: bool = False  # whether `upper` is of the table
    learns: bool = True  # whether the quantizers learn from the pass

    def added_to(self, held: "Found | None") -> "Found":
        """This pass with the gradients of the batches before it added."""
        if held is None:
            return self
        lower, upper = _added(held.lower, self.lower), _added(held.upper, self.upper)
        return replace(self, lower=lower, upper=upper)


def _added(one: Gradients, two: Gradients) -> Gradients:
    pairs = zip(one, two, strict=True)
    return [b if a is None else a if b is None else a + b for a, b in pairs]


def step_of(task: Tensor, quantized: Sequence[Quantized], output: Any, **further: Any) -> Step:
    """The report of a step from its first pass, the losses of its quantizers summed."""
    auxiliary = [q.auxiliary_loss for q in quantized if q.auxiliary_loss is not None]
    commitment = _sum([q.commitment_loss for q in quantized])
    codebook = _sum([q.codebook_loss for q in quantized])
    further["auxiliary"] = _sum(auxiliary) if auxiliary else None
    return Step(task.detach(), commitment, codebook, quantized[0].codes, output, **further)


def _sum(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).sum().detach()

"""Encoder and decoder alone, before there is anything to quantize with."""

from dataclasses import dataclass, field

import torch

from mqvae.core.bilevel import Batch
from mqvae.core.rules.levels import Levels
from mqvae.core.rules.rule import OnePass
from mqvae.core.rules.step import Found, Step


@dataclass(frozen=True, kw_only=True)
class Unquantized(OnePass):
    """The decoder gets the embeddings as they are; φ and θ descend L_task, and the codebook waits.

    What a warm start begins with: some updates of this rule, then a codebook from k-means, then any
    other rule. The quantizer is not asked, but for where it places embeddings.

    Raises:
        ValueError: for what `Update` refuses.

    Example:
        >>> warm = Update(network, loss, Unquantized(), lower=AdamW(network_parameters(network)))
        >>> step = warm(x, x)
        >>> network.initialize_codebook(x)
    """

    method = "Unquantized"
    steps_codebook = False
    scales = True

    commitment_weight: float = field(default=0.0, init=False)
    codebook_weight: float = field(default=0.0, init=False)

    def gradients(self, update: Levels, batch: Batch) -> Found:
        task = batch.task_for_real(batch.embed_for_real())
        g = batch.gradient(task, update.lower_parameters)
        task = task.detach()
        zero = torch.zeros_like(task)
        none = torch.empty(0, dtype=torch.int64, device=task.device)
        return Found(Step(task, zero, zero, none, batch.output), g, [], learns=False)

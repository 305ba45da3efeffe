"""Encoder and decoder alone, before there is anything to quantize with."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.bilevel import Batch, Loss, gradient
from mqvae.core.distributed import ProcessGroup, mean_across_processes
from mqvae.core.network import VQNetwork
from mqvae.core.passes import Snapshot
from mqvae.core.updates.update import Step, Update, apply


class Unquantized(Update):
    """The decoder gets the embeddings as they are; φ and θ descend L_task, and the codebook waits.

    What a warm start begins with: some updates of this rule, then a codebook from k-means, then any
    other rule. The quantizer is not asked, but for where it places embeddings.

    Args:
        network: The network that is trained.
        loss: L_task(output, target) → scalar, a mean over the batch.
        lower: Optimizer of φ and θ.
        process_group: The processes that train together; None for all that there are.

    Raises:
        ValueError: for what `Update` refuses.

    Example:
        >>> warm = Unquantized(network, loss, lower=AdamW(network.network_parameters(), lr=3e-4))
        >>> step = warm.step(x, x)
        >>> network.initialize_codebook(x)
    """

    method = "Unquantized"
    steps_codebook = False

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        *,
        lower: Optimizer,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            network,
            loss,
            lower=lower,
            upper=None,
            commitment_weight=0.0,
            codebook_weight=0.0,
            process_group=process_group,
        )

    def _step(self, batch: Batch, snapshot: Snapshot) -> Step:
        task = batch.task_for_real(batch.embed_for_real())
        parameters: list[Tensor] = list(self.network.network_parameters())
        apply(self.lower, parameters, mean_across_processes(gradient(task, parameters)))
        task = task.detach()
        zero = torch.zeros_like(task)
        none = torch.empty(0, dtype=torch.int64, device=task.device)
        return Step(task, zero, zero, none, batch.output)

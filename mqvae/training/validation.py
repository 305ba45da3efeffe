"""The loss on the validation split, measured by all processes."""

import math

import torch

from mqvae.core.distributed import from_first_process, sum_across_processes
from mqvae.data import Images, fitting, in_order
from mqvae.errors import NotFiniteEmbeddings
from mqvae.metrics import evaluating
from mqvae.training.assembly import Parts
from mqvae.training.processes import Processes

VALIDATION_BATCH = 250


def share_statistics(parts: Parts, processes: Processes) -> None:
    """All processes measure what is saved: the first one's batch statistics."""
    if processes.count > 1:
        # Not a set: all processes must take them in the same order.
        for network in dict.fromkeys((parts.network, parts.measured)):
            for buffer in network.buffers():
                buffer.copy_(from_first_process(buffer))


def validation_loss(parts: Parts, images: Images, processes: Processes) -> float | None:
    """The task loss on validation images; None where there are none."""
    if not len(images):
        return None
    sums = torch.zeros(2, dtype=torch.float64)
    network = parts.measured
    turns = {"rank": processes.rank, "world_size": processes.count}
    with evaluating(network, parts.task), torch.no_grad():
        size = fitting(VALIDATION_BATCH, images.shape)
        for x, y in in_order(images, size, device=processes.device, **turns):
            try:
                loss = float(parts.task(network(x).output.float(), parts.task.target(x, y)))
            except NotFiniteEmbeddings:  # all processes are told, below
                loss = math.nan
            sums += torch.tensor([loss * len(x), len(x)], dtype=torch.float64)
    total, number = sum_across_processes(sums).tolist()
    return total / number

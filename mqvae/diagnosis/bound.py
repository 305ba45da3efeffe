"""The bound: what the same network gives when nothing is quantized."""

import torch

from mqvae.core.distributed import alone
from mqvae.core.network import VQNetwork
from mqvae.data import Images, fitting
from mqvae.errors import MqvaeError
from mqvae.metrics import evaluating
from mqvae.progress import watched_batches
from mqvae.tasks import Task

BATCH_SIZE = 512


@torch.no_grad()
def without_quantization(
    network: VQNetwork, task: Task, images: Images, *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The task's metrics when the decoder is given the embeddings themselves, z_e for z_q.

    A bound of what another codebook, or another choice of codes, could reach through this encoder
    and decoder. The decoder was not trained on z_e: trained on it, it would do better.

    Raises:
        ValueError: if there are no images.
    """
    if not len(images):
        raise MqvaeError("there are no images to measure the bound on.")
    measured = task.measurement()
    size = fitting(BATCH_SIZE, images.shape)
    with evaluating(network, task):
        for x, y in watched_batches(images, size, "decoding embeddings", device=device):
            output = network.decoder(network.channels_back(network.embed(x)))
            measured.update(output, task.target(x, y))
    return measured.compute(alone)

"""The Inception network of FID and of the inception score."""

import io
from typing import Any

import torch
from torch import Tensor

from mqvae.data import Images
from mqvae.errors import MqvaeError
from mqvae.metrics.score import ScoreMetric
from mqvae.optional import require
from mqvae.weights import Weights, read

_CLASSES = 1008


class InceptionScore(ScoreMetric):
    """The score with torch-fidelity's Inception network.

    Args:
        images: What is measured on.
        device: Where it is measured.

    Raises:
        WeightsNotFound: if Inception's weights are not on this machine.

    Source:
        Salimans et al. 2016.
    """

    def __init__(self, images: Images, device: torch.device | str = "cpu") -> None:
        super().__init__(_CLASSES, images)
        weights = read("inception")
        self.network = inception(weights, "logits_unbiased").to(device)
        self.protocol = (
            f"Inception ({weights}), 8-bit images resized to 299 × 299 as by TensorFlow 1, mean "
            f"over {self.splits} equal parts of {len(images):,} images"
        )

    def logits(self, images: Tensor) -> Tensor:
        return self.network(to_bytes(images.expand(-1, 3, -1, -1)))


def inception(weights: Weights, features: str) -> Any:
    """The network, which gives (B, D) for images of bytes.

    Raises:
        ValueError: if the weights do not fit.
        ExtraMissing: if torch-fidelity is not installed.
    """
    require("torch_fidelity")
    from torchmetrics.image.fid import NoTrainInceptionV3

    # It reads its weights from a file by itself; a file in memory holds what was checked.
    file = io.BytesIO()
    torch.save(weights.tensors, file)
    file.seek(0)
    options: dict[str, Any] = {"feature_extractor_weights_path": file, "antialias": False}
    try:
        with torch.random.fork_rng(devices=[]):
            return NoTrainInceptionV3("inception-v3-compat", [features], **options)
    except RuntimeError as error:
        raise MqvaeError(
            f"the weights of inception ({weights}) do not fit the network: {error}. "
            "`mqvae weights` says where they are; delete them and fetch them again."
        ) from error


def to_bytes(images: Tensor) -> Tensor:
    """[0, 1] → 0 … 255, to the nearest."""
    return (images * 255).round().to(torch.uint8)

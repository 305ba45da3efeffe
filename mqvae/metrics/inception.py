"""The Inception network of FID and of the inception score."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mqvae.data import Images
from mqvae.metrics.image_figure import ImageFigure, in_parts
from mqvae.tasks import Figure
from mqvae.weights import Weights, read

_CLASSES = 1008
_SPLITS = 10


class InceptionScore(ImageFigure):
    """exp E KL(p(class | image) ‖ p(class)), of outputs alone.

    Args:
        images: What is measured on.
        device: Where it is measured.

    Raises:
        WeightsNotFound: if Inception's weights are not on this machine.

    Source:
        Salimans et al. 2016.
    """

    def __init__(self, images: Images, device: torch.device | str = "cpu") -> None:
        weights = read("inception")
        self.network = inception(weights, "logits_unbiased").to(device)
        self.splits = min(_SPLITS, len(images))
        self.seen = 0
        # Of each split: the sum of p, the sum of Σ p log p, the number of images.
        self.sums = torch.zeros(self.splits, _CLASSES + 2, dtype=torch.float64)
        self.figure = Figure(
            "Inception score",
            "higher",
            f"Inception ({weights}), 8-bit images resized to 299 × 299 as by TensorFlow 1, mean "
            f"over {self.splits} equal parts of {len(images):,} images",
        )

    def update(self, output: Tensor, target: Tensor) -> None:
        for part in in_parts(output):
            with torch.no_grad():
                logits = self.network(to_bytes(part)).cpu().double()
            p = logits.softmax(1)
            negative_entropy = (p * logits.log_softmax(1)).sum(1, keepdim=True)
            rows = torch.cat([p, negative_entropy, torch.ones(len(p), 1, dtype=p.dtype)], dim=1)
            split = torch.arange(self.seen, self.seen + len(p)) % self.splits
            self.sums.index_add_(0, split, rows)
            self.seen += len(p)

    def compute(self, total: Callable[[Tensor], Tensor]) -> float:
        return score(total(self.sums))


def score(sums: Tensor) -> float:
    """The mean score of the splits, by what `InceptionScore` keeps of them."""
    sums = sums[sums[:, -1] > 0]
    p = sums[:, :-2] / sums[:, -1:]
    divergence = sums[:, -2] / sums[:, -1] - torch.special.xlogy(p, p).sum(1)
    return float(divergence.exp().mean())


def inception(weights: Weights, features: str) -> Any:
    """The network, which gives (B, D) for images of bytes.

    Raises:
        ValueError: if the weights do not fit.
    """
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
        raise ValueError(
            f"the weights of inception ({weights}) do not fit the network: {error}. "
            "`mqvae weights` says where they are; delete them and fetch them again."
        ) from error


def to_bytes(images: Tensor) -> Tensor:
    """[0, 1] → 0 … 255, to the nearest."""
    return (images * 255).round().to(torch.uint8)

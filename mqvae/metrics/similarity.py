"""SSIM, through torchmetrics, and LPIPS."""

import torch
from torch import Tensor

from mqvae.data import Images
from mqvae.errors import MqvaeError
from mqvae.metrics.image_metric import MeanMetric, at_least, resized
from mqvae.tasks.perceptual import PerceptualDistance
from mqvae.weights import Weights, read

# AlexNet has nothing left of images under 31 pixels; 64 is what LPIPS was made on.
_SMALLEST, _SIDE = 32, 64
_WINDOW = 11  # pixels a side of SSIM's Gaussian window


class Ssim(MeanMetric):
    """Structural similarity, over the positions at which the whole window lies in the image.

    Args:
        images: What is measured on.
        device: Where it is measured.

    Raises:
        ValueError: if the images are smaller than the window.

    Source:
        Wang et al. 2004, of each channel of a colour image.
    """

    def __init__(self, images: Images, device: torch.device | str = "cpu") -> None:
        super().__init__()
        if min(images.shape[-2:]) < _WINDOW:
            raise MqvaeError(
                f"ssim needs images of {_WINDOW} × {_WINDOW} pixels or more, the size of its "
                f"window, got {images.shape[-2]} × {images.shape[-1]}: leave ssim out."
            )
        self.protocol = (
            f"Gaussian window of {_WINDOW} × {_WINDOW}, σ 1.5, at positions where it lies in the "
            "image (no padding), K 0.01 and 0.03, images in [0, 1], outputs clamped, mean over "
            f"{_of_channels(images)}{len(images):,} images"
        )

    def of_each(self, output: Tensor, target: Tensor) -> Tensor:
        from torchmetrics.functional.image import structural_similarity_index_measure

        found = structural_similarity_index_measure(
            output, target, sigma=1.5, reduction="none", data_range=1.0, return_full_image=True
        )
        # It mirrors images beyond their edges, which the original does not.
        edge = _WINDOW // 2
        inside = found[1][..., edge:-edge, edge:-edge]
        return inside.flatten(1).mean(1)


def _of_channels(images: Images) -> str:
    return "" if images.shape[0] == 1 else "channels and "


class Lpips(MeanMetric):
    """Learned perceptual image patch similarity, on AlexNet.

    Args:
        images: What is measured on.
        device: Where it is measured.
        weights: AlexNet's (default: those on this machine).

    Raises:
        WeightsNotFound: if they are not there.

    Source:
        Zhang et al. 2018.
    """

    def __init__(
        self, images: Images, device: torch.device | str = "cpu", *, weights: Weights | None = None
    ) -> None:
        super().__init__()
        weights = weights or read("alexnet")
        self.distance = PerceptualDistance(weights, network="alexnet").to(device)
        self.protocol = (
            f"AlexNet ({weights}), heads of torchmetrics, images in [0, 1] brought to [−1, 1]"
            f"{resized(images.shape, _SMALLEST, _SIDE)}, mean over {len(images):,} images"
        )

    def of_each(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            return self.distance(*(at_least(e, _SMALLEST, _SIDE) for e in (output, target)))

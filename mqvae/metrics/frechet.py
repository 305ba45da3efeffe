"""Fréchet distances between features of outputs and of images: FID, and one that needs less."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from mqvae.data import Images
from mqvae.errors import MqvaeError
from mqvae.metrics.image_metric import ImageMetric, at_least, in_parts, resized
from mqvae.metrics.inception import inception, to_bytes
from mqvae.weights import NETWORKS, Weights, read

_SMALLEST, _SIDE = 32, 32  # VGG16 halves an image four times before these features


def frechet_distance(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> float:
    """Squared Fréchet distance of two Gaussians, |μ − ν|² + tr(S + T − 2 (S T)^½).

    The trace of (S T)^½ is the sum of the singular values of S^½ T^½: real, and exact too where
    there are fewer images than features.

    Args:
        mean: μ, (D,).
        covariance: S, (D, D).
        other_mean: ν.
        other_covariance: T.

    Source:
        Dowson and Landau 1982; for images, Heusel et al. 2017.
    """
    between = torch.linalg.svdvals(_root(covariance) @ _root(other_covariance)).sum()
    apart = (mean.double() - other_mean.double()).square().sum()
    return float(apart + covariance.trace() + other_covariance.trace() - 2 * between)


def _root(covariance: Tensor) -> Tensor:
    """S^½; eigenvalues that rounding made negative are 0."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


class Moments:
    """Mean and covariance of rows that come in batches, in float64.

    Args:
        size: D, the length of a row.
    """

    def __init__(self, size: int) -> None:
        self.sums = torch.zeros(size + 1, size + 1, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Take rows (B, D) into account."""
        # With a 1 beside each row, one product holds squares, sums and the count.
        rows = torch.nn.functional.pad(rows.cpu().double(), (0, 1), value=1.0)
        self.sums += rows.T @ rows

    def compute(self, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The mean (D,) and the covariance (D, D), of a sample.

        Raises:
            ValueError: if there are fewer than two rows.
        """
        sums = total(self.sums)
        count = sums[-1, -1]
        if count < 2:
            raise MqvaeError("a Fréchet distance needs two images or more.")
        mean = sums[-1, :-1] / count
        return mean, (sums[:-1, :-1] - count * mean.outer(mean)) / (count - 1)


class Frechet(ImageMetric):
    """The distance between the features of outputs and those of the images themselves.

    Args:
        size: Number of features.
        words: Which features.
        images: What is measured on, and against.

    Attributes:
        outputs: Moments of the features of outputs.
        targets: Those of the images.
        known: Whether `targets` were there before: the images are not looked at again.
    """

    known = False

    def __init__(self, size: int, words: str, images: Images) -> None:
        self.size, self.words = size, words
        self.outputs, self.targets = Moments(size), Moments(size)
        self.protocol = f"{words}, outputs against the {len(images):,} images they are made of"

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(B, D) of a few images of three channels."""

    def gather(self, images: Tensor, moments: Moments) -> None:
        """Take images (B, C, H, W) into account, for outputs or for targets."""
        for part in in_parts(images):
            with torch.no_grad():
                moments.update(self.features(part))

    def know(self, sums: Tensor) -> None:
        """Take the `Moments.sums` of the images' features from before, (D + 1, D + 1) float64."""
        self.targets.sums, self.known = sums, True

    def update(self, output: Tensor, target: Tensor) -> None:
        self.gather(output, self.outputs)
        if not self.known:
            self.gather(target, self.targets)

    def compute(self, total: Callable[[Tensor], Tensor]) -> float:
        of_targets = self.targets.compute(torch.clone if self.known else total)
        return frechet_distance(*self.outputs.compute(total), *of_targets)


class Fid(Frechet):
    """Fréchet Inception distance, on the features of torch-fidelity's Inception network.

    Args:
        images: What is measured on, and against.
        device: Where it is measured.

    Raises:
        WeightsNotFound: if Inception's weights are not on this machine.

    Source:
        Heusel et al. 2017.
    """

    def __init__(self, images: Images, device: torch.device | str = "cpu") -> None:
        weights = read("inception")
        super().__init__(
            2048,
            f"Inception ({weights}), 2048 features, 8-bit images resized to 299 × 299 as by "
            "TensorFlow 1",
            images,
        )
        self.network = inception(weights, "2048").to(device)

    def features(self, images: Tensor) -> Tensor:
        return self.network(to_bytes(images))


class FrechetVgg16(Frechet):
    """The Fréchet distance on features of VGG16: where Inception cannot be had, and not FID.

    Args:
        images: What is measured on, and against.
        device: Where it is measured.

    Raises:
        WeightsNotFound: if VGG16's weights are not on this machine.
    """

    def __init__(self, images: Images, device: torch.device | str = "cpu") -> None:
        weights = read("vgg16")
        super().__init__(
            512,
            "not comparable to FID: "
            f"VGG16 ({weights}), mean of relu5_3 over positions, 512 features, images in [0, 1] "
            f"normalized as for ImageNet{resized(images.shape, _SMALLEST, _SIDE)}",
            images,
        )
        self.network = _vgg16(weights).to(device)

    def features(self, images: Tensor) -> Tensor:
        images = at_least(images, _SMALLEST, _SIDE)
        mean, deviation = (
            torch.tensor(of_channels, device=images.device).view(3, 1, 1)
            for of_channels in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        images = ((images - mean) / deviation).contiguous(memory_format=torch.channels_last)
        return self.network(images).mean((2, 3))


def _vgg16(weights: Weights) -> torch.nn.Module:
    """Up to relu5_3, the last ReLU; in the layout in which small images are fastest."""
    network = NETWORKS["vgg16"].features()[:30]
    network.load_state_dict(weights.tensors, assign=True)
    network.requires_grad_(False).eval()
    return network.to(memory_format=torch.channels_last)

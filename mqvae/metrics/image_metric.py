"""A metric of images beside the images that they should be."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mqvae.tasks import Metric

PART = 64  # images that go through a large network at once


@dataclass(frozen=True)
class Row(Metric):
    """A metric that is measured on request.

    Attributes:
        path: Of its class, an `ImageMetric`.
        needs: "weights" of a trained network, "classes" that a classifier tells apart, or nothing.
    """

    path: str = ""
    needs: Literal["", "weights", "classes"] = ""


class ImageMetric(ABC):
    """One metric over a split, batch by batch.

    Classes take the images and the device that they are measured on, `MyMetric(images, device)`;
    those that need classes a `classifier=` as well.

    Attributes:
        row: What it is; ours have theirs in `mqvae.metrics.registry`.
        protocol: How it is computed, in words.
    """

    row: Row
    protocol: str = ""

    @abstractmethod
    def update(self, output: Tensor, target: Tensor) -> None:
        """Take a batch into account: both are (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def compute(self, total: Callable[[Tensor], Tensor]) -> float:
        """The metric over all batches.

        Args:
            total: The sum of a tensor over the processes that share the split; the tensor itself
                where one measures alone.
        """

    def described(self) -> Metric:
        """Its row, with the protocol."""
        row = self.row
        return Metric(row.title, row.better, self.protocol, row.unit, row.scale)


class MeanMetric(ImageMetric):
    """A metric of each pair of images, averaged over the pairs."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # of the metric, of the images

    @abstractmethod
    def of_each(self, output: Tensor, target: Tensor) -> Tensor:
        """The metric of each pair, (B,)."""

    def update(self, output: Tensor, target: Tensor) -> None:
        for part in zip(output.split(PART), target.split(PART), strict=True):
            of_each = self.of_each(*part).cpu().double()
            self.sums += torch.stack([of_each.sum(), of_each.new_tensor(len(of_each))])

    def compute(self, total: Callable[[Tensor], Tensor]) -> float:
        found, images = total(self.sums).tolist()
        return found / images


def in_parts(images: Tensor) -> Iterator[Tensor]:
    """As many images at once as a large network can take; grey ones repeated to three channels."""
    yield from images.expand(-1, 3, -1, -1).split(PART)


def at_least(images: Tensor, smallest: int, side: int) -> Tensor:
    """Images that a network can take: those under `smallest` pixels a side resized to `side`."""
    if min(images.shape[-2:]) >= smallest:
        return images
    return interpolate(images, (side, side), mode="bilinear", align_corners=False)


def resized(shape: tuple[int, ...], smallest: int, side: int) -> str:
    """`at_least`'s effect on images of this shape, in a protocol's words."""
    return "" if min(shape[-2:]) >= smallest else f", resized (bilinear) to {side} × {side}"

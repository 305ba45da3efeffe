"""Reconstruction of images and vectors."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mqvae.tasks.task import Measurement, Metric, Picture, Strip, Task, metrics_of


class Reconstruction(Task):
    """Mean squared error between the output and the input itself."""

    metrics: ClassVar[Mapping[str, Metric]] = metrics_of("reconstruction")

    def target(self, x: Tensor, y: Tensor) -> Tensor:
        return x

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """mean (output − target)² over all numbers.

        Written out: `mse_loss` fails under forward-over-reverse in some versions of torch.
        """
        return (output - target).square().mean()

    def measurement(self) -> Measurement:
        return _Errors()

    def images(self, output: Tensor) -> Tensor:
        return output.float().clamp(0, 1)


class VectorReconstruction(Reconstruction):
    """Mean squared error between the output and the input vector."""

    metrics: ClassVar[Mapping[str, Metric]] = metrics_of("vectors")

    images = Task.images

    def measurement(self) -> Measurement:
        return _VectorErrors()


class _VectorErrors(Measurement):
    """Sum of squared errors, in float64."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # squared errors, their number

    def update(self, output: Tensor, target: Tensor) -> None:
        squared = (output.cpu().double() - target.cpu()).square()
        self.sums += torch.tensor([squared.sum(), squared.numel()], dtype=torch.float64)

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        squared, numbers = total(self.sums).tolist()
        return {"mse": squared / numbers}


class _Errors(Measurement):
    """Sums of squared errors and of decibels, in float64."""

    def __init__(self) -> None:
        # Squared errors, their number, decibels, images.
        self.sums = torch.zeros(4, dtype=torch.float64)

    def update(self, output: Tensor, target: Tensor) -> None:
        output, target = output.cpu().double(), target.cpu()  # not every device has float64
        squared = (output - target).square().sum()
        seen = (output.clamp(0, 1) - target).square().flatten(1).mean(1)  # (B,)
        decibels = (-10 * seen.clamp(min=1e-12).log10()).sum()
        found = [squared, output.numel(), decibels, len(output)]
        self.sums += torch.tensor(found, dtype=torch.float64)

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        squared, numbers, decibels, images = total(self.sums).tolist()
        return {"mse": squared / numbers, "psnr": decibels / images}

    def show(self, x: Tensor, output: Tensor) -> list[Picture]:
        return [
            Strip("originals", "Originals", x, reference=True),
            Strip("reconstructions", "Reconstructions", output.float().clamp(0, 1)),
        ]

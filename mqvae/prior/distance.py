"""Fréchet distance of a prior's samples from the test images, during training."""

import csv
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mqvae.core.distributed import alone
from mqvae.data.order import order_of
from mqvae.errors import MqvaeError
from mqvae.files import write_whole
from mqvae.metrics import evaluating
from mqvae.metrics.frechet import Frechet, Moments, frechet_distance
from mqvae.metrics.registry import maker_of
from mqvae.networks.code_prior import CodePrior
from mqvae.prior.codes import CodeSplit
from mqvae.prior.sampling import images_of, sample_images
from mqvae.prior.settings import PriorSettings
from mqvae.progress import watched_batches
from mqvae.runs.images import Splits
from mqvae.tasks import Metric
from mqvae.tokenizer import Tokenizer
from mqvae.weights import find

BATCH_SIZE = 256
FILE = "samples.csv"


def usual_distance() -> str:
    """The name of the distance that can be had here."""
    return "fid" if find("inception") else "frechet_vgg16"


class SampleDistance:
    """Fréchet distances of a prior's samples from the test images, by training steps.

    Args:
        settings: Of the prior.
        tokenizer: What decodes the samples.
        images: Of the run.

    Attributes:
        points: What was measured, by step.

    Raises:
        WeightsNotFound: if the network that gives the features is not on this machine.
    """

    def __init__(self, settings: PriorSettings, tokenizer: Tokenizer, images: Splits) -> None:
        self.settings, self.tokenizer, self.images = settings, tokenizer, images
        self.name = settings.distance or usual_distance()
        _, make, self.row = maker_of(self.name)
        self.frechet: Frechet = make(images.test, tokenizer.device)
        self.points: dict[int, float] = {}
        self._seconds: dict[int, float] = {}

    def start(self, folder: Path, step: int) -> None:
        """Look at the test images, and take up what samples.csv says of steps up to this one.

        Raises:
            ValueError: if the file is damaged.
        """
        self.file = folder / FILE
        if self.file.is_file():
            try:
                with self.file.open(newline="") as file:
                    rows = [r for r in csv.DictReader(file) if int(r["step"]) <= step]
                self.points = {int(r["step"]): float(r[self.name]) for r in rows}
                self._seconds = {int(r["step"]): float(r["seconds"]) for r in rows}
            except (KeyError, TypeError, ValueError) as error:
                raise MqvaeError(
                    f"{self.file} is damaged ({error}): delete it to continue without it."
                ) from error
            self._write()
        test, device = self.images.test, self.tokenizer.device
        self.frechet.targets = Moments(self.frechet.size)
        for x, _ in watched_batches(test, BATCH_SIZE, "looking at test images", device=device):
            self.frechet.gather(x, self.frechet.targets)

    def due(self, step: int) -> bool:
        """Whether samples should be measured after this step, and were not."""
        here = step % self.settings.samples_every == 0 or step == self.settings.steps
        return step > 0 and here and step not in self.points

    def measure(self, prior: CodePrior, step: int) -> None:
        """Draw samples, the same seed at every step, and write down how far they are."""
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(self.settings.seed)
        with evaluating(prior):
            drawn = sample_images(self.tokenizer, prior, self.settings.samples, generator)
        self.points[step] = self._of(drawn)
        self._seconds[step] = time.perf_counter() - began
        self._write()

    def _write(self) -> None:
        lines = [f"step,seconds,{self.name}"]
        lines += [f"{n},{self._seconds[n]:.8g},{value!r}" for n, value in self.points.items()]
        write_whole(self.file, "\n".join(lines) + "\n")

    def summary(self, train: CodeSplit) -> dict[str, Any]:
        """The last distance and two to hold it against, and all of them by step.

        Args:
            train: Codes of the training images.
        """
        pixels, codes = self._training_images(train)
        return {
            self.name: self.points[self.settings.steps],
            f"{self.name}_reconstructions": self._of(images_of(self.tokenizer, codes)),
            f"{self.name}_training_images": self._of(pixels.float().div(255)),
            "samples": {
                "count": self.settings.samples,
                "distance": self.name,
                "points": [list(point) for point in self.points.items()],
            },
        }

    def metrics(self) -> dict[str, Metric]:
        """What the metrics of `summary` are."""
        test, some = len(self.images.test), min(self.settings.samples, len(self.images.train))
        row, words = self.row, self.frechet.words
        against = f"against the {test:,} test images"
        return {
            self.name: Metric(
                f"{row.title}, samples",
                row.better,
                f"{words}, {self.settings.samples:,} samples of the last step {against}",
            ),
            f"{self.name}_reconstructions": Metric(
                f"{row.title}, training images reconstructed",
                None,
                f"{words}, {some:,} training images as their codes decode {against}: what samples "
                "of a perfect prior would have",
            ),
            f"{self.name}_training_images": Metric(
                f"{row.title}, training images",
                None,
                f"{words}, the same {some:,} images {against}",
            ),
        }

    def _training_images(self, train: CodeSplit) -> tuple[Tensor, Tensor]:
        """As many as there are samples, for the distance depends on the number; and their codes."""
        chosen = order_of(len(train), "prior,distance")[: self.settings.samples]
        pixels, _ = self.images.train.take(chosen)
        codes, _ = train.take(chosen, self.tokenizer.device)
        return pixels, codes

    def _of(self, images: Tensor) -> float:
        """The distance of images (n, C, H, W) in [0, 1]."""
        moments = Moments(self.frechet.size)
        for part in images.split(BATCH_SIZE):
            self.frechet.gather(part.to(self.tokenizer.device), moments)
        return frechet_distance(*moments.compute(alone), *self.frechet.targets.compute(alone))

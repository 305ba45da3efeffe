"""Inception score, and the same score by a classifier of the data set."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.data import Images
from mqvae.data.order import order_of
from mqvae.errors import MqvaeError
from mqvae.metrics.image_metric import PART, ImageMetric

_SPLITS = 10


class ScoreMetric(ImageMetric):
    """exp E KL(p(class | image) ‖ p(class)), of outputs alone, the mean over equal parts.

    Args:
        classes: How many there are.
        images: What is measured on.

    Source:
        Salimans et al. 2016.
    """

    def __init__(self, classes: int, images: Images) -> None:
        self.splits = min(_SPLITS, len(images))
        # One of as many images as there are splits goes to each, in an order that no order of
        # classes, such as 0 … 9, 0 … 9, agrees with.
        blocks = range(-(-len(images) // self.splits))
        self.order = torch.cat([order_of(self.splits, f"score,{block}") for block in blocks])
        self.seen = 0
        # Of each split: the sum of p, the sum of Σ p log p, the number of images.
        self.sums = torch.zeros(self.splits, classes + 2, dtype=torch.float64)

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """(B, classes) of a few images."""

    def update(self, output: Tensor, target: Tensor) -> None:
        for part in output.split(PART):
            with torch.no_grad():
                logits = self.logits(part).cpu().double()
            p = logits.softmax(1)
            negative_entropy = (p * logits.log_softmax(1)).sum(1, keepdim=True)
            rows = torch.cat([p, negative_entropy, torch.ones(len(p), 1, dtype=p.dtype)], dim=1)
            places = torch.arange(self.seen, self.seen + len(p)) % len(self.order)
            self.sums.index_add_(0, self.order[places], rows)
            self.seen += len(p)

    def compute(self, total: Callable[[Tensor], Tensor]) -> float:
        return score(total(self.sums))


def score(sums: Tensor) -> float:
    """The mean score of the splits, by what `ScoreMetric` keeps of them."""
    sums = sums[sums[:, -1] > 0]
    p = sums[:, :-2] / sums[:, -1:]
    divergence = sums[:, -2] / sums[:, -1] - torch.special.xlogy(p, p).sum(1)
    return float(divergence.exp().mean())


@dataclass(frozen=True)
class Classifier:
    """A classifier of images.

    Attributes:
        logits: (B, classes) of images (B, C, H, W) in [0, 1].
        classes: How many there are.
        words: Which it is, for the protocol of what is taken with it.
    """

    logits: Callable[[Tensor], Tensor]
    classes: int
    words: str


class ClassScore(ScoreMetric):
    """The score with a classifier of the same data set: where Inception cannot be had, and not IS.

    It lies between 1 and the number of classes.

    Args:
        images: What is measured on.
        device: Where the classifier is.
        classifier: Trained on images like these.

    Raises:
        ValueError: if there is no classifier.
    """

    def __init__(
        self,
        images: Images,
        device: torch.device | str = "cpu",
        *,
        classifier: Classifier | None = None,
    ) -> None:
        if classifier is None:
            raise MqvaeError(
                "a class score takes a classifier of the same data set: --classifier RUN, as "
                "`mqvae train classifier` makes one."
            )
        super().__init__(classifier.classes, images)
        self.classifier = classifier
        self.protocol = (
            f"not comparable to IS: {classifier.words}; from 1 to {classifier.classes}, mean over "
            f"{self.splits} equal parts of {len(images):,} images"
        )

    def logits(self, images: Tensor) -> Tensor:
        return self.classifier.logits(images)

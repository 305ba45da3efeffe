"""Codes to train and evaluate a prior."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mqvae.data import Images
from mqvae.data.order import order_of
from mqvae.metrics import evaluating
from mqvae.networks.code_prior import CodePrior
from mqvae.tokenizer import Tokenizer

BATCH_SIZE = 256


@dataclass(frozen=True)
class CodeSplit:
    """Codes of a split's images, with their classes.

    Attributes:
        codes: (N, h, w) or (N, h, w, G) int32.
        labels: (N,) classes; None for a prior that is not conditioned on them.
    """

    codes: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, images: Images, *, classes: bool) -> "CodeSplit":
        if not len(images):
            return cls(torch.zeros(0, dtype=torch.int32), None)
        codes = torch.from_numpy(tokenizer.encode_images(images).codes.astype(np.int32))
        return cls(codes, images.labels if classes else None)

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Some of them, on a device; codes as int64."""
        labels = None if self.labels is None else self.labels[indices].to(device)
        return self.codes[indices].to(device).long(), labels


def shuffled(number: int, batch_size: int, *, seed: int, start: int) -> Iterator[Tensor]:
    """Indices of batches without end, those of step `start` first.

    The order of an epoch follows from the seed and its number alone; what fills no batch is left
    out.
    """
    per_epoch = number // batch_size
    epoch, position = divmod(start, per_epoch)
    while True:
        order = order_of(number, f"prior,{seed},{epoch}")[: per_epoch * batch_size]
        yield from order.split(batch_size)[position:]
        epoch, position = epoch + 1, 0


def bits(prior: CodePrior, codes: Tensor, labels: Tensor | None) -> Tensor:
    """−log₂ p of codes, the mean over all of them."""
    logits = prior(codes, labels)
    return F.cross_entropy(logits.flatten(0, -2), codes.flatten()) / math.log(2)


@torch.no_grad()
def bits_of_split(prior: CodePrior, split: CodeSplit, device: torch.device) -> float:
    """`bits` over a whole split."""
    total = 0.0
    with evaluating(prior):
        for indices in torch.arange(len(split)).split(BATCH_SIZE):
            codes, labels = split.take(indices, device)
            total += bits(prior, codes, labels).item() * len(codes)
    return total / len(split)


def independent_bits(train: CodeSplit, test: CodeSplit, num_codes: int) -> float:
    """Mean −log₂ p of the test codes, if each position had its own frequencies and no neighbours.

    The frequencies are the training codes', with a half added to every count.
    """
    counted, looked_up = train.codes.flatten(1).long(), test.codes.flatten(1).long()
    total = 0.0
    for there, here in zip(counted.unbind(1), looked_up.unbind(1), strict=True):
        counts = there.bincount(minlength=num_codes).double() + 0.5
        total -= (counts / counts.sum()).log2()[here].mean().item()
    return total / counted.shape[1]

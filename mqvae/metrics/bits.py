"""Bits that the codes of a split cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mqvae.core.distributed import from_all_processes
from mqvae.core.quantizers import Quantizer
from mqvae.core.usage import CodeCounts
from mqvae.tasks import Metric, metrics_of

# Of a position on the grid of codes: with groups or residual stages the sum over its codes. Neither
# end is good: fewer bits with the same error are better.
BITS = metrics_of("bits")

# Of the codes of test images under a prior, as its own summary has them.
PRIOR = metrics_of("prior")


@dataclass(frozen=True)
class Prior:
    """A model of the probability of codes.

    Attributes:
        bits: Codes of images and their labels (B,) to the mean of −log2 p, a scalar.
        shape: Of an image's codes, (h, w) or (h, w, G).
        described: What it is.
    """

    bits: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...]
    described: str


class CodeBits:
    """Counts what the codes of a split cost, batch by batch.

    Args:
        quantizer: Whose codes they are.
        prior: What they are measured under as well.
        device: Where they are.
    """

    def __init__(self, quantizer: Quantizer, prior: Prior | None, device: torch.device | str):
        self.quantizer, self.prior, self.device = quantizer, prior, device
        self.by_position: CodeCounts | None = None
        self.shape: tuple[int, ...] = ()
        # Positions, pixels, and of those that the prior knows: bits a code × images, and images.
        self.sums = torch.zeros(4, dtype=torch.float64)

    @torch.no_grad()
    def add(self, codes: Tensor, labels: Tensor, pixels: int) -> None:
        """Count a batch.

        Args:
            codes: (B, …), or (B, …, G) with more than one group.
            labels: (B,).
            pixels: Of its images together.
        """
        shape = tuple(codes.shape[1:])
        if self.by_position is None:
            self.shape = shape
            self.by_position = self._counts(math.prod(shape))
        if shape == self.shape:
            self.by_position.add(codes)
        else:
            self.shape = (-1,)  # images of several sizes share no positions
        self.sums[:2] += torch.tensor([codes.numel() / self.quantizer.groups, pixels])
        if self.prior is not None and shape == self.prior.shape:
            bits = self.prior.bits(codes, labels).item() * len(codes)
            self.sums[2:] += torch.tensor([bits, len(codes)], dtype=torch.float64)

    def _counts(self, columns: int) -> CodeCounts:
        return CodeCounts(self.quantizer.num_codes, columns, device=self.device)

    def compute(
        self, counts: CodeCounts, total: Callable[[Tensor], Tensor], *, together: bool
    ) -> tuple[dict[str, float], dict[str, Metric]]:
        """The metrics, and what they are.

        Args:
            counts: Of all codes of the split.
            total: The sum of a tensor over the processes that share the split.
            together: Processes share it: all of them call this.
        """
        groups = self.quantizer.groups
        positions, pixels, bits, images = total(self.sums).tolist()
        entropy = counts.entropy()
        found = {"nominal_bits": groups * math.log2(self.quantizer.num_codes), "entropy": entropy}
        if by_position := self._of_all_processes() if together else self._own():
            mean = by_position.entropy(corrected=True) * groups / by_position.groups
            found["position_entropy"] = mean
        found["bits_per_pixel"] = entropy * positions / pixels
        described = {name: BITS[name] for name in found}
        if self.prior is not None and images:
            found["prior_bits"] = groups * bits / images
            row = BITS["prior_bits"]
            words = row.protocol.format(prior=self.prior.described)
            described["prior_bits"] = replace(row, protocol=words)
        return found, described

    def _own(self) -> CodeCounts | None:
        return None if self.shape == (-1,) else self.by_position

    def _of_all_processes(self) -> CodeCounts | None:
        """Counts by position of all processes, of which some may have had no batch."""
        mixed, counts = self.shape == (-1,), self.by_position
        own = -1 if mixed else 0 if counts is None else counts.groups
        columns = set(from_all_processes(torch.tensor([own], device=self.device)).tolist()) - {0}
        if len(columns) != 1 or -1 in columns:
            return None
        return (self.by_position or self._counts(columns.pop())).of_all_processes()

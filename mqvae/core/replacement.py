"""Dead codes brought back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mqvae.core.distributed import from_first_process, sum_across_processes

if TYPE_CHECKING:
    from mqvae.core.quantizer import VectorQuantizer


class Replacement(ABC):
    """What becomes of codewords that are not used; called when the optimizers have stepped."""

    @abstractmethod
    def __call__(
        self,
        quantizer: VectorQuantizer,
        z_e: Tensor,
        codes: Tensor,
        forget: Callable[[Tensor], None],
    ) -> None:
        """Replace rows of the quantizer's codebook in place.

        Args:
            quantizer: The quantizer, with its buffer `unused_steps`, (rows,).
            z_e: Placed embeddings of the step, (..., D).
            codes: Their codes.
            forget: Makes the update rule forget what it remembers of rows: optimizer moments,
                moving averages.
        """


@dataclass(frozen=True)
class LeastRecentlyUsed(Replacement):
    """A codeword unused for some updates becomes an embedding of the current batch.

    All processes count together and put the same vectors in the same rows.

    Args:
        after: Updates without use after which a codeword is replaced.

    Raises:
        ValueError: if `after` is not positive.

    Source: the paper's "+replace"; Dhariwal et al. 2020, Zeghidour et al. 2021.
    """

    after: int = 50

    def __post_init__(self) -> None:
        if self.after < 1:
            raise ValueError(f"after must be 1 or more updates, got {self.after}.")

    @torch.no_grad()
    def __call__(
        self,
        quantizer: VectorQuantizer,
        z_e: Tensor,
        codes: Tensor,
        forget: Callable[[Tensor], None],
    ) -> None:
        unused = quantizer.get_buffer("unused_steps")
        flat = quantizer.rows(codes).flatten()
        counts = sum_across_processes(torch.bincount(flat, minlength=len(unused)))
        unused.add_(1).masked_fill_(counts > 0, 0)
        dead = (unused >= self.after).nonzero().flatten()
        if not len(dead):
            return
        (weight,) = quantizer.codebook.parameters()
        width = weight.shape[1]
        parts = z_e.reshape(-1, quantizer.groups, width).to(weight.dtype)  # (N, G, D/G)
        if quantizer.shared_codebook or quantizer.groups == 1:
            pool = parts.flatten(0, 1)
            fresh = pool[torch.randint(len(pool), (len(dead),), device=pool.device)]
        else:
            group = dead // quantizer.num_codes
            fresh = parts[torch.randint(len(parts), (len(dead),), device=parts.device), group]
        weight[dead] = from_first_process(fresh)
        unused[dead] = 0
        forget(dead)

"""Dead codes brought back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.distributed import (
    from_first_process,
    process_rank,
    sum_across_processes,
    sums_across_processes,
    world_size,
)


@dataclass(frozen=True)
class Pool:
    """The embeddings of a step, of all processes together: what a codeword may become.

    Attributes:
        parts: This process's own, (N, G, d): those that each of G codebooks chooses for.
        sizes: N of each process, (processes,).
        rows: Number of rows of the table, in which the codebooks lie below each other.
    """

    parts: Tensor
    sizes: Tensor
    rows: int

    def draw(self, rows: Tensor) -> Tensor:
        """A random embedding for each of some rows, (R,), of its own codebook: (R, d).

        Every process gets the same.
        """
        _, groups, dim = self.parts.shape
        if not len(rows):
            return self.parts.new_empty(0, dim)
        group = rows // (self.rows // groups)
        sizes = self.sizes.tolist()
        # The same draw as one process makes that has them all.
        picks = from_first_process(torch.randint(sum(sizes), (len(rows),), device=rows.device))
        picks = picks - sum(sizes[: process_rank()])
        own = (picks >= 0) & (picks < len(self.parts))
        found = self.parts.new_zeros(len(rows), dim)
        found[own] = self.parts[picks[own], group[own]]
        return sum_across_processes(found)


class Replacement(ABC):
    """What becomes of codewords that are not used; asked when the optimizers have stepped."""

    @abstractmethod
    def __call__(self, unused_steps: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
        """The rows of the table to replace, (R,), and what they become, (R, d).

        Several processes must answer alike.

        Args:
            unused_steps: Updates since any process chose a row, (rows,).
            pool: The embeddings of the step.
        """


@dataclass(frozen=True)
class LeastRecentlyUsed(Replacement):
    """A codeword unused for some updates becomes an embedding of the current batch.

    Processes count together and draw from the embeddings of all.

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

    def __call__(self, unused_steps: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
        dead = (unused_steps >= self.after).nonzero().flatten()
        return dead, pool.draw(dead)


def count_uses(rows: Tensor, number: int, size: int) -> tuple[Tensor, Tensor]:
    """How often all processes chose each of `number` rows, and the `size` of each process."""
    sizes = rows.new_zeros(world_size())
    sizes[process_rank()] = size
    counts, sizes = sums_across_processes([torch.bincount(rows, minlength=number), sizes])
    return counts, sizes

"""Revival of dead codes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.distributed import (
    from_first_process,
    process_rank,
    sum_across_processes,
    world_size,
)
from mqvae.core.passes import full
from mqvae.errors import at_least


@dataclass(frozen=True)
class Pool:
    """The embeddings of a step, of all processes together: what a codeword may become."""

    parts: Tensor  # this process's own, (N, G, d): those that each of G codebooks chooses for
    sizes: Tensor  # N of each process, (processes,)
    rows: int  # number of rows of the table, in which the codebooks lie below each other
    mask: Tensor | None = None  # which of `parts` may be drawn, (N, G) bool; None for all

    def draw(self, rows: Tensor) -> Tensor:
        """A random embedding for each of some rows, (R,), of its own codebook: (R, d).

        Every process gets the same, and the same as one process that has all embeddings.
        """
        _, groups, dim = self.parts.shape
        if not len(rows):
            return self.parts.new_empty(0, dim)
        group = rows // (self.rows // groups)
        if self.mask is None:
            own, picks = self._of_all(rows)
        else:
            own, picks = self._of_mask(group, full(self.mask.to(self.parts.dtype)))
        if not len(self.parts):
            return sum_across_processes(self.parts.new_zeros(len(rows), dim))
        found = self.parts[picks.clamp(0, len(self.parts) - 1), group]
        return sum_across_processes(found.where(own[:, None], 0))

    def _of_all(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the rows become embeddings of this process, and where in `parts` these are."""
        before = self.sizes[: process_rank()].sum()
        if world_size() == 1 or readable(rows):
            total = len(self.parts) if world_size() == 1 else int(self.sizes.sum())
            picks = torch.randint(total, (len(rows),), device=rows.device)
        else:
            chance = torch.rand(len(rows), dtype=torch.float64, device=rows.device)
            picks = (chance * self.sizes.sum()).long()
        picks = from_first_process(picks) - before
        return (picks >= 0) & (picks < len(self.parts)), picks

    def _of_mask(self, group: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The same with weights, (N, G), of 1 or 0: stratified, so that few are drawn twice.

        The embeddings of a codebook lie end to end, each as long as its weight, those of all
        processes one after another; each of R rows draws in an R-th of that length.
        """
        # Where a mask is over everything, all are alike.
        weights = weights.clamp(min=torch.finfo(torch.float32).tiny)
        totals = weights.new_zeros(world_size(), weights.shape[1])
        totals[process_rank()] = weights.sum(0)
        ends = sum_across_processes(totals).cumsum(0)  # (processes, G)
        begins = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])[process_rank()]  # (G,)
        codebooks = torch.arange(weights.shape[1], device=group.device)
        same = group[:, None] == codebooks  # (R, G)
        before = (same.cumsum(0) * same).sum(1) - 1  # rows of the same codebook that come before
        chance = from_first_process(torch.rand(len(group), dtype=ends.dtype, device=ends.device))
        at = (before + chance) / same.sum(0)[group] * ends[-1, group]
        # Rounding may lead up to the end, where nobody is.
        end = ends[process_rank()] if process_rank() < world_size() - 1 else ends[-1] * torch.inf
        own = (begins[group] <= at) & (at < end[group])
        inside = (at - begins[group]).expand(weights.shape[1], -1).contiguous()
        found = torch.searchsorted(weights.cumsum(0).T.contiguous(), inside, right=True)  # (G, R)
        picks = found[group, torch.arange(len(group), device=group.device)]
        return own, picks.clamp(max=len(weights) - 1)


class Replacement(ABC):
    """Which unused codewords are replaced, and by what; asked after the optimizers' steps."""

    @abstractmethod
    def __call__(self, unused_steps: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
        """The rows of the table to replace, (R,), and what they become, (R, d).

        A row of −1 replaces nothing: a GPU, which would have to be waited for to know how many
        rows there are, answers for all of them. Several processes must answer alike.

        Args:
            unused_steps: Updates since any process chose a row, (rows,).
            pool: The embeddings of the step.
        """


@dataclass(frozen=True)
class ReplaceUnused(Replacement):
    """Replace a codeword unused for some updates by an embedding of the current batch.

    Processes count together and draw from the embeddings of all.

    Args:
        after: Updates without use after which a codeword is replaced.

    Raises:
        ValueError: if `after` is not positive.

    Source: the paper's "+replace"; Dhariwal et al. 2020, Zeghidour et al. 2021.
    """

    after: int = 50

    def __post_init__(self) -> None:
        at_least(1, after=self.after)

    def __call__(self, unused_steps: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
        due = unused_steps >= self.after
        if readable(due):
            rows = due.nonzero().flatten()
            return rows, pool.draw(rows)
        rows = torch.arange(len(due), device=due.device)
        return rows.where(due, -1), pool.draw(rows)


LeastRecentlyUsed = ReplaceUnused
"""The name of `ReplaceUnused` in version 0.1; read for one version more."""


def readable(tensor: Tensor) -> bool:
    """Whether its values can be read on the host without waiting for a device."""
    return tensor.is_cpu

"""Dead codes brought back."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.distributed import (
    from_first_process,
    mean_across_processes,
    process_rank,
    sum_across_processes,
    world_size,
)
from mqvae.core.passes import full
from mqvae.errors import MqvaeError


@dataclass(frozen=True)
class Pool:
    """The embeddings of a step, of all processes together: what a codeword may become.

    Attributes:
        parts: This process's own, (N, G, d): those that each of G codebooks chooses for.
        sizes: N of each process, (processes,).
        rows: Number of rows of the table, in which the codebooks lie below each other.
        selected: Makes z_q, the codewords that `parts` chose, (N, G, d), as they are now.
        task_gradient: ∂L_task/∂ẑ of `parts`, (N, G, d); None from a rule that does not say it.
        loss: L on this process's batch with rows of the table, (R,), set to codewords, (R, d); None
            from a rule that does not say it.
        mask: Which of `parts` may be drawn, (N, G) bool; None for all.
    """

    parts: Tensor
    sizes: Tensor
    rows: int
    selected: Callable[[], Tensor]
    task_gradient: Tensor | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    mask: Tensor | None = None

    def draw(self, rows: Tensor, placed: "Placement | None" = None) -> Tensor:
        """A random embedding for each of some rows, (R,), of its own codebook: (R, d).

        Every process gets the same, and the same as one process that has all embeddings.

        Args:
            rows: The rows.
            placed: How likely each embedding is; None for all alike.
        """
        _, groups, dim = self.parts.shape
        if not len(rows):
            return self.parts.new_empty(0, dim)
        group = rows // (self.rows // groups)
        if placed is not None:
            weights = placed.weights(self)
        elif self.mask is not None:
            weights = full(self.mask.to(self.parts.dtype))
        else:
            weights = None
        if weights is None:
            own, picks = self._alike(rows)
        else:
            own, picks = self._weighted(group, weights)
        if not len(self.parts):
            return sum_across_processes(self.parts.new_zeros(len(rows), dim))
        found = self.parts[picks.clamp(0, len(self.parts) - 1), group]
        return sum_across_processes(found.where(own[:, None], 0))

    def _alike(self, rows: Tensor) -> tuple[Tensor, Tensor]:
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

    def _weighted(self, group: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The same in proportion to weights, (N, G): stratified, so that few are drawn twice.

        The embeddings of a codebook lie end to end, each as long as its weight, those of all
        processes one after another; each of R rows draws in an R-th of that length.
        """
        # Where all weights are zero, all are alike; what is not finite is nobody's error.
        weights = weights.nan_to_num(0, 0, 0).clamp(min=torch.finfo(torch.float32).tiny)
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


class Placement(ABC):
    """Which embeddings of a step replaced codewords become."""

    @abstractmethod
    def weights(self, pool: Pool) -> Tensor:
        """How likely each of `pool.parts` is, (N, G): 0 or more, none of which needs to be 1."""


@dataclass(frozen=True)
class ByError(Placement):
    """In proportion to ‖z_q − z_e‖²: where the codebook serves worst, as k-means++ starts.

    Source: Arthur & Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
    """

    def weights(self, pool: Pool) -> Tensor:
        away = full(pool.selected()) - full(pool.parts)
        return away.square().sum(-1)


@dataclass(frozen=True)
class ByTaskGradient(Placement):
    """In proportion to max(0, ⟨∂L_task/∂ẑ, z_q − z_e⟩): where a codeword lowers the task loss most.

    That is what the loss would lose, to first order, if the embedding had a codeword of its own.
    Its gradient is of the step's own pass and costs nothing. A frozen encoder gets none: then all
    embeddings are alike.
    """

    def weights(self, pool: Pool) -> Tensor:
        """As `Placement.weights`.

        Raises:
            ValueError: if the update rule did not hand the task gradient over.
        """
        if pool.task_gradient is None:
            raise MqvaeError(
                "ByTaskGradient() needs ∂L_task/∂ẑ, which this update rule does not hand over: "
                "take Joint, Synchronous, Ema or Meta, or use ByError()."
            )
        away = full(pool.selected()) - full(pool.parts)
        return (full(pool.task_gradient) * away).sum(-1).clamp(min=0)


class Replacement(ABC):
    """What becomes of codewords that are not used; asked when the optimizers have stepped."""

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
class LeastRecentlyUsed(Replacement):
    """A codeword unused for some updates becomes an embedding of the current batch.

    Processes count together and draw from the embeddings of all.

    With several draws the batch's loss decides, L(φ', θ', C), when encoder, decoder and codebook
    have stepped: under `Kept()` that is the look-ahead. Each step on which a codeword is replaced
    then costs a forward pass of the encoder, and a search and one of the decoder for each draw;
    and a GPU is waited for at each step, to know whether there is one.

    Args:
        after: Updates without use after which a codeword is replaced.
        placed: Which embeddings: `ByError()` or `ByTaskGradient()`; None draws from all alike.
        draws: How often they are drawn for all codewords that are due; those stay with which the
            loss is least.

    Raises:
        ValueError: if `after` or `draws` is not positive.

    Source: the paper's "+replace"; Dhariwal et al. 2020, Zeghidour et al. 2021.
    """

    after: int = 50
    placed: Placement | None = None
    draws: int = 1

    def __post_init__(self) -> None:
        if self.after < 1:
            raise MqvaeError(f"after must be 1 or more updates, got {self.after}.")
        if self.draws < 1:
            raise MqvaeError(f"draws must be 1 or more, got {self.draws}.")

    def __call__(self, unused_steps: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
        """As `Replacement.__call__`.

        Raises:
            ValueError: if there are several draws, and the update rule did not hand over the loss.
        """
        due = unused_steps >= self.after
        if self.draws == 1 and not readable(due):
            rows = torch.arange(len(due), device=due.device)
            return rows.where(due, -1), pool.draw(rows, self.placed)
        dead = due.nonzero().flatten()
        found = [pool.draw(dead, self.placed) for _ in range(self.draws if len(dead) else 1)]
        if len(found) == 1:
            return dead, found[0]
        if pool.loss is None:
            raise MqvaeError(
                f"draws={self.draws} needs the loss, which this update rule does not hand over: "
                "take Joint, Synchronous, Ema or Meta, or leave draws out."
            )
        (losses,) = mean_across_processes([torch.stack([pool.loss(dead, new) for new in found])])
        return dead, found[int(losses.nan_to_num(torch.inf).argmin())]


ReplaceUnused = LeastRecentlyUsed
"""Another name of `LeastRecentlyUsed`."""


def readable(tensor: Tensor) -> bool:
    """Whether its values can be read on the host without waiting for a device."""
    return tensor.is_cpu

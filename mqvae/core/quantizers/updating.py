"""What a quantizer of one table does between passes: EMA, replacement, prices."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.averages import Averages
from mqvae.core.codebook import Codebook, MovingAverage, Table
from mqvae.core.distance import Distance
from mqvae.core.distributed import process_rank, sums_across_processes, world_size
from mqvae.core.optimizer import forget_rows
from mqvae.core.passes import full
from mqvae.core.quantizers.beginning import BeginningQuantizer
from mqvae.core.rate import Rate
from mqvae.core.replacement import Pool, Replacement, readable

FORGOTTEN = 100  # passes in training without an update, after which a warning says so


class Pending:
    """Statistics of the training passes since the last update, of this process.

    No buffers: what holds a module's buffers alike in all processes, as DistributedDataParallel
    does before a pass, would put one process's in place of all.
    """

    # Embeddings of the last pass that each of G codebooks chooses for, (N, G, d), and which of them
    # count, (N, G) bool or None; None if there was no pass.
    last: tuple[Tensor, Tensor | None] | None = None
    passes = 0  # how many there were, as far as they were counted

    def __init__(self, table: Tensor, books: int, averaged: bool) -> None:
        wide = full(table)
        # How often each row of the table was chosen, (rows,) int64.
        self.counts = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        # Sum of the embeddings that chose it, (rows, d) in float32 at least; or None.
        self.sums = torch.zeros_like(wide) if averaged else None
        self.squares = wide.new_zeros(books)  # sum of ‖z − c‖² for each codebook, (books,)

    def clear(self) -> None:
        """Forget all of it."""
        for tensor in (self.counts, self.squares, self.sums):
            if tensor is not None:
                tensor.zero_()
        self.last = None
        self.passes = 0


class UpdatedQuantizer(BeginningQuantizer):
    """A quantizer of one table that learns from the codes it chose: `VectorQuantizer`."""

    codebook: Codebook
    distance: Distance
    replacement: Replacement | None
    prices: Rate | None
    shared_codebook: bool
    _pending: Pending
    _lent: Averages | None = None

    @property
    def averages(self) -> Averages | None:
        """What makes the codebook a moving average (EMA); None where an optimizer trains it."""
        own = self.codebook.averages if isinstance(self.codebook, MovingAverage) else None
        return own if self._lent is None else self._lent

    @contextmanager
    def averaged_by(self, averages: Averages) -> Iterator[None]:
        """Inside the context the codebook is a moving average with these sums and sizes."""
        self.__dict__["_lent"] = averages  # no module of the quantizer's own
        if self._pending.sums is None:
            self._pending = self._nothing()
        try:
            yield
        finally:
            self.__dict__["_lent"] = None

    def rows(self, codes: Tensor) -> Tensor:
        """Rows of the table that codes select, of the codes' shape."""
        if self.groups > 1 and not self.shared_codebook:
            return codes + torch.arange(self.groups, device=codes.device) * self.num_codes
        return codes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._pending = self._nothing()
        return self

    def _nothing(self) -> Pending:
        """Statistics of no pass."""
        table = self.codebook().detach()
        return Pending(table, len(table) // self.num_codes, self.averages is not None)

    @property
    def updates(self) -> bool:
        """Whether `update` has something to do."""
        wanted = (self.averages, self.replacement, self.prices)
        learns = self.training and self.codebook.learns
        return learns and any(each is not None for each in wanted)

    @torch.no_grad()
    def record(self, z_e: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        self.hear(z_e, mask)
        if not self.updates:
            return
        pending, shape = self._pending, self._parts_shape
        parts = z_e.reshape(shape).to(self.codebook.like.dtype)
        rows = self.rows(codes).flatten()
        ones = torch.ones_like(rows)
        if mask is not None:
            mask = mask.reshape(-1, 1).expand(-1, self.groups).reshape(shape[:2])  # (N, G)
            parts = parts.masked_fill(~mask[..., None], 0)
            ones = mask.flatten().long()
        pending.counts.scatter_add_(0, rows, ones)
        if self.averages is not None and pending.sums is not None:
            vectors = z_e.to(pending.sums.dtype).reshape(-1, shape[2])
            if mask is not None:
                vectors = vectors.masked_fill(~mask.reshape(-1, 1), 0)
            pending.sums.index_add_(0, rows, vectors)
        if self.prices is not None:
            away = full(self.lookup(codes, self.table()).reshape(shape)) - full(parts)
            away = away if mask is None else away.masked_fill(~mask[..., None], 0)
            pending.squares.add_(away.square().sum((0, 2)))
        pending.last = parts, mask
        if not torch.compiler.is_compiling():
            pending.passes += 1
            if pending.passes == FORGOTTEN:
                warnings.warn(
                    f"{type(self).__name__} has made {FORGOTTEN} training passes without update(): "
                    "its EMA, replacement and rate do nothing until you call quantizer.update() "
                    "after each optimizer.step().",
                    stacklevel=2,
                )

    def discard(self) -> None:
        super().discard()
        if self._pending.last is not None:
            self._pending.clear()

    @property
    def _parts_shape(self) -> tuple[int, int, int]:
        """(N, G, D/G), or (N·G, 1, D/G) with a shared codebook."""
        return -1, 1 if self.shared_codebook else self.groups, self.dim // self.groups

    def _learn(self, optimizer: Optimizer | None) -> None:
        pending, averages = self._pending, self.averages
        if not self.updates or (pending.last is None and world_size() == 1):
            return
        table = self.table()
        # Without a pass here, other processes may have had one.
        parts, mask = pending.last or (table.new_zeros(0, *self._parts_shape[1:]), None)
        sizes = None
        if self.replacement is not None:
            sizes = pending.counts.new_zeros(world_size())
            sizes[process_rank()] = len(parts)
        sums = None if averages is None else pending.sums
        squares = None if self.prices is None else pending.squares
        found = sums_across_processes([pending.counts, sizes, sums, squares])
        counts, sizes, sums, squares = found
        assert counts is not None
        if averages is not None and sums is not None:
            averages.follow(self.codebook(), table)
            self.codebook.assign(averages.step(counts, sums, table))
        if self.prices is not None and squares is not None:
            self.prices.update(counts.view(-1, self.num_codes), squares)
        if sizes is not None:
            self._replace(counts, Pool(parts, sizes, len(table), mask), optimizer)
        pending.clear()

    def _replace(self, counts: Tensor, pool: Pool, optimizer: Optimizer | None) -> None:
        assert self.replacement is not None and isinstance(self.codebook, Table)
        weight = self.codebook.weight
        unused = self.get_buffer("unused_steps")
        chosen = counts > 0
        # Where nothing was chosen at all, a mask was over everything.
        unused.add_(chosen.any()).masked_fill_(chosen, 0)
        rows, codewords = self.replacement(unused, pool)
        if readable(rows) and not len(rows):
            return
        codewords = codewords.to(weight.dtype)
        # What is drawn may not be finite; such a row is due again at the next step.
        here = (rows >= 0) & torch.isfinite(codewords).all(1)
        rows = rows.where(here, len(weight))  # one row more takes what replaces nothing
        nowhere = weight.new_zeros(1, weight.shape[1])
        weight.copy_(torch.cat([weight, nowhere]).index_copy_(0, rows, codewords)[:-1])
        replaced = torch.zeros(len(weight) + 1, dtype=torch.bool, device=weight.device)
        replaced = replaced.index_fill_(0, rows, True)[:-1]
        unused.masked_fill_(replaced, 0)
        if optimizer is not None:
            forget_rows(optimizer, weight, replaced)
        if self.averages is not None:
            self.averages.follow(weight, self.table())

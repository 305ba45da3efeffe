"""What training passes leave for `VectorQuantizer.update`."""

from typing import NamedTuple

import torch
from torch import Tensor

from mqvae.core.passes import full


class LastPass(NamedTuple):
    """The last pass, from whose embeddings unused codewords are drawn.

    Attributes:
        parts: Embeddings that each of G codebooks chooses for, (N, G, d).
        mask: Which of them count, (N, G) bool; None for all.
    """

    parts: Tensor
    mask: Tensor | None


class Pending:
    """Statistics of the training passes since the last update, of this process.

    No buffers: what holds a module's buffers alike in all processes, as DistributedDataParallel
    does before a pass, would put one process's in place of all.

    Args:
        like: The table, (rows, d).
        books: Number of codebooks in it.
        averaged: Whether sums are wanted.

    Attributes:
        counts: How often each row was chosen, (rows,) int64.
        sums: Sum of the embeddings that chose it, (rows, d) in float32 at least; or None.
        squares: Sum of ‖z − c‖² for each codebook, (books,).
        last: The last pass; None if there was none.
        passes: How many there were, as far as they were counted.
    """

    last: LastPass | None

    def __init__(self, like: Tensor, books: int, averaged: bool) -> None:
        wide = full(like.detach())
        self.counts = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        self.sums = torch.zeros_like(wide) if averaged else None
        self.squares = wide.new_zeros(books)
        self.last = None
        self.passes = 0

    def clear(self) -> None:
        """Forget all of it."""
        self.counts.zero_()
        self.squares.zero_()
        if self.sums is not None:
            self.sums.zero_()
        self.last = None
        self.passes = 0

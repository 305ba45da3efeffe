"""Codewords as moving averages of the embeddings that choose them (Eq. 17)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mqvae.core.passes import finite_rows, full


class Averages(nn.Module):
    """What makes a codebook a moving average: sums and sizes, one for each row of its table.

        N_k ← γ N_k + (1 − γ) n_k        m_k ← γ m_k + (1 − γ) Σ z_e
        e_k = (m_k + ε e_k) / (N_k + ε)

    They are kept in float32 at least. A row that anything else has set since the last step (an
    initialization, loaded weights, a replacement) starts again as an average of itself.

    Args:
        codewords: What is averaged, (rows, d), as the codebook holds them.
        decay: γ.
        epsilon: ε, smoothing of N, in embeddings.
    """

    sizes: Tensor  # (rows,); 0 before the first step
    sums: Tensor  # (rows, d)
    codewords: Tensor  # (rows, d), as the last step left them

    def __init__(self, codewords: Tensor, decay: float, epsilon: float) -> None:
        super().__init__()
        self.decay = decay
        self.epsilon = epsilon
        self._carried = False
        sums = full(torch.zeros_like(codewords.detach()))
        self.register_buffer("sizes", sums.new_zeros(len(codewords)))
        self.register_buffer("sums", sums)
        self.register_buffer("codewords", torch.zeros_like(codewords.detach()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Averages":
        """As of any module, but in float32 at least: half precision stops a slow average."""
        super()._apply(fn, recurse)
        self.sizes, self.sums = full(self.sizes), full(self.sums)
        return self

    @torch.no_grad()
    def follow(self, codewords: Tensor, table: Tensor) -> None:
        """Take over device and type of the codebook, and rows that anything else has set.

        The table has the codewords where they are compared; both are (rows, d).
        """
        table = full(table)
        self.codewords = self.codewords.to(codewords)
        self.sizes, self.sums = self.sizes.to(table), self.sums.to(table)
        anew = (codewords != self.codewords).any(1) | (self.sizes == 0)
        self.sizes.masked_fill_(anew, 1)
        self.sums = torch.where(anew[:, None], table, self.sums)
        self.codewords.copy_(codewords)

    @torch.no_grad()
    def carry(self, shift: Tensor, codewords: Tensor) -> None:
        """Move what is averaged by (rows, d), as `codewords` have been."""
        self.sums.addcmul_(self.sizes[:, None], shift)
        self.codewords.copy_(codewords)
        self._carried = True

    @torch.no_grad()
    def step(self, counts: Tensor, sums: Tensor, table: Tensor) -> Tensor:
        """Take in counts, (rows,), and sums of a step's embeddings; gives codewords, (rows, d).

        Sums that are not finite are left out, as if no embedding had chosen that row. A row that
        none chose stays where it is to the bit, unless it was carried along.
        """
        table = full(table)
        counts = counts.to(table.dtype) * torch.isfinite(sums).all(1)
        self.sizes.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(finite_rows(sums), 1 - self.decay)
        # A size that falls to nothing would take its sum along, and the codeword with it.
        least = torch.finfo(table.dtype).tiny ** 0.5
        fell = self.sizes < least
        self.sizes.masked_fill_(fell, least)
        self.sums = torch.where(fell[:, None], least * table, self.sums)
        means = (self.sums + self.epsilon * table) / (self.sizes + self.epsilon)[:, None]
        means = means.to(self.codewords.dtype)
        if not self._carried:
            means = torch.where(counts[:, None] > 0, means, self.codewords)
        self._carried = False
        self.codewords.copy_(means)
        return means

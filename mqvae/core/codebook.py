"""What the codebook C is a function of."""

import torch
from torch import Tensor, nn


class Table(nn.Module):
    """C is the parameter itself: one row per codeword.

    Args:
        rows: Number of codewords.
        dim: Dimensions of a codeword.
    """

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        # As spread out as the rows of a freshly initialized linear layer; `initialize` replaces it.
        self.weight = nn.Parameter(torch.randn(rows, dim) / dim**0.5)

    def forward(self) -> Tensor:
        """The codewords, (rows, dim)."""
        return self.weight

    @torch.no_grad()
    def assign(self, codewords: Tensor) -> None:
        """Make `codewords`, (rows, dim), the codebook."""
        self.weight.copy_(codewords)

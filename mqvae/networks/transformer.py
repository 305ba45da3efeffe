"""A transformer over codes: how likely they are, one after the other."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mqvae.errors import MqvaeError
from mqvae.networks.code_prior import CodePrior

SPREAD = 0.02  # of the first weights


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, before: Tensor | None = None, place: int = 0) -> Tensor:
        """What follows from n positions, (B, n, width), or from that at `place` and those before.

        `before` has keys and values of earlier positions, (2, B, heads, T, width/heads), to which
        those of this one are added.
        """
        count, length, width = x.shape
        parts = self.queries_keys_values(self.norms[0](x)).view(count, length, 3, self.heads, -1)
        # (B, heads, n, width/heads) each
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind()
        if before is None:
            found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        else:
            before[:, :, :, place] = torch.stack([keys, values])[:, :, :, 0]
            keys, values = before[:, :, :, : place + 1].unbind()
            found = F.scaled_dot_product_attention(queries, keys, values)
        x = x + self.out(found.transpose(1, 2).reshape(count, length, width))
        return x + self.feed_forward(self.norms[1](x))


class CodeTransformer(CodePrior):
    """A `CodePrior` of attention: each code sees all before it at once, however far away.

    Args:
        num_codes: Number K of values of a code.
        shape: (h, w), or (h, w, G) with more than one code a position.
        width: Channels.
        layers: Blocks of attention and feed-forward network.
        heads: Heads of the attention, which divide the width.
        classes: Number of classes to be conditioned on; 0 for none.

    Example:
        >>> prior = CodeTransformer(512, (16, 16), width=64, layers=4)
        >>> prior(torch.zeros(2, 16, 16, dtype=torch.long)).shape
        torch.Size([2, 16, 16, 512])

    Source: Esser et al. 2021, "Taming transformers for high-resolution image synthesis".
    """

    def __init__(
        self,
        num_codes: int,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        layers: int = 8,
        heads: int = 4,
        classes: int = 0,
    ) -> None:
        super().__init__(num_codes, shape, width=width, layers=layers, classes=classes)
        if heads < 1 or width % heads:
            raise MqvaeError(f"heads must divide the width, {width}, got {heads}.")
        self.heads = heads
        self.places = nn.Parameter(torch.zeros(self.rows * self.columns, width))
        self.start = nn.Embedding(max(1, classes), width)  # before the first code: the class
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=SPREAD)

    def logits(self, embedded: Tensor, labels: Tensor | None = None) -> Tensor:
        """`forward` from embeddings, (B, K, h, w·G)."""
        codes = embedded.flatten(2).transpose(1, 2)  # (B, T, width)
        x = torch.cat([self._start(labels, len(codes)), codes[:, :-1]], 1) + self.places
        for block in self.blocks:
            x = block(x)
        found = self.head(self.norm(x))  # (B, T, K)
        return found.transpose(1, 2).unflatten(2, (self.rows, self.columns))

    def _start(self, labels: Tensor | None, count: int) -> Tensor:
        """What stands before the first code, (B, 1, width)."""
        if labels is None:
            labels = torch.zeros(count, dtype=torch.int64, device=self.places.device)
        return self.start(labels)[:, None]

    def _walk(
        self, choose: Callable[[Tensor, int, int], Tensor], count: int, labels: Tensor | None
    ) -> Tensor:
        length, offsets = len(self.places), self._offsets().tolist()
        # Keys and values of each block.
        size = (2, count, self.heads, length, self.width // self.heads)
        caches = [self.places.new_zeros(size) for _ in self.blocks]
        grid = torch.zeros(count, self.rows, self.columns, dtype=torch.int64)
        x = self._start(labels, count)
        for place in range(length):
            x = x + self.places[place]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache, place)
            row, column = divmod(place, self.columns)
            codes = choose(self.head(self.norm(x))[:, 0], row, column)
            grid[:, row, column] = codes.cpu()
            x = self.embedding(codes.to(self.places.device) + offsets[column])[:, None]
        return grid

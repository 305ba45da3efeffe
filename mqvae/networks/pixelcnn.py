"""The gated PixelCNN (van den Oord et al. 2016): how likely codes are, one after the other."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mqvae.errors import MqvaeError
from mqvae.networks.code_prior import CodePrior


class GatedLayer(nn.Module):
    """One layer of both stacks.

    The vertical stack knows the rows above a position, the horizontal one also what is to its left.
    The first layer leaves the position itself out (the paper's mask A), the others take it in (B).
    There are no masks: a window that ends where it must is padded and cut instead. It goes `reach`
    rows and columns away, half of the paper's kernel.
    """

    def __init__(self, width: int, reach: int, *, first: bool, classes: int) -> None:
        super().__init__()
        self.reach = reach
        self.first = first
        self.length = reach + (not first)  # of a window, up to or including the position
        self.vertical = nn.Conv2d(width, 2 * width, (self.length, 2 * reach + 1))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, self.length))
        self.across = nn.Conv2d(2 * width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        self.of_class = nn.Embedding(classes, 4 * width) if classes else None

    def biases(self, labels: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """What the classes add to either stack, (B, 2·width, 1, 1)."""
        if self.of_class is None or labels is None:
            return 0.0, 0.0
        vertical, horizontal = self.of_class(labels)[:, :, None, None].chunk(2, dim=1)
        return vertical, horizontal

    def above(self, window: Tensor, bias: Tensor | float) -> tuple[Tensor, Tensor]:
        """The vertical stack over padded rows: what it gives on, and what the horizontal one gets.

        The window of n rows is (B, width, n − 1 + length, w + 2·reach).
        """
        rows = self.vertical(window)
        return gate(rows + bias), self.across(rows)

    def beside(self, window: Tensor, above: Tensor, before: Tensor, bias: Tensor | float) -> Tensor:
        """The horizontal stack over padded columns, added to that of the layer before.

        The window of n rows and m columns is (B, width, n, m − 1 + length).
        """
        return before + self.out(gate(self.horizontal(window) + above + bias))

    def forward(
        self, v: Tensor, h: Tensor, before: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both stacks over the whole grid, (B, width, h, w) each."""
        of_vertical, of_horizontal = self.biases(labels)
        end = -1 if self.first else 0  # without the last row or column
        r = self.reach
        v, above = self.above(F.pad(v, (r, r, r, end)), of_vertical)
        return v, self.beside(F.pad(h, (r, end)), above, before, of_horizontal)


class PixelCNN(CodePrior):
    """The gated PixelCNN, a `CodePrior` of convolutions.

    Every place has a learned embedding too, where the horizontal stack begins.

    Args:
        num_codes: Number K of values of a code.
        shape: (h, w), or (h, w, G) with more than one code a position.
        width: Channels of either stack.
        layers: Gated layers.
        kernel: Side of the paper's kernels, an odd number of 3 or more. All that comes before a
            position is seen if layers · (kernel − 1) / 2 is the grid's longer side or more.
        classes: Number of classes to be conditioned on; 0 for none.

    Example:
        >>> prior = PixelCNN(512, (7, 7), width=32, layers=7)
        >>> prior(torch.zeros(2, 7, 7, dtype=torch.long)).shape
        torch.Size([2, 7, 7, 512])
        >>> prior.sample(4).shape
        torch.Size([4, 7, 7])

    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders".
    """

    def __init__(
        self,
        num_codes: int,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        layers: int = 8,
        kernel: int = 3,
        classes: int = 0,
    ) -> None:
        super().__init__(num_codes, shape, width=width, layers=layers, classes=classes)
        if kernel < 3 or kernel % 2 == 0:
            raise MqvaeError(f"kernel must be an odd number of 3 or more, got {kernel}.")
        self.reach = kernel // 2
        self.places = nn.Parameter(torch.zeros(width, self.rows, self.columns))
        self.layers = nn.ModuleList(
            GatedLayer(width, self.reach, first=i == 0, classes=classes) for i in range(layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, num_codes, 1),
        )

    def logits(self, embedded: Tensor, labels: Tensor | None = None) -> Tensor:
        """`forward` from embeddings, (B, K, h, w·G)."""
        v = h = embedded
        before = self.places  # the first layer must not see the code itself
        for layer in self.layers:
            v, h = layer(v, h, before, labels)
            before = h
        return self.head(h)

    def _walk(
        self, choose: Callable[[Tensor, int, int], Tensor], count: int, labels: Tensor | None
    ) -> Tensor:
        # The vertical stack is computed once a row, the horizontal one once a code, for one row or
        # code and from what earlier ones have left.
        layers: list[GatedLayer] = list(self.layers)  # type: ignore[arg-type]
        biases = [layer.biases(labels) for layer in layers]
        r, offsets, empty = self.reach, self._offsets().tolist(), self.places.new_zeros
        grid = torch.zeros(count, self.rows, self.columns, dtype=torch.int64)
        # What goes into each layer, behind the zeros that pad it.
        into_v = [empty(count, self.width, r + self.rows, self.columns + 2 * r) for _ in layers]
        into_h = [empty(count, self.width, 1, r + self.columns) for _ in layers]
        for i in range(self.rows):
            above = []
            for n, layer in enumerate(layers):
                v, down = layer.above(into_v[n][:, :, i : i + layer.length], biases[n][0])
                above.append(down)
                if n + 1 < len(layers):
                    into_v[n + 1][:, :, r + i, r : r + self.columns] = v[:, :, 0]
            for j in range(self.columns):
                h = self.places[:, i : i + 1, j : j + 1]
                for n, layer in enumerate(layers):
                    if n:
                        into_h[n][:, :, :, r + j] = h[..., 0]
                    window = into_h[n][..., j : j + layer.length]
                    h = layer.beside(window, above[n][..., j : j + 1], h, biases[n][1])
                codes = choose(self.head(h)[:, :, 0, 0], i, j)
                grid[:, i, j] = codes.cpu()
                # (count, width)
                embedded = self.embedding(codes.to(self.places.device) + offsets[j])
                into_v[0][:, :, r + i, r + j] = embedded
                into_h[0][:, :, 0, r + j] = embedded
        return grid


def gate(x: Tensor) -> Tensor:
    """tanh(a) · σ(b), a and b the halves of the channels."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()

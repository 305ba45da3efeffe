"""The gated PixelCNN (van den Oord et al. 2016): how likely codes are, one after the other."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mqvae.errors import MqvaeError
from mqvae.networks.architecture import MOST_LAYERS


class GatedLayer(nn.Module):
    """One layer of both stacks.

    The vertical stack knows the rows above a position, the horizontal one also what is to its left.
    The first layer leaves the position itself out (the paper's mask A), the others take it in (B).
    There are no masks: a window that ends where it must is padded and cut instead.

    Args:
        width: Channels of either stack.
        reach: How many rows and columns away a window goes, half of the paper's kernel.
        first: This is the first layer.
        classes: Number of classes that it is conditioned on; 0 for none.
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

        Args:
            window: (B, width, n − 1 + length, w + 2·reach) for n rows.
            bias: Of the vertical stack.
        """
        rows = self.vertical(window)
        return gate(rows + bias), self.across(rows)

    def beside(self, window: Tensor, above: Tensor, before: Tensor, bias: Tensor | float) -> Tensor:
        """The horizontal stack over padded columns.

        Args:
            window: (B, width, n, m − 1 + length) for n rows and m columns.
            above: What the vertical stack says there.
            before: What is added, the horizontal stack there one layer before.
            bias: Of the horizontal stack.
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


class PixelCNN(nn.Module):
    """p(codes) = Π p(code | the codes before it), in raster order, groups innermost.

    A grid of G codes a position is taken as one of w·G columns, so that a code knows those of the
    groups before it. Every place has a learned embedding too, where the horizontal stack begins.

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
        super().__init__()
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise MqvaeError(f"shape must be (h, w) or (h, w, G), got {tuple(shape)}.")
        for name, value in (("num_codes", num_codes), ("width", width), ("layers", layers)):
            if value < 1:
                raise MqvaeError(f"{name} must be 1 or more, got {value}.")
        if layers > MOST_LAYERS:
            raise MqvaeError(f"layers must be {MOST_LAYERS:,} or less, got {layers}.")
        if kernel < 3 or kernel % 2 == 0:
            raise MqvaeError(f"kernel must be an odd number of 3 or more, got {kernel}.")
        if classes < 0:
            raise MqvaeError(f"classes must be 0 or more, got {classes}.")
        self.num_codes = num_codes
        self.shape = tuple(shape)
        self.groups = shape[2] if len(shape) == 3 else 1
        self.rows, self.columns = shape[0], shape[1] * self.groups
        self.width = width
        self.reach = kernel // 2
        self.classes = classes
        self.embedding = nn.Embedding(self.groups * num_codes, width)
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

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of every code given those before it.

        Args:
            codes: (B, h, w) or (B, h, w, G) integers.
            labels: (B,) classes, if it is conditioned on them.

        Returns:
            (B, h, w, K) or (B, h, w, G, K).

        Raises:
            ValueError: if shapes do not fit, or classes are missing or not expected.
        """
        self._check(codes, labels)
        logits = self.logits(self.embed(codes), labels)  # (B, K, h, w·G)
        return logits.movedim(1, -1).unflatten(2, self.shape[1:])

    def embed(self, codes: Tensor) -> Tensor:
        """Embeddings of codes, (B, width, h, w·G)."""
        grid = codes.long().flatten(2)  # (B, h, w·G)
        return self.embedding(grid + self._offsets()).movedim(-1, 1)

    def logits(self, embedded: Tensor, labels: Tensor | None = None) -> Tensor:
        """`forward` from embeddings, (B, K, h, w·G)."""
        v = h = embedded
        before = self.places  # the first layer must not see the code itself
        for layer in self.layers:
            v, h = layer(v, h, before, labels)
            before = h
        return self.head(h)

    @torch.no_grad()
    def prices(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of all codes of each image, and of them with another code at one place.

        What another code does to the bits of those after it is linearized by its embedding.

        Args:
            codes: (B, h, w) or (B, h, w, G) integers.

        Returns:
            −log₂ p, (B,), and, up to a constant of each place, what it would be with every code k
            there: (B, h, w, K) or (B, h, w, G, K).

        Raises:
            ValueError: if it is conditioned on classes, or shapes do not fit.
        """
        self._check(codes, None)
        with torch.enable_grad():
            embedded = self.embed(codes).detach().requires_grad_()
            own = -self.logits(embedded).log_softmax(1) / math.log(2)  # (B, K, h, w·G)
            bits = own.gather(1, codes.long().flatten(2)[:, None]).flatten(1).sum(1)
            (slope,) = torch.autograd.grad(bits.sum(), embedded)
        tables = self.embedding.weight.view(self.groups, self.num_codes, self.width)
        later = torch.einsum("bdhwg,gkd->bhwgk", slope.unflatten(3, (-1, self.groups)), tables)
        prices = own.detach().movedim(1, -1).unflatten(2, (-1, self.groups)) + later
        return bits.detach(), prices if self.shape[2:] else prices.flatten(2, 3)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        *,
        labels: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw codes.

        Args:
            count: How many grids.
            labels: (count,) classes, if it is conditioned on them.
            temperature: Logits are divided by it; below 1 for likelier codes.
            generator: Source of randomness, on the CPU; the global one if None.

        Returns:
            (count, h, w) or (count, h, w, G) int64.

        Raises:
            ValueError: if an argument is out of range.
        """
        if not 0 < temperature < float("inf"):
            raise MqvaeError(f"temperature must be above 0, got {temperature}.")

        def draw(logits: Tensor, row: int, column: int) -> Tensor:
            # On the CPU, so that a seed draws the same on every device.
            odds = (logits.float().cpu() / temperature).softmax(-1)
            return torch.multinomial(odds, 1, generator=generator).squeeze(1)

        return self.walk(draw, count, labels=labels)

    @torch.no_grad()
    def walk(
        self,
        choose: Callable[[Tensor, int, int], Tensor],
        count: int,
        *,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Go through the grid code by code, each chosen with the logits given those before it.

        Nothing is computed twice: the vertical stack is, once a row, the horizontal one, once a
        code, for one row or code and from what earlier ones have left.

        Args:
            choose: From logits (count, K), the row and the column (of w·G), codes (count,).
            count: How many grids.
            labels: (count,) classes, if it is conditioned on them.

        Returns:
            (count, h, w) or (count, h, w, G) int64.

        Raises:
            ValueError: if `count` is less than 1, or classes are missing or not expected.
        """
        if count < 1:
            raise MqvaeError(f"count must be 1 or more, got {count}.")
        self._check_labels(labels, count)
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
                embedded = self.embedding(
                    codes.to(self.places.device) + offsets[j]
                )  # (count, width)
                into_v[0][:, :, r + i, r + j] = embedded
                into_h[0][:, :, 0, r + j] = embedded
        return grid.view(count, *self.shape)

    def _offsets(self) -> Tensor:
        """Where the embeddings of a column's group begin, (w·G,)."""
        columns = torch.arange(self.columns, device=self.places.device)
        return columns % self.groups * self.num_codes

    def _check(self, codes: Tensor, labels: Tensor | None) -> None:
        if tuple(codes.shape[1:]) != self.shape:
            raise MqvaeError(
                f"codes must be (B, {', '.join(map(str, self.shape))}), got {tuple(codes.shape)}."
            )
        self._check_labels(labels, len(codes))

    def _check_labels(self, labels: Tensor | None, count: int) -> None:
        if not self.classes:
            if labels is not None:
                raise MqvaeError("this PixelCNN is not conditioned on classes: leave out labels.")
        elif labels is None or labels.shape != (count,):
            got = "none" if labels is None else tuple(labels.shape)
            raise MqvaeError(f"labels must be ({count},) classes, got {got}.")
        elif not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise MqvaeError(
                f"labels must lie in 0 … {self.classes - 1}, got {int(labels.min())} … "
                f"{int(labels.max())}."
            )


def gate(x: Tensor) -> Tensor:
    """tanh(a) · σ(b), a and b the halves of the channels."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()

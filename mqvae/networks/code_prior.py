"""What networks have in common that say how likely codes are, one after the other."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mqvae.errors import MqvaeError, at_least, at_most
from mqvae.networks.architecture import MOST_LAYERS


class CodePrior(nn.Module, ABC):
    """p(codes) = Π p(code | the codes before it), in raster order, groups innermost.

    A grid of G codes a position is taken as one of w·G columns, so that a code knows those of the
    groups before it. The kinds are `PixelCNN` and `CodeTransformer`.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, num_codes: int, shape: tuple[int, ...], *, width: int, layers: int, classes: int
    ) -> None:
        super().__init__()
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise MqvaeError(f"shape must be (h, w) or (h, w, G), got {tuple(shape)}.")
        at_least(1, num_codes=num_codes, width=width, layers=layers)
        at_most(MOST_LAYERS, layers=layers)
        at_least(0, classes=classes)
        self.num_codes = num_codes
        self.shape = tuple(shape)
        self.groups = shape[2] if len(shape) == 3 else 1
        self.rows, self.columns = shape[0], shape[1] * self.groups
        self.width = width
        self.classes = classes
        self.embedding = nn.Embedding(self.groups * num_codes, width)

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

    @abstractmethod
    def logits(self, embedded: Tensor, labels: Tensor | None = None) -> Tensor:
        """`forward` from embeddings, (B, K, h, w·G)."""

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

        Nothing is computed twice.

        Args:
            choose: From logits (count, K), the row and the column (of w·G), codes (count,).
            count: How many grids.
            labels: (count,) classes, if it is conditioned on them.

        Returns:
            (count, h, w) or (count, h, w, G) int64.

        Raises:
            ValueError: if `count` is less than 1, or classes are missing or not expected.
        """
        at_least(1, count=count)
        self._check_labels(labels, count)
        return self._walk(choose, count, labels).view(count, *self.shape)

    @abstractmethod
    def _walk(
        self, choose: Callable[[Tensor, int, int], Tensor], count: int, labels: Tensor | None
    ) -> Tensor:
        """`walk`; (count, h, w·G) on the CPU."""

    def _offsets(self) -> Tensor:
        """Where the embeddings of a column's group begin, (w·G,)."""
        columns = torch.arange(self.columns, device=self.embedding.weight.device)
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
                raise MqvaeError(
                    f"this {type(self).__name__} is not conditioned on classes: leave out labels."
                )
        elif labels is None or labels.shape != (count,):
            got = "none" if labels is None else tuple(labels.shape)
            raise MqvaeError(f"labels must be ({count},) classes, got {got}.")
        elif not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise MqvaeError(
                f"labels must lie in 0 … {self.classes - 1}, got {int(labels.min())} … "
                f"{int(labels.max())}."
            )

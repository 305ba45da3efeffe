"""The nearest codeword for every embedding."""

from collections.abc import Callable

import torch
from torch import Tensor

from mqvae.core.codebook import CodebookMap, Table
from mqvae.core.distance import Distance, Euclidean
from mqvae.core.estimator import Estimator, StraightThrough
from mqvae.core.initialization import kmeans
from mqvae.core.nearest import nearest
from mqvae.core.passes import full
from mqvae.core.quantizer.base import CodebookQuantizer, Quantized
from mqvae.core.rate import Rate, RateAware
from mqvae.core.replacement import Pool, Replacement, count_uses
from mqvae.core.selection import select
from mqvae.core.transport import Transport
from mqvae.errors import MqvaeError


class VectorQuantizer(CodebookQuantizer):
    """Replaces every embedding by its nearest codeword.

    The layer is a pure function of its input and its codebook: no forward pass changes its state.

    Args:
        num_codes: Number of codewords K of each codebook.
        dim: Dimensions D of an embedding.
        groups: G > 1 cuts an embedding into G parts of D/G dimensions, quantized apart
            (the paper's "+group").
        shared_codebook: All groups choose from one codebook instead of one each.
        codebook: What the codewords are a function of: `Table()`, `Affine()`, `LinearMap()`,
            `HyperNetwork()`.
        distance: What is near: `Euclidean()` or `Cosine()`.
        estimator: How gradients pass: `StraightThrough()` or `Rotation()`.
        replacement: What brings unused codewords back (the paper's "+replace"); None for nothing.
        rate: Bits that a code may cost, which its choice then weighs against distance; None for
            the nearest codeword whatever it costs.

    Raises:
        ValueError: if a size is not positive, `groups` does not divide `dim`, or codewords of
            the map cannot be replaced.

    Example:
        >>> quantizer = VectorQuantizer(num_codes=512, dim=64)
        >>> quantized = quantizer(torch.randn(8, 7, 7, 64))
        >>> quantized.z_q.shape, quantized.codes.shape
        (torch.Size([8, 7, 7, 64]), torch.Size([8, 7, 7]))

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        groups: int = 1,
        shared_codebook: bool = False,
        codebook: CodebookMap | None = None,
        distance: Distance | None = None,
        estimator: Estimator | None = None,
        replacement: Replacement | None = None,
        rate: RateAware | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_codes", num_codes), ("dim", dim), ("groups", groups)):
            if value < 1:
                raise MqvaeError(f"{name} must be 1 or more, got {value}.")
        if dim % groups:
            divisors = [g for g in range(1, min(dim, 64) + 1) if dim % g == 0]
            raise MqvaeError(
                f"groups must divide dim: got groups={groups}, dim={dim}. "
                f"Groups that would do: {divisors}."
            )
        self.num_codes = num_codes
        self.dim = dim
        self.groups = groups
        self.shared_codebook = shared_codebook
        self.codebook_map = Table() if codebook is None else codebook
        self.distance = Euclidean() if distance is None else distance
        self.estimator = StraightThrough() if estimator is None else estimator
        self.replacement = replacement
        # Codebooks of several groups lie below each other: code k of group g is row g·K + k.
        rows = num_codes * (1 if shared_codebook else groups)
        self.codebook = self.codebook_map.build(rows, dim // groups)
        if replacement is not None:
            if not isinstance(self.codebook_map, Table):
                raise MqvaeError(
                    f"codewords of a {type(self.codebook_map).__name__} cannot be replaced one by "
                    "one, they share parameters: leave out the replacement, or use Table()."
                )
            self.register_buffer("unused_steps", torch.zeros(rows, dtype=torch.int64))
        self.rate = rate
        self.prices = None if rate is None else Rate(rate, rows // num_codes, num_codes)

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, dim={self.dim}, groups={self.groups}"

    def table(self) -> Tensor:
        device = next(self.codebook.parameters()).device.type
        # A map is a layer to autocast, but codewords in half precision are other codewords.
        with torch.autocast(device, enabled=False):
            return self.distance.place(self.codebook())

    def place(self, z_e: Tensor) -> Tensor:
        return self._join(self.distance.place(self._split(z_e)))

    def _split(self, z: Tensor) -> Tensor:
        return z.unflatten(-1, (self.groups, -1)) if self.groups > 1 else z  # (..., G, D/G)

    def _join(self, z: Tensor) -> Tensor:
        return z.flatten(-2) if self.groups > 1 else z  # (..., D)

    @torch.no_grad()
    def nearest_codes(self, z_e: Tensor, table: Tensor) -> Tensor:
        self.check_width(z_e)
        price = None if self.prices is None else self.prices.price().flatten()  # (rows,)
        if self.groups == 1:
            return nearest(z_e.reshape(-1, self.dim), table, price).view(z_e.shape[:-1])
        parts = z_e.reshape(-1, self.groups, self.dim // self.groups).unbind(1)  # G × (N, D/G)
        alike = self.shared_codebook
        books = [table] * self.groups if alike else table.chunk(self.groups)
        prices = [price] * self.groups if alike or price is None else price.chunk(self.groups)
        codes = [nearest(*each) for each in zip(parts, books, prices, strict=True)]
        return torch.stack(codes, 1).view(*z_e.shape[:-1], self.groups)

    def rows(self, codes: Tensor) -> Tensor:
        """Rows of the table that codes select, of the codes' shape."""
        if self.groups > 1 and not self.shared_codebook:
            return codes + torch.arange(self.groups, device=codes.device) * self.num_codes
        return codes

    def by_codebook(self, z_e: Tensor) -> list[Tensor]:
        """Placed embeddings (..., D), cut and sorted by the codebook they choose from.

        Returns:
            (N, D/G) for each codebook, as they lie below each other in the table.
        """
        parts = z_e.reshape(-1, self.groups, self.dim // self.groups)  # (N, G, D/G)
        if self.shared_codebook or self.groups == 1:
            return [parts.flatten(0, 1)]
        return list(parts.unbind(1))

    def lookup(self, codes: Tensor, table: Tensor) -> Tensor:
        rows = self.rows(codes)
        # Unlike `embedding`, its gradient is a plain sum by row, on every device.
        return self._join(table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1]))

    @torch.no_grad()
    def transported(
        self, transport: Transport, codes: Tensor, z_e: Tensor, change: Tensor
    ) -> Tensor:
        chosen = codes.reshape(-1, self.groups)  # (N, G)
        one = self.shared_codebook or self.groups == 1
        books = self.table().chunk(1 if one else self.groups)
        of_book = [chosen.flatten()] if one else chosen.unbind(1)
        parts = zip(books, of_book, self.by_codebook(z_e), self.by_codebook(change), strict=True)
        return torch.cat([transport(*each) for each in parts])

    def translated(self, by: Tensor) -> Tensor:
        return self.distance.place(self.table() + by)

    @torch.no_grad()
    def translate(self, by: Tensor) -> None:
        self.codebook.translate(by * self.distance.scale(self.codebook()))

    def at_codes(self, z_e: Tensor, codes: Tensor, table: Tensor) -> Quantized:
        if not isinstance(self.estimator, StraightThrough):
            return super().at_codes(z_e, codes, table)
        parts = z_e.reshape(-1, self.dim // self.groups)
        rows = self.rows(codes).flatten()
        with torch.autocast(z_e.device.type, enabled=False):
            z_q, commitment, codebook = select(parts, table, rows)
        return Quantized(z_q.view(z_e.shape), codes, commitment, codebook)

    def codebook_loss(self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor) -> Tensor:
        return (z_e - z_q).square().mean()

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Set the codewords to the k-means centres of real embeddings.

        Args:
            z_e: Embeddings, (..., D); some ten per codeword are plenty.
            generator: Source of randomness, on the device of `z_e`.

        Raises:
            ValueError: if an embedding or a centre is not finite.
        """
        self.check_width(z_e)
        wide = z_e.detach().to(torch.promote_types(z_e.dtype, torch.float32))
        samples = self.by_codebook(self.place(wide))
        self.assign(torch.cat([kmeans(s, self.num_codes, generator=generator) for s in samples]))

    @torch.no_grad()
    def assign(self, codewords: Tensor) -> None:
        """Make codewords the codebook, and forget how long the old ones went unused.

        Args:
            codewords: (rows, D/G), codebooks of several groups below each other.

        Raises:
            ValueError: if a number is not finite in the codebook's type.
        """
        dtype = next(self.codebook.parameters()).dtype
        if not torch.isfinite(codewords.to(dtype)).all():
            raise MqvaeError(
                f"codewords must be finite numbers of the codebook's type, {dtype}, got inf or "
                "nan: train in a wider type, or look for what made the embeddings so large."
            )
        self.codebook.assign(codewords)
        self.forget_use()

    def forget_use(self) -> None:
        if self.replacement is not None:
            self.get_buffer("unused_steps").zero_()
        if self.prices is not None:
            self.prices.reset()

    @torch.no_grad()
    def after_step(
        self,
        z_e: Tensor,
        codes: Tensor,
        forget: Callable[[Tensor], None],
        task_gradient: Tensor | None = None,
        loss: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        trained = any(p.requires_grad for p in self.codebook.parameters())
        if not self.training or not trained or (self.replacement is None and self.prices is None):
            return
        table = self.table()
        # (N, G, D/G), or (N·G, 1, D/G) with a shared codebook.
        shape = (-1, 1 if self.shared_codebook else self.groups, table.shape[1])
        parts = z_e.reshape(shape).to(table.dtype)
        counts, sizes = count_uses(self.rows(codes).flatten(), len(table), len(parts))
        if self.prices is not None:
            away = full(self.lookup(codes, table).reshape(shape)) - full(parts)
            self.prices.update(counts.view(-1, self.num_codes), away.square().sum((0, 2)))
        if self.replacement is None:
            return
        (weight,) = self.codebook.parameters()
        unused = self.get_buffer("unused_steps")
        unused.add_(1).masked_fill_(counts > 0, 0)

        def judged(rows: Tensor, codewords: Tensor) -> Tensor:
            assert loss is not None
            changed = weight.index_copy(0, rows, codewords.to(weight.dtype))
            return loss(self.distance.place(changed))

        pool = Pool(
            parts,
            sizes,
            len(weight),
            selected=lambda: self.lookup(codes, self.table()).reshape(shape),
            task_gradient=None if task_gradient is None else task_gradient.reshape(shape),
            loss=None if loss is None else judged,
        )
        rows, codewords = self.replacement(unused, pool)
        if len(rows):
            codewords = codewords.to(weight.dtype)
            # What is drawn may not be finite; such a row is due again at the next step.
            finite = torch.isfinite(codewords).all(1)
            rows = rows[finite]
            weight[rows] = codewords[finite]
            unused[rows] = 0
            forget(rows)

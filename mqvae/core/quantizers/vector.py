"""The nearest codeword for every embedding."""

import torch
from torch import Tensor, nn

from mqvae.core.codebook import Codebook, Table
from mqvae.core.distance import Distance, Euclidean
from mqvae.core.estimator import Estimator, StraightThrough
from mqvae.core.initialization import kmeans
from mqvae.core.nearest import nearest
from mqvae.core.passes import full, without_autocast
from mqvae.core.quantizers.quantized import Quantized, mean_square
from mqvae.core.quantizers.updating import UpdatedQuantizer
from mqvae.core.rate import Rate, RateAware
from mqvae.core.replacement import Replacement
from mqvae.core.selection import codebook_gradient, select
from mqvae.core.transport import Transport
from mqvae.errors import MqvaeError, at_least


class VectorQuantizer(UpdatedQuantizer):
    """Replaces every embedding by its nearest codeword.

    In anybody's own training loop:

        out = quantizer(encoder(x))
        loss = mse(decoder(out.z_q), x) + 0.25 * out.commitment_loss + out.codebook_loss
        loss.backward(); optimizer.step()
        quantizer.update()

    A pass in training mode leaves statistics behind, which `update` applies: EMA, replacement and
    prices of codes. Nothing else changes its state. A quantizer that has something to apply and is
    never updated warns once; a compiled one does not, as it counts no passes.

    Args:
        num_codes: Number of codewords K of each codebook.
        dim: Dimensions D of an embedding.
        codebook_dim: Dimensions of a codeword, to which embeddings are projected and from which
            z_q is projected back, by learned linear maps; None for D without any. Codes are easier
            to keep in use in few dimensions (8 to 32).
        channel_axis: The axis of the channels, 1 for feature maps (B, D, H, W); None for the last,
            and to refuse embeddings whose axis 1 could be them.
        groups: G > 1 cuts an embedding into G parts of D/G dimensions, quantized apart
            (the paper's "+group").
        shared_codebook: All groups choose from one codebook instead of one each.
        codebook: What the codewords are a function of: `Table()`, `MovingAverage()` (EMA),
            `Affine()`, `LinearMap()`, `HyperNetwork()`.
        distance: What is near: `Euclidean()` or `Cosine()`.
        estimator: How gradients pass: `StraightThrough()` or `Rotation()`.
        replacement: What brings unused codewords back (the paper's "+replace"); None for nothing.
        initialize: "kmeans" sets the codebook to the k-means centres of the embeddings of the first
            updates, ten a codeword; until then z_q is the embeddings. None begins at random.
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
        codebook_dim: int | None = None,
        channel_axis: int | None = None,
        groups: int = 1,
        shared_codebook: bool = False,
        codebook: Codebook | None = None,
        distance: Distance | None = None,
        estimator: Estimator | None = None,
        replacement: Replacement | None = None,
        rate: RateAware | None = None,
        initialize: str | None = None,
    ) -> None:
        width, dim = dim, dim if codebook_dim is None else codebook_dim
        at_least(1, dim=width, codebook_dim=dim)
        super().__init__(num_codes, dim, groups=groups, channel_axis=channel_axis)
        if codebook_dim is not None:
            self.project_in = nn.Linear(width, codebook_dim)
            self.project_out = nn.Linear(codebook_dim, width)
        if dim % groups:
            divisors = [g for g in range(1, min(dim, 64) + 1) if dim % g == 0]
            raise MqvaeError(
                f"groups must divide dim: got groups={groups}, dim={dim}. "
                f"Groups that would do: {divisors}."
            )
        self.shared_codebook = shared_codebook
        self.distance = Euclidean() if distance is None else distance
        self.estimator = StraightThrough() if estimator is None else estimator
        self.replacement = replacement
        # Codebooks of several groups lie below each other: code k of group g is row g·K + k.
        rows = num_codes * (1 if shared_codebook else groups)
        self.codebook = (codebook or Table()).built(rows, dim // groups)
        if replacement is not None:
            if not isinstance(self.codebook, Table):
                raise MqvaeError(
                    f"codewords of a {type(self.codebook).__name__} cannot be replaced one by "
                    "one, they share parameters: leave out the replacement, or use Table()."
                )
            self.register_buffer("unused_steps", torch.zeros(rows, dtype=torch.int64))
        self.rate = rate
        self.prices = None if rate is None else Rate(rate, rows // num_codes, num_codes)
        self._pending = self._nothing()
        self.await_embeddings(initialize)

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, dim={self.dim}, groups={self.groups}"

    def table(self) -> Tensor:
        # A map is a layer to autocast, but codewords in half precision are other codewords.
        with without_autocast(self.codebook.like.device):
            return self.distance.place(self.codebook())

    def place(self, z_e: Tensor) -> Tensor:
        parts = z_e.unflatten(-1, (self.groups, -1)) if self.groups > 1 else z_e  # (..., G, D/G)
        return self._join(self.distance.place(parts))

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
    def scatter(self, codes: Tensor, values: Tensor) -> Tensor:
        rows, width = self.rows(codes).flatten(), self.dim // self.groups
        number = self.num_codes * (1 if self.shared_codebook else self.groups)
        return values.new_zeros(number, width).index_add_(0, rows, values.reshape(-1, width))

    @torch.no_grad()
    def codebook_gradient(self, z_e: Tensor, codes: Tensor, table: Tensor, weight: float) -> Tensor:
        if not self.estimator.straight:
            return super().codebook_gradient(z_e, codes, table, weight)
        wide = torch.promote_types(full(z_e).dtype, full(table).dtype)
        g = torch.full((), weight, dtype=wide, device=table.device)
        parts = z_e.reshape(-1, self.dim // self.groups)
        with without_autocast(table.device):
            return codebook_gradient(table, parts, self.rows(codes).flatten(), g)

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

    def require_movable(self) -> None:
        self.codebook.require_movable()

    @torch.no_grad()
    def translate(self, by: Tensor) -> None:
        self.codebook.translate(by * self.distance.scale(self.codebook()))

    def at_codes(
        self, z_e: Tensor, codes: Tensor, table: Tensor, mask: Tensor | None = None
    ) -> Quantized:
        fused = self.estimator.straight and mask is None
        if not fused or torch.compiler.is_compiling():  # which fuses by itself
            return super().at_codes(z_e, codes, table, mask)
        parts = z_e.reshape(-1, self.dim // self.groups)
        rows = self.rows(codes).flatten()
        with without_autocast(z_e.device):
            z_q, commitment, codebook = select(parts, table, rows)
        return Quantized(z_q.view(z_e.shape), codes, commitment, codebook)

    def codebook_loss(
        self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        return mean_square(z_e - z_q, mask)

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Set the codewords to the k-means centres of real embeddings.

        Args:
            z_e: Embeddings, (..., D); some ten per codeword are plenty.
            generator: Source of randomness, on the device of `z_e`.

        Raises:
            ValueError: if an embedding or a centre is not finite.
        """
        wide = full(z_e.detach())
        self.check_width(wide)
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
        dtype = self.codebook.like.dtype
        if not torch.isfinite(codewords.to(dtype)).all():
            raise MqvaeError(
                f"codewords must be finite numbers of the codebook's type, {dtype}, got inf or "
                "nan: train in a wider type, or look for what made the embeddings so large."
            )
        self.codebook.assign(codewords)
        self.forget_use()
        self.begun()

    def forget_use(self) -> None:
        if self.replacement is not None:
            self.get_buffer("unused_steps").zero_()
        if self.prices is not None:
            self.prices.reset()

"""The nearest codeword for every embedding."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from mqvae.core.codebook import AverageCodebook, CodebookMap, Table, TableCodebook
from mqvae.core.distance import Distance, Euclidean
from mqvae.core.distributed import (
    process_rank,
    sum_across_processes,
    sums_across_processes,
    world_size,
)
from mqvae.core.estimator import Estimator, StraightThrough
from mqvae.core.initialization import kmeans
from mqvae.core.nearest import nearest
from mqvae.core.optimizer import forget_rows
from mqvae.core.passes import full, without_autocast
from mqvae.core.quantizer.base import CodebookQuantizer, Quantized
from mqvae.core.quantizer.pending import LastPass, Pending
from mqvae.core.rate import Rate, RateAware
from mqvae.core.replacement import Pool, Replacement, readable
from mqvae.core.selection import select
from mqvae.core.transport import Transport
from mqvae.errors import MqvaeError

FORGOTTEN = 100  # passes in training without an update, after which a warning says so


class VectorQuantizer(CodebookQuantizer):
    """Replaces every embedding by its nearest codeword.

    In anybody's own training loop:

        out = quantizer(encoder(x))
        loss = mse(decoder(out.z_q), x) + 0.25 * out.commitment_loss + out.codebook_loss
        loss.backward(); optimizer.step()
        quantizer.update()

    A pass in training mode leaves statistics behind, which `update` applies: EMA, replacement and
    prices of codes. Nothing else changes its state.

    Args:
        num_codes: Number of codewords K of each codebook.
        dim: Dimensions D of an embedding.
        groups: G > 1 cuts an embedding into G parts of D/G dimensions, quantized apart
            (the paper's "+group").
        shared_codebook: All groups choose from one codebook instead of one each.
        codebook: What the codewords are a function of: `Table()`, `MovingAverage()` (EMA),
            `Affine()`, `LinearMap()`, `HyperNetwork()`.
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
        self._pending = self._nothing()

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, dim={self.dim}, groups={self.groups}"

    def table(self) -> Tensor:
        # A map is a layer to autocast, but codewords in half precision are other codewords.
        with without_autocast(self.codebook.device):
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
        with without_autocast(z_e.device):
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
        dtype = self.codebook.dtype
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "VectorQuantizer":
        super()._apply(fn, recurse)
        self._pending = self._nothing()
        return self

    def _nothing(self) -> Pending:
        """Statistics of no pass."""
        averaged = isinstance(self.codebook, AverageCodebook)
        table = self.codebook().detach()
        return Pending(table, len(table) // self.num_codes, averaged)

    @property
    def updates(self) -> bool:
        """Whether `update` has something to do."""
        averaged = isinstance(self.codebook, AverageCodebook)
        wanted = averaged or self.replacement is not None or self.prices is not None
        return wanted and self.training and self.codebook.learns

    @torch.no_grad()
    def record(self, z_e: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        if not self.updates:
            return
        pending, table = self._pending, self.table()
        shape = self._parts_shape
        parts = z_e.reshape(shape).to(table.dtype)
        rows = self.rows(codes).flatten()
        ones = torch.ones_like(rows)
        if mask is not None:
            mask = mask.reshape(-1, 1).expand(-1, self.groups).reshape(shape[:2])  # (N, G)
            parts = parts.masked_fill(~mask[..., None], 0)
            ones = mask.flatten().long()
        pending.counts.scatter_add_(0, rows, ones)
        if pending.sums is not None:
            vectors = z_e.to(pending.sums.dtype).reshape(-1, table.shape[1])
            if mask is not None:
                vectors = vectors.masked_fill(~mask.view(-1, 1), 0)
            pending.sums.index_add_(0, rows, vectors)
        if self.prices is not None:
            away = full(self.lookup(codes, table).reshape(shape)) - full(parts)
            away = away if mask is None else away.masked_fill(~mask[..., None], 0)
            pending.squares.add_(away.square().sum((0, 2)))
        pending.last = LastPass(parts, codes, mask)
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
        if self._pending.last is not None:
            self._pending.clear()

    @property
    def _parts_shape(self) -> tuple[int, int, int]:
        """(N, G, D/G), or (N·G, 1, D/G) with a shared codebook."""
        return -1, 1 if self.shared_codebook else self.groups, self.dim // self.groups

    @torch.no_grad()
    def update(
        self,
        optimizer: Optimizer | None = None,
        *,
        task_gradient: Tensor | None = None,
        loss: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        pending, last = self._pending, self._pending.last
        if not self.updates or (last is None and world_size() == 1):
            return
        table = self.table()
        if last is None:  # other processes may have had a pass
            shape = self._parts_shape
            last = LastPass(table.new_zeros(0, *shape[1:]), pending.counts.new_zeros(0), None)
        sizes = pending.counts.new_zeros(world_size())
        sizes[process_rank()] = len(last.parts)
        counts, sizes = sums_across_processes([pending.counts, sizes])
        if isinstance(self.codebook, AverageCodebook):
            assert pending.sums is not None
            averages, codewords = self.codebook.averages, self.codebook()
            averages.follow(codewords, table)
            sums = sum_across_processes(pending.sums)
            self.codebook.assign(averages.step(counts, sums, codewords, table, all_move=False))
            averages.codewords.copy_(codewords)
        if self.prices is not None:
            self.prices.update(counts.view(-1, self.num_codes), pending.squares)
        if self.replacement is not None:
            self._replace(counts, sizes, last, optimizer, task_gradient, loss)
        pending.clear()

    def _replace(
        self,
        counts: Tensor,
        sizes: Tensor,
        last: LastPass,
        optimizer: Optimizer | None,
        task_gradient: Tensor | None,
        loss: Callable[[Tensor], Tensor] | None,
    ) -> None:
        assert self.replacement is not None and isinstance(self.codebook, TableCodebook)
        weight, shape = self.codebook.weight, last.parts.shape
        unused = self.get_buffer("unused_steps")
        chosen = counts > 0
        # Where nothing was chosen at all, a mask was over everything.
        unused.add_(chosen.any()).masked_fill_(chosen, 0)

        def judged(rows: Tensor, codewords: Tensor) -> Tensor:
            assert loss is not None
            changed = weight.index_copy(0, rows, codewords.to(weight.dtype))
            return loss(self.distance.place(changed))

        pool = Pool(
            last.parts,
            sizes,
            len(weight),
            selected=lambda: self.lookup(last.codes, self.table()).reshape(shape),
            task_gradient=None if task_gradient is None else task_gradient.reshape(shape),
            loss=None if loss is None else judged,
            mask=last.mask,
        )
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
        if isinstance(self.codebook, AverageCodebook):
            self.codebook.averages.follow(weight, self.table())

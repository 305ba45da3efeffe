"""Embeddings to codewords: the layer h_C of Eq. 1 and 2."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mqvae.core.codebook import CodebookMap, Table
from mqvae.core.distance import Distance, Euclidean
from mqvae.core.estimator import Estimator, StraightThrough
from mqvae.core.initialization import kmeans
from mqvae.core.nearest import nearest
from mqvae.core.replacement import Replacement
from mqvae.core.selection import select


@dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of embeddings z_e of shape (..., D).

    Attributes:
        z_q: ẑ, what the decoder gets, (..., D). For a nearest-codeword quantizer its value is the
            selected codewords to the bit and its gradient goes to z_e (Eq. 3).
        codes: Indices of the codewords, (...) int64, or (..., G) with G > 1 codes an embedding.
        commitment_loss: mean ‖z_e − sg(z_q)‖² over all numbers (Eq. 4), unweighted scalar.
        codebook_loss: mean ‖sg(z_e) − z_q‖² over all numbers (Eq. 5), unweighted scalar.
        prior_loss: What a quantizer adds by itself, weighted already: Gumbel-VQ's divergence
            from uniform codes; zero for the others.
    """

    z_q: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    prior_loss: Tensor | float = 0.0


class Quantizer(nn.Module, ABC):
    """Embeddings (..., D) to what the decoder gets.

    Attributes:
        num_codes: Number K of values that one code can take.
        dim: Dimensions D of an embedding.
        groups: Number G of codes of one embedding.
    """

    num_codes: int
    dim: int
    groups: int

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize embeddings.

        Args:
            z_e: Embeddings, (..., D), channels last.

        Raises:
            ValueError: if the last dimension is not D.
        """
        self._check_width(z_e)
        return self.quantize(self.place(z_e))

    @abstractmethod
    def quantize(self, z_e: Tensor) -> Quantized:
        """`forward` for embeddings that are placed already."""

    @abstractmethod
    def encode(self, z_e: Tensor) -> Tensor:
        """Codes of embeddings (..., D): (...), or (..., G) where G > 1."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes back to vectors, (..., D)."""

    @abstractmethod
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Start from real embeddings, (..., D)."""

    def place(self, z_e: Tensor) -> Tensor:
        """Embeddings as the encoder gives them to where they are compared with codewords."""
        return z_e

    @torch.no_grad()
    def after_step(self, z_e: Tensor, codes: Tensor, forget: Callable[[Tensor], None]) -> None:
        """What a quantizer does when the optimizers have stepped; called by the update rules.

        Args:
            z_e: The embeddings of the step, placed, (..., D).
            codes: Their codes.
            forget: Makes the rule forget what it remembers of given rows of the table.
        """

    def _check_width(self, z_e: Tensor) -> None:
        if z_e.ndim == 0 or z_e.shape[-1] != self.dim:
            width = z_e.shape[-1] if z_e.ndim else 1
            raise ValueError(
                f"the quantizer expects embeddings (..., {self.dim}), channels last, got "
                f"{tuple(z_e.shape)}: move the channels to the end, or build it with dim={width}."
            )

    def _check_codes(self, codes: Tensor) -> Tensor:
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be integers, got {codes.dtype}.")
        if self.groups > 1 and (codes.ndim == 0 or codes.shape[-1] != self.groups):
            raise ValueError(
                f"codes must end in a dimension of {self.groups} groups, got {tuple(codes.shape)}."
            )
        codes = codes.long()
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.num_codes):
            raise ValueError(
                f"codes must lie in 0 … {self.num_codes - 1}, got "
                f"{int(codes.min())} … {int(codes.max())}: they belong to another codebook."
            )
        return codes


class CodebookQuantizer(Quantizer):
    """A quantizer that selects from a codebook table; what the hypergradients are made for.

    The table, (rows, d), is `codebook()`. z_q = `lookup(codes, table)` is linear in it, and the
    codebook loss is quadratic with ∂g_C/∂z_e = −(2/ND) · lookupᵀ for frozen codes.
    """

    estimator: Estimator

    @abstractmethod
    def table(self) -> Tensor:
        """The codewords, (rows, d), a function of the parameters."""

    @abstractmethod
    def nearest_codes(self, z_e: Tensor, table: Tensor) -> Tensor:
        """Codes of placed embeddings (..., D)."""

    @abstractmethod
    def lookup(self, codes: Tensor, table: Tensor) -> Tensor:
        """Codewords of codes, (..., D); linear in `table`.

        Its transpose carries gradients of z_q to the codewords.
        """

    @abstractmethod
    def codebook_loss(self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor) -> Tensor:
        """Eq. 5 for given codes."""

    def quantize(self, z_e: Tensor, table: Tensor | None = None) -> Quantized:
        """`forward` for placed embeddings, under the codebook's own table or another."""
        table = self.table() if table is None else table
        return self.at_codes(z_e, self.nearest_codes(z_e, table), table)

    def at_codes(self, z_e: Tensor, codes: Tensor, table: Tensor) -> Quantized:
        """`quantize` with the codes given."""
        wide = z_e.to(torch.promote_types(z_e.dtype, torch.float32))
        with torch.autocast(z_e.device.type, enabled=False):
            z_q = self.lookup(codes, table)  # (..., D)
            return Quantized(
                z_q=self.estimator(z_e, z_q.to(z_e.dtype)),
                codes=codes,
                commitment_loss=(wide - z_q.detach()).square().mean(),
                codebook_loss=self.codebook_loss(wide.detach(), codes, table, z_q),
            )

    def encode(self, z_e: Tensor) -> Tensor:
        self._check_width(z_e)
        return self.nearest_codes(self.place(z_e), self.table())

    def decode(self, codes: Tensor) -> Tensor:
        """Codes back to vectors.

        Args:
            codes: (...) or (..., G) integers, as `Quantized.codes`.

        Returns:
            Codewords, (..., D).

        Raises:
            ValueError: if the codes are not integers in [0, num_codes), or the groups do not fit.
        """
        return self.lookup(self._check_codes(codes), self.table())


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
    ) -> None:
        super().__init__()
        for name, value in (("num_codes", num_codes), ("dim", dim), ("groups", groups)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if dim % groups:
            divisors = [g for g in range(1, min(dim, 64) + 1) if dim % g == 0]
            raise ValueError(
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
                raise ValueError(
                    f"codewords of a {type(self.codebook_map).__name__} cannot be replaced one by "
                    "one, they share parameters: leave out the replacement, or use Table()."
                )
            self.register_buffer("unused_steps", torch.zeros(rows, dtype=torch.int64))

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
        self._check_width(z_e)
        if self.groups == 1:
            return nearest(z_e.reshape(-1, self.dim), table).view(z_e.shape[:-1])
        parts = z_e.reshape(-1, self.groups, self.dim // self.groups).unbind(1)  # G × (N, D/G)
        books = [table] * self.groups if self.shared_codebook else table.chunk(self.groups)
        codes = [nearest(part, book) for part, book in zip(parts, books, strict=True)]
        return torch.stack(codes, 1).view(*z_e.shape[:-1], self.groups)

    def rows(self, codes: Tensor) -> Tensor:
        """Rows of the table that codes select, of the codes' shape."""
        if self.groups > 1 and not self.shared_codebook:
            return codes + torch.arange(self.groups, device=codes.device) * self.num_codes
        return codes

    def lookup(self, codes: Tensor, table: Tensor) -> Tensor:
        rows = self.rows(codes)
        # Unlike `embedding`, its gradient is a plain sum by row, on every device.
        return self._join(table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1]))

    def at_codes(self, z_e: Tensor, codes: Tensor, table: Tensor) -> Quantized:
        if not isinstance(self.estimator, StraightThrough):
            return super().at_codes(z_e, codes, table)
        parts = z_e.reshape(-1, self.dim // self.groups)
        rows = self.rows(codes).flatten()
        with torch.autocast(z_e.device.type, enabled=False):
            z_q, *losses = select(parts, table, rows)
        return Quantized(z_q.view(z_e.shape), codes, *losses)

    def codebook_loss(self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor) -> Tensor:
        return (z_e - z_q).square().mean()

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Set the codewords to the k-means centres of real embeddings.

        Args:
            z_e: Embeddings, (..., D); some ten per codeword are plenty.
            generator: Source of randomness, on the device of `z_e`.
        """
        self._check_width(z_e)
        wide = z_e.detach().to(torch.promote_types(z_e.dtype, torch.float32))
        placed = self.place(wide)
        parts = placed.reshape(-1, self.groups, self.dim // self.groups)  # (N, G, D/G)
        if self.shared_codebook or self.groups == 1:
            samples = [parts.flatten(0, 1)]
        else:
            samples = list(parts.unbind(1))
        self.codebook.assign(
            torch.cat([kmeans(s, self.num_codes, generator=generator) for s in samples])
        )

    @torch.no_grad()
    def after_step(self, z_e: Tensor, codes: Tensor, forget: Callable[[Tensor], None]) -> None:
        trained = any(p.requires_grad for p in self.codebook.parameters())
        if self.replacement is not None and self.training and trained:
            self.replacement(self, z_e, codes, forget)


class ResidualQuantizer(CodebookQuantizer):
    """Stages that quantize what the stages before left over; z_q is the sum of their codewords.

    The codebook loss is the sum of the stages' losses, each on its own residual.

    Args:
        stages: Quantizers of the same sizes, Euclidean and without groups or replacement.

    Raises:
        ValueError: if there is no stage or the stages do not fit together.

    Example:
        >>> quantizer = ResidualQuantizer([VectorQuantizer(256, 64) for _ in range(4)])
        >>> quantizer(torch.randn(8, 7, 7, 64)).codes.shape
        torch.Size([8, 7, 7, 4])

    Source: Lee et al. 2022, "Autoregressive image generation using residual quantization".
    """

    def __init__(
        self, stages: Sequence[VectorQuantizer], *, estimator: Estimator | None = None
    ) -> None:
        super().__init__()
        if not stages:
            raise ValueError("a residual quantizer needs one stage or more, got none.")
        first = stages[0]
        for stage in stages:
            if (stage.num_codes, stage.dim, stage.groups) != (first.num_codes, first.dim, 1):
                raise ValueError(
                    "the stages of a residual quantizer must have the same num_codes and dim, and "
                    f"groups=1; got {stage} beside {first}."
                )
            if not isinstance(stage.distance, Euclidean) or stage.replacement is not None:
                raise ValueError(
                    "the stages of a residual quantizer must be Euclidean and without replacement: "
                    "what is left over has no place on a sphere, and its spread is the stage's own."
                )
            if not isinstance(stage.estimator, StraightThrough):
                raise ValueError(
                    "gradients pass a residual quantizer as a whole: give the estimator to "
                    f"ResidualQuantizer, not to its stages; got {type(stage.estimator).__name__}()."
                )
        self.num_codes = first.num_codes
        self.dim = first.dim
        self.groups = len(stages)
        self.stages = nn.ModuleList(stages)
        self.estimator = StraightThrough() if estimator is None else estimator

    def table(self) -> Tensor:
        return torch.cat([stage.table() for stage in self._stages()])  # (stages · K, D)

    def _stages(self) -> list[VectorQuantizer]:
        return [stage for stage in self.stages if isinstance(stage, VectorQuantizer)]

    @torch.no_grad()
    def nearest_codes(self, z_e: Tensor, table: Tensor) -> Tensor:
        self._check_width(z_e)
        left = z_e.to(torch.promote_types(z_e.dtype, torch.float32))
        codes = []
        for stage, book in zip(self._stages(), table.chunk(self.groups), strict=True):
            codes.append(stage.nearest_codes(left, book))
            left = left - stage.lookup(codes[-1], book)
        return torch.stack(codes, -1) if self.groups > 1 else codes[0]

    def _selected(self, codes: Tensor, table: Tensor) -> list[Tensor]:
        columns = codes.unbind(-1) if self.groups > 1 else (codes,)
        books = table.chunk(self.groups)
        return [nn.functional.embedding(c, b) for c, b in zip(columns, books, strict=True)]

    def lookup(self, codes: Tensor, table: Tensor) -> Tensor:
        return torch.stack(self._selected(codes, table)).sum(0)

    def codebook_loss(self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor) -> Tensor:
        total = z_e.new_zeros(())
        left = z_e
        for selected in self._selected(codes, table):
            total = total + (left - selected).square().mean()
            left = left - selected.detach()
        return total

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        self._check_width(z_e)
        left = z_e.detach()
        for stage in self._stages():
            stage.initialize(left, generator=generator)
            left = left - stage.decode(stage.encode(left))


class NoQuantizer(Quantizer):
    """z_q = z_e, one code: for tests, and as the upper bound of what quantization can reach.

    Args:
        dim: Dimensions D of an embedding.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be 1 or more, got {dim}.")
        self.num_codes = 1
        self.dim = dim
        self.groups = 1

    def quantize(self, z_e: Tensor) -> Quantized:
        zero = z_e.new_zeros((), dtype=torch.promote_types(z_e.dtype, torch.float32))
        return Quantized(z_e, self.encode(z_e), zero, zero)

    def encode(self, z_e: Tensor) -> Tensor:
        return torch.zeros(z_e.shape[:-1], dtype=torch.int64, device=z_e.device)

    def decode(self, codes: Tensor) -> Tensor:
        raise ValueError("without quantization there are no codes to decode.")

    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """There is nothing to initialize."""

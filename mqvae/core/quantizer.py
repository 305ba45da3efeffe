"""Embeddings to codewords: the layer h_C of Eq. 1 and 2."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mqvae.core.codebook import Table
from mqvae.core.initialization import kmeans
from mqvae.core.nearest import nearest


@dataclass(frozen=True)
class Quantized:
    """What a quantizer makes of embeddings z_e of shape (..., D).

    Attributes:
        z_q: What the decoder gets, (..., D). Its value is the selected codewords to the bit; its
            gradient goes to z_e unchanged (straight-through, Eq. 3).
        codes: Indices of the codewords, (...) int64, or (..., G) with more than one group.
        commitment_loss: mean ‖z_e − sg(z_q)‖² over all numbers (Eq. 4), unweighted scalar.
        codebook_loss: mean ‖sg(z_e) − z_q‖² over all numbers (Eq. 5), unweighted scalar.
    """

    z_q: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


def straight_through(z_e: Tensor, z_q: Tensor) -> Tensor:
    """z_q in value, z_e in gradient: ẑ = z_e + sg(z_q − z_e), without its rounding."""
    return z_q.detach() + (z_e - z_e.detach())


class VectorQuantizer(nn.Module):
    """Replaces every embedding by its nearest codeword.

    The layer is a pure function of its input and its codebook: no forward pass changes its state.

    Args:
        num_codes: Number of codewords K of each codebook.
        dim: Dimensions D of an embedding.
        groups: G > 1 cuts an embedding into G parts of D/G dimensions, quantized apart
            (the paper's "+group").
        shared_codebook: All groups choose from one codebook instead of one each.

    Raises:
        ValueError: if a size is not positive or `groups` does not divide `dim`.

    Example:
        >>> quantizer = VectorQuantizer(num_codes=512, dim=64)
        >>> quantized = quantizer(torch.randn(8, 7, 7, 64))
        >>> quantized.z_q.shape, quantized.codes.shape
        (torch.Size([8, 7, 7, 64]), torch.Size([8, 7, 7]))

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning".
    """

    def __init__(
        self, num_codes: int, dim: int, *, groups: int = 1, shared_codebook: bool = False
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
        # Codebooks of several groups lie below each other: code k of group g is row g·K + k.
        self.codebook = Table(num_codes * (1 if shared_codebook else groups), dim // groups)

    def extra_repr(self) -> str:
        return f"num_codes={self.num_codes}, dim={self.dim}, groups={self.groups}"

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize embeddings.

        Args:
            z_e: Embeddings, (..., D), channels last.

        Raises:
            ValueError: if the last dimension is not D.
        """
        codebook = self.codebook()
        return self.at_codes(z_e, self.nearest_codes(z_e, codebook), codebook)

    def at_codes(self, z_e: Tensor, codes: Tensor, codebook: Tensor) -> Quantized:
        """The result of `forward` for given codes and codewords."""
        wide = z_e if z_e.dtype == torch.float64 else z_e.float()
        z_q = self.lookup(codes, codebook)  # (..., D)
        with torch.autocast(z_e.device.type, enabled=False):
            return Quantized(
                z_q=straight_through(z_e, z_q.to(z_e.dtype)),
                codes=codes,
                commitment_loss=(wide - z_q.detach()).square().mean(),
                codebook_loss=(wide.detach() - z_q).square().mean(),
            )

    @torch.no_grad()
    def nearest_codes(self, z_e: Tensor, codebook: Tensor) -> Tensor:
        """Codes of embeddings (..., D): (...), or (..., G) with more than one group."""
        if z_e.shape[-1] != self.dim:
            raise ValueError(
                f"the quantizer expects embeddings (..., {self.dim}), channels last, got "
                f"{tuple(z_e.shape)}: move the channels to the end, or build it with "
                f"dim={z_e.shape[-1]}."
            )
        if self.groups == 1:
            return nearest(z_e.reshape(-1, self.dim), codebook).view(z_e.shape[:-1])
        parts = z_e.reshape(-1, self.groups, self.dim // self.groups).unbind(1)  # G × (N, D/G)
        books = [codebook] * self.groups if self.shared_codebook else codebook.chunk(self.groups)
        codes = [nearest(part, book) for part, book in zip(parts, books, strict=True)]
        return torch.stack(codes, 1).view(*z_e.shape[:-1], self.groups)

    def lookup(self, codes: Tensor, codebook: Tensor) -> Tensor:
        """Codewords of codes, (..., D); differentiable in `codebook`.

        This is the linear map whose transpose carries gradients of z_q to the codewords.
        """
        rows = codes
        if self.groups > 1 and not self.shared_codebook:
            rows = codes + torch.arange(self.groups, device=codes.device) * self.num_codes
        z_q = nn.functional.embedding(rows, codebook)
        return z_q.flatten(-2) if self.groups > 1 else z_q  # (..., D)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes back to vectors.

        Args:
            codes: (...) or (..., G) integers, as `Quantized.codes`.

        Returns:
            Codewords, (..., D).

        Raises:
            ValueError: if the codes are not integers in [0, num_codes), or the groups do not fit.
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be integers, got {codes.dtype}.")
        if self.groups > 1 and (codes.ndim == 0 or codes.shape[-1] != self.groups):
            raise ValueError(
                f"codes must end in a dimension of {self.groups} groups, got {tuple(codes.shape)}."
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.num_codes):
            raise ValueError(
                f"codes must lie in 0 … {self.num_codes - 1}, got "
                f"{int(codes.min())} … {int(codes.max())}: they belong to another codebook."
            )
        return self.lookup(codes.long(), self.codebook())

    @torch.no_grad()
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Set the codewords to the k-means centres of real embeddings.

        Args:
            z_e: Embeddings, (..., D); some ten per codeword are plenty.
            generator: Source of randomness, on the device of `z_e`.
        """
        self.nearest_codes(z_e[..., :1, :], self.codebook())  # the shape check
        width = self.dim // self.groups
        parts = z_e.detach().reshape(-1, self.groups, width)  # (N, G, D/G)
        if self.shared_codebook or self.groups == 1:
            samples = [parts.reshape(-1, width)]
        else:
            samples = list(parts.unbind(1))
        self.codebook.assign(
            torch.cat([kmeans(s, self.num_codes, generator=generator) for s in samples])
        )

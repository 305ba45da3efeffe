"""What quantizers with a codebook have in common."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from mqvae.core.estimator import Estimator
from mqvae.core.passes import full, without_autocast
from mqvae.core.quantizers.base import Quantizer
from mqvae.core.quantizers.quantized import Quantized, mean_square
from mqvae.core.transport import Transport


class CodebookQuantizer(Quantizer):
    """A quantizer that selects from a codebook table; what the hypergradients are made for.

    The table, (rows, d), is `codebook()`. z_q = `lookup(codes, table)` is linear in it, and the
    codebook loss is quadratic with ∂g_C/∂z_e = −(2/ND) · lookupᵀ for frozen codes.
    """

    estimator: Estimator
    dropout: float = 0.0  # probability that training leaves codes of a sample out

    @abstractmethod
    def table(self) -> Tensor:
        """The codewords, (rows, d), a function of the parameters."""

    @abstractmethod
    def nearest_codes(self, z_e: Tensor, table: Tensor) -> Tensor:
        """Codes of placed embeddings (..., D)."""

    def choose(self, z_e: Tensor, table: Tensor) -> Tensor:
        """Codes of a pass: the nearest, of which training may leave some out."""
        return self.nearest_codes(z_e, table)

    @abstractmethod
    def lookup(self, codes: Tensor, table: Tensor) -> Tensor:
        """Codewords of codes, (..., D); linear in `table`."""

    @abstractmethod
    def scatter(self, codes: Tensor, values: Tensor) -> Tensor:
        """Sum of values (..., D) by row of the table, (rows, d): the transpose of `lookup`."""

    def codebook_gradient(self, z_e: Tensor, codes: Tensor, table: Tensor, weight: float) -> Tensor:
        """Gradient of `weight` times the codebook loss by the table, (rows, d), for given codes."""
        table = table.detach().requires_grad_()
        with torch.enable_grad():
            loss = weight * self.at_codes(z_e.detach(), codes, table).codebook_loss
        return torch.autograd.grad(loss, table)[0]

    @abstractmethod
    def transported(
        self, transport: Transport, codes: Tensor, z_e: Tensor, change: Tensor
    ) -> Tensor:
        """How far codewords go, (rows, d), when placed embeddings (..., D) of codes change."""

    @abstractmethod
    def translated(self, by: Tensor) -> Tensor:
        """The table, (rows, d), as it is after `translate`."""

    @abstractmethod
    def require_movable(self) -> None:
        """Refuse, by a ValueError, a codebook whose codewords cannot move by themselves."""

    @abstractmethod
    def translate(self, by: Tensor) -> None:
        """Move the codewords, where they are compared, by (rows, d), or refuse to."""

    @abstractmethod
    def codebook_loss(
        self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Eq. 5 for given codes; the mean is over the embeddings of a mask, (...) bool."""

    def quantize(
        self, z_e: Tensor, table: Tensor | None = None, mask: Tensor | None = None
    ) -> Quantized:
        """`forward` for placed embeddings, under the codebook's own table or another."""
        table = self.table() if table is None else table
        quantized = self.at_codes(z_e, self.choose(z_e, table), table, mask)
        if self._unquantized(z_e) is None:
            return quantized
        wide = full(z_e)
        with without_autocast(z_e.device):
            away = self.of_quantized(wide - self.lookup(quantized.codes, table).detach())
            return replace(
                quantized,
                z_q=self.passed_on(z_e, quantized.z_q),
                commitment_loss=mean_square(away, mask),
            )

    def at_codes(
        self, z_e: Tensor, codes: Tensor, table: Tensor, mask: Tensor | None = None
    ) -> Quantized:
        """`quantize` with the codes given."""
        wide = full(z_e)
        with without_autocast(z_e.device):
            z_q = self.lookup(codes, table)  # (..., D)
            return Quantized(
                z_q=self.estimator(z_e, z_q.to(z_e.dtype)),
                codes=codes,
                commitment_loss=mean_square(wide - z_q.detach(), mask),
                codebook_loss=self.codebook_loss(wide.detach(), codes, table, z_q, mask),
            )

    def _encode(self, z_e: Tensor) -> Tensor:
        return self.nearest_codes(z_e, self.table())

    def _decode(self, codes: Tensor) -> Tensor:
        return self.lookup(codes, self.table())

"""What quantizers have in common: z_e → Quantized."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mqvae.core.distributed import process_rank
from mqvae.core.estimator import Estimator
from mqvae.core.passes import without_autocast
from mqvae.core.shown import Shown
from mqvae.core.transport import Transport
from mqvae.errors import MqvaeError, NotFiniteEmbeddings

USE = {"unused_steps", "prices"}
"""Buffers that count how codes are used: no weights, and forgotten by `forget_use`."""


@dataclass(frozen=True, repr=False)
class Quantized(Shown):
    """What a quantizer makes of embeddings z_e of shape (..., D).

    Attributes:
        z_q: ẑ, what the decoder gets, (..., D). For a nearest-codeword quantizer its value is the
            selected codewords to the bit and its gradient goes to z_e (Eq. 3).
        codes: Indices of the codewords, (...) int64, or (..., G) with G > 1 codes an embedding.
        commitment_loss: mean ‖z_e − sg(z_q)‖² over all numbers (Eq. 4), unweighted scalar.
        codebook_loss: mean ‖sg(z_e) − z_q‖² over all numbers (Eq. 5), unweighted scalar.
        auxiliary_loss: The quantizer's own loss term, unweighted scalar: Gumbel-VQ's divergence of
            the codes from uniform, LFQ's entropies; None for quantizers without one.
        auxiliary_weight: Its weight in the total loss, which the quantizer sets.
    """

    z_q: Tensor
    codes: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor
    auxiliary_loss: Tensor | None = None
    auxiliary_weight: float = 0.0


class Quantizer(nn.Module, ABC):
    """Embeddings (..., D) to what the decoder gets.

    Attributes:
        num_codes: Number K of values that one code can take.
        dim: Dimensions D of an embedding.
        groups: Number G of codes of one embedding.
        unquantized: Share of a batch's samples whose embeddings the decoder gets as they are, in
            training; who trains sets it, as a rate is set. Their commitment loss is zero, for they
            stand for nothing. The codebook learns from them as from all others.
    """

    num_codes: int
    dim: int
    groups: int
    unquantized: float = 0.0

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize embeddings.

        Args:
            z_e: Embeddings, (..., D), channels last.

        Raises:
            ValueError: if the last dimension is not D; in eval mode also if an embedding is not
                finite. In training its losses are not finite then, and nobody waits for a look.
        """
        self.check_width(z_e)
        if not self.training:
            self._check_finite(z_e)
        placed = self.place(z_e)
        quantized = self.quantize(placed)
        # Checkpointing makes a pass again, going back: it has been recorded.
        if self.training and (torch.compiler.is_compiling() or graph_task() == -1):
            self.record(placed.detach(), quantized.codes)
        return quantized

    @abstractmethod
    def quantize(self, z_e: Tensor) -> Quantized:
        """`forward` for embeddings that are placed already."""

    @torch.no_grad()
    def encode(self, z_e: Tensor) -> Tensor:
        """Codes of embeddings (..., D): (...), or (..., G) where G > 1.

        Raises:
            ValueError: if the last dimension is not D, or an embedding is not finite.
        """
        self.check_width(z_e)
        self._check_finite(z_e)
        return self._encode(self.place(z_e))

    @abstractmethod
    def _encode(self, z_e: Tensor) -> Tensor:
        """Codes of embeddings that are placed already."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes back to vectors, (..., D)."""

    @abstractmethod
    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Start from real embeddings, (..., D)."""

    def place(self, z_e: Tensor) -> Tensor:
        """Embeddings as the encoder gives them to where they are compared with codewords."""
        return z_e

    def record(self, z_e: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        """Remember a training pass for `update`; a pass of `forward` in training mode does it.

        Args:
            z_e: Embeddings, placed, (..., D).
            codes: Their codes.
            mask: Which of them count, (...) bool; None for all.
        """

    def discard(self) -> None:
        """Drop what training passes left, as if they had not been."""

    def update(
        self,
        optimizer: Optimizer | None = None,
        *,
        task_gradient: Tensor | None = None,
        loss: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Apply what the training passes since the last call left: EMA, replacement, prices.

        Call it once after each step of the optimizer, in every process; the update rules do so
        themselves. In eval mode it does nothing.

        Args:
            optimizer: The codebook's; it forgets its moments of codewords that are replaced.
            task_gradient: ∂L_task/∂ẑ of the last pass in this process, (..., D), for
                `ByTaskGradient`.
            loss: L on this process's batch under a table, (rows, d), for several draws.
        """

    def forget_use(self) -> None:
        """Forget how long codes have gone unused; what loads other codewords calls it."""

    def passed_on(self, z_e: Tensor, z_q: Tensor) -> Tensor:
        """z_q, with the embeddings themselves of samples that are not quantized, (B, ..., D)."""
        here = self._unquantized(z_e)
        return z_q if here is None else torch.where(here, z_e, z_q)

    def of_quantized(self, values: Tensor) -> Tensor:
        """Values of embeddings, (B, ..., D), zero for samples that are not quantized."""
        here = self._unquantized(values)
        return values if here is None else values.masked_fill(here, 0)

    def _unquantized(self, z_e: Tensor) -> Tensor | None:
        """Which samples are not quantized, (B, 1, ...); None where there are none.

        They lie evenly in the batch of all processes, whose order is random already: nothing is
        drawn, and all passes of a step agree.
        """
        if not (self.unquantized > 0 and self.training and z_e.ndim > 1):
            return None
        first = process_rank() * len(z_e)
        places = torch.arange(first, first + len(z_e) + 1, dtype=torch.float64, device="cpu")
        here = (places * self.unquantized).floor().diff() > 0
        return here.to(z_e.device, non_blocking=True).view(-1, *[1] * (z_e.ndim - 1))

    def check_width(self, z_e: Tensor) -> None:
        """Refuse embeddings that are not D wide, which might broadcast.

        Raises:
            ValueError: names both widths.
        """
        if z_e.ndim == 0 or z_e.shape[-1] != self.dim:
            width = z_e.shape[-1] if z_e.ndim else 1
            raise MqvaeError(
                f"the quantizer expects embeddings (..., {self.dim}), channels last, got "
                f"{tuple(z_e.shape)}: move the channels to the end, or build it with dim={width}."
            )

    def _check_finite(self, z_e: Tensor) -> None:
        """Refuse embeddings that no code stands for.

        Looking at a value waits for the device, so steps of training do not: the losses tell.

        Raises:
            ValueError: if one is not finite.
        """
        if torch.compiler.is_compiling() or z_e.is_meta:  # there is nothing to look at
            return
        finite = torch.isfinite(z_e)
        if not finite.all():
            broken = int(z_e.numel() - finite.sum())
            raise NotFiniteEmbeddings(
                f"{broken} of {z_e.numel()} numbers of the embeddings are inf or nan, and no code "
                "stands for those: look for them in the input, then in the encoder's weights."
            )

    def _check_codes(self, codes: Tensor) -> Tensor:
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise MqvaeError(f"codes must be integers, got {codes.dtype}.")
        if self.groups > 1 and (codes.ndim == 0 or codes.shape[-1] != self.groups):
            raise MqvaeError(
                f"codes must end in a dimension of {self.groups} groups, got {tuple(codes.shape)}."
            )
        codes = codes.long()
        if torch.compiler.is_exporting():  # a program has no errors of its own
            return codes
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.num_codes):
            raise MqvaeError(
                f"codes must lie in 0 … {self.num_codes - 1}, got "
                f"{int(codes.min())} … {int(codes.max())}: they belong to another codebook."
            )
        return codes


def graph_task() -> int:
    """The backward pass that calls; −1 outside of any."""
    return torch._C._current_graph_task_id()


def check_number(num_codes: int) -> None:
    """Refuse more codes than an int64 tells apart.

    Raises:
        ValueError: if there are more than 2^63 of them.
    """
    if num_codes > 2**63:
        raise MqvaeError(
            f"2^{num_codes.bit_length() - 1} codes are more than an int64 tells apart, 2^63: take "
            "fewer dimensions, or fewer levels of each."
        )


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
    def transported(
        self, transport: Transport, codes: Tensor, z_e: Tensor, change: Tensor
    ) -> Tensor:
        """How far codewords go when placed embeddings of given codes move, (rows, d).

        Args:
            transport: What carries them.
            codes: Codes before the embeddings move.
            z_e: The embeddings before that, (..., D).
            change: How they move, (..., D).
        """

    @abstractmethod
    def translated(self, by: Tensor) -> Tensor:
        """The table, (rows, d), as it is after `translate`."""

    @abstractmethod
    def translate(self, by: Tensor) -> None:
        """Move the codewords, where they are compared, by (rows, d).

        Raises:
            ValueError: if a codeword cannot move by itself.
        """

    @abstractmethod
    def codebook_loss(self, z_e: Tensor, codes: Tensor, table: Tensor, z_q: Tensor) -> Tensor:
        """Eq. 5 for given codes."""

    def quantize(self, z_e: Tensor, table: Tensor | None = None) -> Quantized:
        """`forward` for placed embeddings, under the codebook's own table or another."""
        table = self.table() if table is None else table
        quantized = self.at_codes(z_e, self.nearest_codes(z_e, table), table)
        if self._unquantized(z_e) is None:
            return quantized
        wide = z_e.to(torch.promote_types(z_e.dtype, torch.float32))
        with without_autocast(z_e.device):
            away = self.of_quantized(wide - self.lookup(quantized.codes, table).detach())
            return replace(
                quantized,
                z_q=self.passed_on(z_e, quantized.z_q),
                commitment_loss=away.square().mean(),
            )

    def at_codes(self, z_e: Tensor, codes: Tensor, table: Tensor) -> Quantized:
        """`quantize` with the codes given."""
        wide = z_e.to(torch.promote_types(z_e.dtype, torch.float32))
        with without_autocast(z_e.device):
            z_q = self.lookup(codes, table)  # (..., D)
            return Quantized(
                z_q=self.estimator(z_e, z_q.to(z_e.dtype)),
                codes=codes,
                commitment_loss=(wide - z_q.detach()).square().mean(),
                codebook_loss=self.codebook_loss(wide.detach(), codes, table, z_q),
            )

    def _encode(self, z_e: Tensor) -> Tensor:
        return self.nearest_codes(z_e, self.table())

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

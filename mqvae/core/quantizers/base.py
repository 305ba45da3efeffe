"""What quantizers have in common: z_e → Quantized."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mqvae.core.codebook import MovingAverage
from mqvae.core.distributed import process_rank
from mqvae.core.quantizers.quantized import Quantized
from mqvae.errors import MqvaeError, NotFiniteEmbeddings, at_least

USE = {"unused_steps", "prices"}
"""Buffers that count how codes are used: no weights, and forgotten by `forget_use`."""


class Quantizer(nn.Module, ABC):
    """Base class of quantizers: embeddings (..., D) to what the decoder gets.

    Args:
        num_codes: Number K of values that one code can take.
        dim: Dimensions D of an embedding where it is quantized.
        groups: Number G of codes of one embedding.
        channel_axis: The axis of the channels, 1 for feature maps (B, D, H, W); None for the last,
            and to refuse embeddings whose axis 1 could be them.

    Attributes:
        project_in: Learned projection of embeddings to fewer dimensions; None for none.
        project_out: Learned projection back.
        least_code: The least code that `decode` takes: −1 where stages may be left out.
        recording: Whether passes in training leave statistics for `update`; see `unrecorded`.
        unquantized: Share of a batch's samples whose embeddings the decoder gets as they are, in
            training; the training loop sets it, as a learning rate. Their commitment loss is zero.
            The codebook learns from them as from all others.
    """

    project_in: nn.Linear | None
    project_out: nn.Linear | None
    least_code: int = 0
    recording: bool = True
    unquantized: float = 0.0

    def __init__(
        self, num_codes: int, dim: int, *, groups: int = 1, channel_axis: int | None = None
    ) -> None:
        super().__init__()
        at_least(1, num_codes=num_codes, dim=dim, groups=groups)
        if num_codes > 2**63:
            raise MqvaeError(
                f"2^{num_codes.bit_length() - 1} codes are more than an int64 tells apart, 2^63: "
                "take fewer dimensions, or fewer levels of each."
            )
        self.num_codes = num_codes
        self.dim = dim
        self.groups = groups
        self.channel_axis = channel_axis
        self.project_in = self.project_out = None

    def forward(self, z_e: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize embeddings.

        Args:
            z_e: Embeddings, (..., D), or with the channels on `channel_axis`.
            mask: Which positions count, bool, of the shape of `z_e` without its channels. The
                others have the code −1, no loss and no part in what `update` does, and z_q there is
                z_e as it came. None for all.

        Raises:
            ValueError: if the channels are not D, or may be on either of two axes; in eval mode
                also if an embedding is not finite. In training its losses are not finite then, and
                nobody waits for a look.
        """
        came = self.channels_last(z_e)
        inside = self._inside(came, mask)
        if not self.training:
            self._check_finite(inside)
        placed = self.place(inside)
        # Only who masks needs a quantizer that knows masks.
        found = self.quantize(placed) if mask is None else self.quantize(placed, mask=mask)
        # Checkpointing makes a pass again, going back: it has been recorded.
        at_first = torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1
        if self.training and self.recording and at_first:
            self.record(placed.detach(), found.codes, mask)
        codes, z_q = found.codes, self._projected(found.z_q)
        if mask is not None:
            z_q = torch.where(mask[..., None], z_q, came)
            codes = self._masked(codes, mask)
        return replace(
            found,
            z_q=self.channels_back(z_q),
            codes=codes,
            num_codes=self.num_codes,
            groups=self.groups,
        )

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of any module; codewords by EMA, which are no parameters, are held still as well."""
        super().requires_grad_(requires_grad)
        for part in self.modules():
            if isinstance(part, MovingAverage):
                part.learns = requires_grad
        return self

    @abstractmethod
    def quantize(self, z_e: Tensor, *, mask: Tensor | None = None) -> Quantized:
        """`forward` for embeddings that are placed already, channels last."""

    @torch.no_grad()
    def encode(self, z_e: Tensor, mask: Tensor | None = None) -> Tensor:
        """Codes of embeddings (..., D): (...), or (..., G) where G > 1; −1 outside of a mask.

        Raises:
            ValueError: if the channels are not D, or an embedding is not finite.
        """
        z = self._inside(self.channels_last(z_e), mask)
        self._check_finite(z)
        codes = self._encode(self.place(z))
        return codes if mask is None else self._masked(codes, mask)

    def _inside(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings, channels last, projected, and zero outside a mask."""
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != z.shape[:-1]:
                raise MqvaeError(
                    f"mask must be bool and of shape {tuple(z.shape[:-1])}, one for each position, "
                    f"got {mask.dtype} {tuple(mask.shape)}."
                )
            z = z.masked_fill(~mask[..., None], 0)
        return z if self.project_in is None else self.project_in(z)

    def _masked(self, codes: Tensor, mask: Tensor) -> Tensor:
        return codes.masked_fill(~mask[..., None] if self.groups > 1 else ~mask, -1)

    def _projected(self, z: Tensor) -> Tensor:
        return z if self.project_out is None else self.project_out(z)

    def channels_back(self, z: Tensor) -> Tensor:
        """(..., D) in the layout of embeddings."""
        axis = self.channel_axis
        return z if axis is None or z.ndim < 2 else z.movedim(-1, axis)

    @property
    def width(self) -> int:
        """Channels of embeddings: D, unless they are projected to fewer dimensions."""
        return self.dim if self.project_in is None else self.project_in.in_features

    def channels_last(self, z_e: Tensor) -> Tensor:
        """Embeddings in the layout that the quantizer was made for, as (..., D)."""
        axis, width, shape = self.channel_axis, self.width, tuple(z_e.shape)
        if axis is not None:
            if not -z_e.ndim <= axis < z_e.ndim or shape[axis] != width:
                raise MqvaeError(
                    f"the quantizer expects {width} channels on axis {axis}, got {shape}: give it "
                    "the channel_axis that they are on."
                )
            return z_e.movedim(axis, -1)
        self.check_width(z_e, width)
        if z_e.ndim > 2 and shape[1] == width:
            raise MqvaeError(
                f"embeddings {shape} have {width} on axis 1 and at the end, and either may be the "
                "channels: pass channel_axis=1 to the quantizer for (B, D, …), channel_axis=-1 for "
                "(…, D)."
            )
        return z_e

    @abstractmethod
    def _encode(self, z_e: Tensor) -> Tensor:
        """Codes of embeddings that are placed already."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes back to vectors.

        Args:
            codes: (...) or (..., G) integers, as `Quantized.codes`.

        Returns:
            Vectors in the layout and width of embeddings, (..., D).

        Raises:
            ValueError: if the codes are not integers in [0, num_codes), or the groups do not fit.
        """
        return self.channels_back(self._projected(self._decode(self._check_codes(codes))))

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor:
        """Vectors of codes that are codes, (..., D)."""

    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """Start from real embeddings, (..., D), where there is a codebook to initialize."""

    def place(self, z_e: Tensor) -> Tensor:
        """Project embeddings of the encoder to where they are compared with codewords."""
        return z_e

    def record(self, z_e: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        """Remember a training pass for `update`: placed embeddings (..., D), codes and mask."""

    def discard(self) -> None:
        """Drop what training passes left, as if they had not been."""

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Apply what the training passes since the last call left: EMA, replacement, prices,
        the temperature of `GumbelQuantizer`.

        Call it once after each step of the optimizer, in every process; the update rules do so
        themselves. In eval mode it does nothing.

        Args:
            optimizer: The codebook's; it forgets its moments of codewords that are replaced.
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

    def check_width(self, z_e: Tensor, expected: int | None = None) -> None:
        """Refuse, by a ValueError, embeddings that are not D wide, which might broadcast."""
        expected = self.dim if expected is None else expected
        if z_e.ndim == 0 or z_e.shape[-1] != expected:
            width = z_e.shape[-1] if z_e.ndim else 1
            mapped = z_e.ndim > 1 and z_e.shape[1] == expected
            raise MqvaeError(
                f"the quantizer expects embeddings (..., {expected}), channels last, got "
                f"{tuple(z_e.shape)}: "
                + ("pass channel_axis=1 to it, " if mapped else "")
                + f"move the channels to the end, or build it with dim={width}."
            )

    def _check_finite(self, z_e: Tensor) -> None:
        """Refuse embeddings that no code stands for; looking at them waits for the device."""
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
        if codes.numel():
            least, most = int(codes.min()), int(codes.max())
            if not self.least_code <= least <= most < self.num_codes:
                raise MqvaeError(
                    f"codes must lie in 0 … {self.num_codes - 1}, got {least} … {most}: they "
                    "belong to another codebook."
                )
        return codes


@contextmanager
def unrecorded(module: nn.Module) -> Iterator[None]:
    """Inside, training passes through a module leave no statistics in its quantizers."""
    inside = [m for m in module.modules() if isinstance(m, Quantizer) and m.recording]
    for quantizer in inside:
        quantizer.recording = False
    try:
        yield
    finally:
        for quantizer in inside:
            quantizer.recording = True

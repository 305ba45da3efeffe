"""Numbers rounded one by one: no codebook."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mqvae.core.estimator import StraightThrough
from mqvae.core.passes import full, without_autocast
from mqvae.core.quantizers.base import Quantizer
from mqvae.core.quantizers.quantized import Quantized, no_loss
from mqvae.errors import MqvaeError

MARGIN = 1e-3  # how far tanh reaches over the outermost levels, so that rounding gets there


class FiniteScalarQuantizer(Quantizer):
    """FSQ: each dimension of an embedding is bounded by tanh and rounded to one of a few levels.

    With L levels, h = (L − 1)/2 and ⌊L/2⌋ steps from 0 to the lowest of them,

        z_q = round( h · tanh(z_e + s) − o ) / ⌊L/2⌋        o = ½ for even L, else 0;  tanh s = o/h

    so that levels lie in [−1, 1] and 0 is one of them. The gradient passes the rounding unchanged,
    tanh belongs to the embedding. There is no codebook, no commitment and no codebook loss; a code
    is the number whose digits are the levels, the first dimension's the lowest.

    Args:
        levels: Levels of each dimension; their number is D, their product the number of codes K.
            The paper's, each 5 or more: 2^8 (8, 6, 5), 2^10 (8, 5, 5, 5), 2^12 (7, 5, 5, 5, 5),
            2^14 (8, 8, 8, 6, 5), 2^16 (8, 8, 8, 5, 5, 5).
        channel_axis: The axis of the channels; None for the last.

    Raises:
        ValueError: if a dimension has fewer than two levels, or there is none.

    Example:
        >>> quantizer = FiniteScalarQuantizer((8, 5, 5, 5))
        >>> quantizer.num_codes, quantizer(torch.randn(8, 7, 7, 4)).codes.shape
        (1000, torch.Size([8, 7, 7]))

    Source: Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple".
    """

    levels: Tensor
    places: Tensor
    middle: Tensor

    def __init__(
        self, levels: Sequence[int] = (8, 5, 5, 5), *, channel_axis: int | None = None
    ) -> None:
        if not levels or min(levels) < 2:
            raise MqvaeError(
                "levels must be whole numbers of 2 or more, one for each dimension, got "
                f"{list(levels)}."
            )
        super().__init__(math.prod(levels), len(levels), channel_axis=channel_axis)
        places = [math.prod(levels[:d]) for d in range(len(levels))]
        # They follow the module to its device; there is nothing in them to be saved.
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)
        middle = torch.tensor([float(number // 2) for number in levels])
        self.register_buffer("middle", middle, persistent=False)

    def extra_repr(self) -> str:
        return f"levels={self.levels.tolist()}"

    def place(self, z_e: Tensor) -> Tensor:
        with without_autocast(z_e.device):
            wide = full(z_e)
            half = (1 + MARGIN) * (self.levels.to(wide.dtype) - 1) / 2
            offset = (1 - self.levels % 2) / 2
            bounded = (wide + (offset / half).atanh()).tanh() * half - offset
            return (bounded / self.middle.to(wide.dtype)).to(z_e.dtype)

    def _digits(self, z_e: Tensor) -> Tensor:
        """The level of each number of placed embeddings, from 0 on, (..., D)."""
        middle = self.levels // 2
        steps = (full(z_e) * middle).round().long()
        return (steps + middle).clamp(min=0).minimum(self.levels - 1)

    def _vectors(self, digits: Tensor) -> Tensor:
        return (digits - self.levels // 2) / self.middle

    def quantize(self, z_e: Tensor, *, mask: Tensor | None = None) -> Quantized:
        self.check_width(z_e)
        digits = self._digits(z_e)
        z_q = StraightThrough()(z_e, self._vectors(digits).to(z_e.dtype))
        z_q = self.passed_on(z_e, z_q)
        zero = no_loss(z_e)
        return Quantized(z_q, (digits * self.places).sum(-1), zero, zero)

    def _encode(self, z_e: Tensor) -> Tensor:
        return (self._digits(z_e) * self.places).sum(-1)

    def _decode(self, codes: Tensor) -> Tensor:
        return self._vectors(codes[..., None] // self.places % self.levels)

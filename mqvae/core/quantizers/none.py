"""No quantization."""

import torch
from torch import Tensor

from mqvae.core.quantizers.base import Quantizer
from mqvae.core.quantizers.quantized import Quantized
from mqvae.errors import MqvaeError, at_least


class NoQuantizer(Quantizer):
    """z_q = z_e, one code: for tests, and as the upper bound of what quantization can reach.

    Args:
        dim: Dimensions D of an embedding.
        channel_axis: The axis of the channels; None for the last.
    """

    def __init__(self, dim: int, *, channel_axis: int | None = None) -> None:
        super().__init__()
        at_least(1, dim=dim)
        self.num_codes = 1
        self.dim = dim
        self.groups = 1
        self.channel_axis = channel_axis

    def quantize(self, z_e: Tensor, *, mask: Tensor | None = None) -> Quantized:
        self.check_width(z_e)
        zero = z_e.new_zeros((), dtype=torch.promote_types(z_e.dtype, torch.float32))
        return Quantized(z_e, self._encode(z_e), zero, zero)

    def _encode(self, z_e: Tensor) -> Tensor:
        return torch.zeros(z_e.shape[:-1], dtype=torch.int64, device=z_e.device)

    def decode(self, codes: Tensor) -> Tensor:
        raise MqvaeError("without quantization there are no codes to decode.")

    def initialize(self, z_e: Tensor, *, generator: torch.Generator | None = None) -> None:
        """There is nothing to initialize."""

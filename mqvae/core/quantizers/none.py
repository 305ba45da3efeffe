"""No quantization."""

import torch
from torch import Tensor

from mqvae.core.quantizers.base import Quantizer
from mqvae.core.quantizers.quantized import Quantized, no_loss
from mqvae.errors import MqvaeError


class NoQuantizer(Quantizer):
    """z_q = z_e, one code: for tests, and as the upper bound of what quantization can reach.

    Args:
        dim: Dimensions D of an embedding.
        channel_axis: The axis of the channels; None for the last.
    """

    def __init__(self, dim: int, *, channel_axis: int | None = None) -> None:
        super().__init__(1, dim, channel_axis=channel_axis)

    def quantize(self, z_e: Tensor, *, mask: Tensor | None = None) -> Quantized:
        self.check_width(z_e)
        zero = no_loss(z_e)
        return Quantized(z_e, self._encode(z_e), zero, zero)

    def _encode(self, z_e: Tensor) -> Tensor:
        return torch.zeros(z_e.shape[:-1], dtype=torch.int64, device=z_e.device)

    def _decode(self, codes: Tensor) -> Tensor:
        raise MqvaeError("without quantization there are no codes to decode.")

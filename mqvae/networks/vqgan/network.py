"""The VQ-GAN's encoder and decoder (Esser et al. 2021)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from mqvae.errors import MqvaeError, at_least
from mqvae.networks.architecture import MOST_LAYERS, Architecture, Inputs, check_images, check_sides
from mqvae.networks.normalization import Normalization, check_normalization, norms
from mqvae.networks.vqgan.blocks import (
    Downsample,
    Level,
    Middle,
    Upsample,
    checkpointed,
    directly,
    group_norm,
)


@dataclass(frozen=True)
class VQGAN(Architecture):
    """The convolutional network of VQ-GAN: residual blocks on several resolutions, and attention.

    It takes images of 1 or 3 channels whose sides are multiples of 2^(levels − 1). The defaults are
    the original's f16, 16 × 16 embeddings of 256 × 256 pixels; its f8, 32 × 32 of them, has
    `multipliers` (1, 2, 2, 4) and `attention_at` (32,).

    Embeddings have the quantizer's `dim`: a 1×1 convolution goes there from `z_channels`, and
    another comes back from the codewords. So codes are looked up in few dimensions by
    `VectorQuantizer(num_codes, dim=8)`, and l2-normalized by its `distance=Cosine()`.

    The decoder's last convolution is its attribute `last_layer`.

    Args:
        width: Channels of the first level; the original has 128.
        multipliers: Channels of each level, in widths; from one to the next the side halves.
        residual_blocks: Residual blocks of a level; the decoder has one more, as the original.
        attention_at: Sides, in embeddings, of the levels with attention after each block. Levels
            are counted from the side of the training images. In the middle there always is.
        z_channels: Channels at the end of the encoder and at the start of the decoder.
        dropout: Share of numbers that residual blocks drop.
        signed: The network works on [−1, 1], as the original: images, which are in [0, 1], are
            scaled on the way in and on the way out. In the first convolution this could not be
            done exactly, its zeros at the borders are other ones then.
        group_channels: Channels that each group of the group norms has at least; there are 32
            groups where the width allows, as in the original.
        checkpointing: Keep only the inputs of the blocks, and compute what is in them again for
            the gradient: less memory, about one pass forward more.
        normalization: Of embeddings before they are quantized, as in `VQVAE`.

    Raises:
        ValueError: if a size is out of range.

    Source: Esser et al. 2021, "Taming transformers for high-resolution image synthesis",
    Appendix A.1 and Table 7; Yu et al. 2021, "Vector-quantized image modeling with improved
    VQGAN", for few dimensions and unit vectors.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    residual_blocks: int = 2
    attention_at: tuple[int, ...] = (16,)
    z_channels: int = 256
    dropout: float = 0.0
    signed: bool = True
    group_channels: int = 4
    checkpointing: bool = False
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        sizes = ("width", "residual_blocks", "z_channels", "group_channels")
        at_least(1, **{name: getattr(self, name) for name in sizes})
        if self.residual_blocks > MOST_LAYERS or len(self.multipliers) > MOST_LAYERS:
            raise MqvaeError(f"residual_blocks and levels must be {MOST_LAYERS:,} or less.")
        if not self.multipliers or min(self.multipliers) < 1:
            raise MqvaeError(
                "multipliers must be whole numbers of 1 or more, one for each level, got "
                f"{list(self.multipliers)}."
            )
        if not 0 <= self.dropout < 1:
            raise MqvaeError(f"dropout must be 0 or more and below 1, got {self.dropout}.")
        check_normalization(self.normalization)

    @property
    def stride(self) -> int:
        """Pixels a side for each embedding."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * m for m in self.multipliers]

    @property
    def of_blocks(self) -> dict[str, Any]:
        """What all blocks are given."""
        through = checkpointed if self.checkpointing else directly
        return {"dropout": self.dropout, "least": self.group_channels, "through": through}

    def attends(self, side: int) -> list[bool]:
        """Which levels have attention, for images of this side."""
        return [side // 2**i in self.attention_at for i in range(len(self.multipliers))]

    def check(self, inputs: Inputs) -> None:
        check_sides(inputs.side, inputs.side, stride=self.stride)

    def cut(self, inputs: Inputs, dim: int) -> tuple[nn.Module, nn.Module]:
        return VQGANEncoder(self, inputs, dim), VQGANDecoder(self, inputs, dim)


class VQGANEncoder(nn.Module):
    """F_φ: images (B, channels, H, W) in [0, 1] → embeddings (B, dim, H/stride, W/stride)."""

    def __init__(self, sizes: VQGAN, inputs: Inputs, dim: int) -> None:
        super().__init__()
        self.channels, self.stride, self.signed = inputs.channels, sizes.stride, sizes.signed
        self.first = nn.Conv2d(inputs.channels, sizes.width, 3, padding=1)
        self.levels = nn.Sequential(*_levels(sizes, inputs.side, up=False))
        width = sizes.widths[-1]
        self.middle = Middle(width, **sizes.of_blocks)
        self.norm = group_norm(width, sizes.group_channels)
        self.out = nn.Conv2d(width, sizes.z_channels, 3, padding=1)
        self.to_codes = nn.Conv2d(sizes.z_channels, dim, 1)
        self.normalization = nn.Sequential(*norms(sizes.normalization, dim))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, stride=self.stride)
        if self.signed:
            x = 2 * x - 1
        h = self.middle(self.levels(self.first(x)))
        return self.normalization(self.to_codes(self.out(F.silu(self.norm(h)))))


class VQGANDecoder(nn.Module):
    """G_θ: codewords (B, dim, H/stride, W/stride) → images (B, channels, H, W), around [0, 1]."""

    def __init__(self, sizes: VQGAN, inputs: Inputs, dim: int) -> None:
        super().__init__()
        self.signed = sizes.signed
        width = sizes.widths[-1]
        self.from_codes = nn.Conv2d(dim, sizes.z_channels, 1)
        self.first = nn.Conv2d(sizes.z_channels, width, 3, padding=1)
        self.middle = Middle(width, **sizes.of_blocks)
        self.levels = nn.Sequential(*_levels(sizes, inputs.side, up=True))
        self.norm = group_norm(sizes.widths[0], sizes.group_channels)
        self.last_layer = nn.Conv2d(sizes.widths[0], inputs.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.levels(self.middle(self.first(self.from_codes(z))))
        y = self.last_layer(F.silu(self.norm(h)))
        return (y + 1) / 2 if self.signed else y


def _levels(sizes: VQGAN, side: int, *, up: bool) -> Iterator[Level]:
    """Levels from the images to the embeddings, or up again from the codewords."""
    levels = list(zip(sizes.widths, sizes.attends(side), strict=True))
    levels = levels[::-1] if up else levels
    channels = levels[0][0] if up else sizes.width
    resample = Upsample if up else Downsample
    for left, (width, attention) in zip(reversed(range(len(levels))), levels, strict=True):
        yield Level(
            channels,
            width,
            blocks=sizes.residual_blocks + up,
            attention=attention,
            resample=resample(width) if left else nn.Identity(),
            **sizes.of_blocks,
        )
        channels = width

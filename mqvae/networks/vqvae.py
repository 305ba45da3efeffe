"""The convolutional VQ-VAE (van den Oord et al. 2017, Section 4.1)."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import VectorQuantizer
from mqvae.errors import MqvaeError, at_least, at_most
from mqvae.networks.architecture import MOST_LAYERS, Architecture, Inputs, check_images, check_sides
from mqvae.networks.normalization import Normalization, check_normalization, norms


class ResidualBlock(nn.Module):
    """x + (ReLU, 3×3, ReLU, 1×1)(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class VQVAEEncoder(nn.Module):
    """F_φ: images (B, channels, H, W) → embeddings (B, dim, H/stride, W/stride).

    4×4 convolutions of stride 2, two of them for a stride of 4, a 3×3 one, residual blocks, a 1×1
    one to `dim`, and what normalizes embeddings.
    """

    def __init__(self, sizes: "VQVAE", channels: int, dim: int) -> None:
        super().__init__()
        self.channels, self.stride, width = channels, sizes.stride, sizes.width
        down: list[nn.Module] = []
        for before, after in pairwise([channels, *sizes.widths]):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(
            *down,
            nn.Conv2d(width, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(sizes.residual_blocks)],
            nn.ReLU(),
            nn.Conv2d(width, dim, 1),
            *norms(sizes.normalization, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, stride=self.stride)
        return self.layers(x)


class VQVAEDecoder(nn.Module):
    """G_θ: codewords (B, dim, H/stride, W/stride) → images (B, channels, H, W)."""

    def __init__(self, sizes: "VQVAE", channels: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(dim, sizes.width, 3, padding=1)]
        layers += [ResidualBlock(sizes.width) for _ in range(sizes.residual_blocks)]
        for before, after in pairwise([*reversed(sizes.widths), channels]):
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    @property
    def last_layer(self) -> nn.ConvTranspose2d:
        """The convolution that the images come out of."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.ConvTranspose2d)
        return layer

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


@dataclass(frozen=True)
class VQVAE(Architecture):
    """The convolutional VQ-VAE: convolutions of stride 2, residual blocks, and back.

    It takes images of 1 or 3 channels whose sides are multiples of its stride, and has one
    embedding for each stride × stride pixels.
    They have the quantizer's `dim`, to which the encoder's last 1×1 convolution goes from `width`:
    `VectorQuantizer(num_codes, dim=8)` looks codes up in 8 dimensions.

    Args:
        width: Hidden units of encoder and decoder; the original has 256. Must be even. At each
            resolution above that of the embeddings there are half as many.
        residual_blocks: Residual blocks of each.
        stride: Pixels a side for each embedding, a power of two; the original has 4.
        normalization: Of embeddings before they are quantized, to mean 0 and variance 1: "batch" in
            each dimension over the batch, "layer" in each embedding; None for neither.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", Section 4.1.
    """

    width: int = 256
    residual_blocks: int = 2
    stride: int = 4
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        if self.stride < 2 or self.stride & (self.stride - 1):
            raise MqvaeError(f"stride must be 2, 4, 8 or another power of two, got {self.stride}.")
        least = self.stride // 2
        if self.width < 2 or self.width % least:
            fits = "an even number of 2 or more" if least == 2 else f"a multiple of {least}"
            raise MqvaeError(f"width must be {fits}, got {self.width}.")
        at_least(0, residual_blocks=self.residual_blocks)
        at_most(MOST_LAYERS, residual_blocks=self.residual_blocks)
        check_normalization(self.normalization)

    @property
    def widths(self) -> list[int]:
        """Hidden units at each resolution from half the image's side down to the embeddings'."""
        halvings = self.stride.bit_length() - 1
        return [self.width >> i for i in reversed(range(halvings))]

    def check(self, inputs: Inputs) -> None:
        check_sides(inputs.side, inputs.side, stride=self.stride)

    def cut(self, inputs: Inputs, dim: int) -> tuple[nn.Module, nn.Module]:
        return VQVAEEncoder(self, inputs.channels, dim), VQVAEDecoder(self, inputs.channels, dim)


def vqvae(
    channels: int = 1,
    *,
    num_codes: int = 1024,
    dim: int = 512,
    width: int = 256,
    residual_blocks: int = 2,
    groups: int = 1,
    shared_codebook: bool = False,
) -> VQNetwork:
    """The VQ-VAE of the original paper; the defaults are the sizes of MQ-VAE's Appendix I.

    Args:
        channels: 1 for grey images, 3 for colour.
        num_codes: Number of codewords K.
        dim: Dimensions D of a codeword.
        width: Hidden units of encoder and decoder.
        residual_blocks: Residual blocks of each.
        groups: Parts of an embedding that are quantized apart.
        shared_codebook: One codebook for all groups.

    Example:
        >>> network = vqvae(3, num_codes=512, dim=64, width=64)
        >>> network(torch.rand(2, 3, 32, 32)).output.shape
        torch.Size([2, 3, 32, 32])
    """
    sizes = VQVAE(width, residual_blocks)
    return VQNetwork(
        VQVAEEncoder(sizes, channels, dim),
        VectorQuantizer(num_codes, dim, groups=groups, shared_codebook=shared_codebook),
        VQVAEDecoder(sizes, channels, dim),
    )

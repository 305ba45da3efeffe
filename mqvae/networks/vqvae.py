"""The convolutional VQ-VAE (van den Oord et al. 2017, Section 4.1)."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import VectorQuantizer
from mqvae.errors import MqvaeError, at_least, at_most
from mqvae.networks.architecture import MOST_LAYERS, Architecture, Inputs, check_images, check_sides
from mqvae.networks.normalization import Normalization, check_normalization, norms

STRIDE = 4


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

    Args:
        channels: 1 for grey, 3 for colour.
        dim: Dimensions D of an embedding.
        width: Hidden units; the original has 256. Must be even.
        residual_blocks: The original has 2.
        stride: As in `VQVAE`.
        normalization: Of embeddings, as in `VQVAE`.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        width: int = 256,
        residual_blocks: int = 2,
        stride: int = STRIDE,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        _check(width, residual_blocks, stride)
        check_normalization(normalization)
        self.channels, self.stride = channels, stride
        self.layers = nn.Sequential(
            *[
                layer
                for before, after in pairwise([channels, *_widths(width, stride)])
                for layer in (nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU())
            ],
            nn.Conv2d(width, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(residual_blocks)],
            nn.ReLU(),
            nn.Conv2d(width, dim, 1),
            *norms(normalization, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.channels, stride=self.stride)
        return self.layers(x)


class VQVAEDecoder(nn.Module):
    """G_θ: codewords (B, dim, H/stride, W/stride) → images (B, channels, H, W).

    Args:
        channels: 1 for grey, 3 for colour.
        dim: Dimensions D of a codeword.
        width: Hidden units; the original has 256. Must be even.
        residual_blocks: The original has 2.
        stride: As in `VQVAE`.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        width: int = 256,
        residual_blocks: int = 2,
        stride: int = STRIDE,
    ) -> None:
        super().__init__()
        _check(width, residual_blocks, stride)
        widths = [*reversed(_widths(width, stride)), channels]
        self.layers = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(residual_blocks)],
            *[
                layer
                for before, after in pairwise(widths)
                for layer in (
                    nn.ReLU(),
                    nn.ConvTranspose2d(before, after, 4, stride=2, padding=1),
                )
            ],
        )

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
    stride: int = STRIDE
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        _check(self.width, self.residual_blocks, self.stride)
        check_normalization(self.normalization)

    def check(self, inputs: Inputs) -> None:
        check_sides(inputs.side, inputs.side, stride=self.stride)

    def cut(self, inputs: Inputs, dim: int) -> tuple[nn.Module, nn.Module]:
        sizes = {
            "width": self.width,
            "residual_blocks": self.residual_blocks,
            "stride": self.stride,
        }
        return (
            VQVAEEncoder(inputs.channels, dim, normalization=self.normalization, **sizes),
            VQVAEDecoder(inputs.channels, dim, **sizes),
        )


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
    return VQNetwork(
        VQVAEEncoder(channels, dim, width=width, residual_blocks=residual_blocks),
        VectorQuantizer(num_codes, dim, groups=groups, shared_codebook=shared_codebook),
        VQVAEDecoder(channels, dim, width=width, residual_blocks=residual_blocks),
    )


def _widths(width: int, stride: int) -> list[int]:
    """Hidden units at each resolution from half the image's side down to that of embeddings."""
    halvings = stride.bit_length() - 1
    return [width >> i for i in reversed(range(halvings))]


def _check(width: int, residual_blocks: int, stride: int) -> None:
    if stride < 2 or stride & (stride - 1):
        raise MqvaeError(f"stride must be 2, 4, 8 or another power of two, got {stride}.")
    least = stride // 2
    if width < 2 or width % least:
        raise MqvaeError(
            "width must be "
            + ("an even number of 2 or more" if least == 2 else f"a multiple of {least}")
            + f", got {width}."
        )
    at_least(0, residual_blocks=residual_blocks)
    at_most(MOST_LAYERS, residual_blocks=residual_blocks)

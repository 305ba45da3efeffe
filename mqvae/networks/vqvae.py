"""The convolutional VQ-VAE (van den Oord et al. 2017, Section 4.1)."""

from dataclasses import dataclass

from torch import Tensor, nn

from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import VectorQuantizer
from mqvae.errors import MqvaeError
from mqvae.networks.architecture import MOST_LAYERS, Architecture, Inputs, check_sides
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
    """F_φ: images (B, channels, H, W) → embeddings (B, dim, H/4, W/4).

    Two 4×4 convolutions of stride 2, a 3×3 one, residual blocks, a 1×1 one to `dim`, and what
    normalizes embeddings.

    Args:
        channels: 1 for grey, 3 for colour.
        dim: Dimensions D of an embedding.
        width: Hidden units; the original has 256. Must be even.
        residual_blocks: The original has 2.
        normalization: Of embeddings, as in `VQVAE`.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        width: int = 256,
        residual_blocks: int = 2,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        _check(width, residual_blocks)
        check_normalization(normalization)
        self.channels = channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(residual_blocks)],
            nn.ReLU(),
            nn.Conv2d(width, dim, 1),
            *norms(normalization, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        if channels != self.channels:
            raise MqvaeError(
                f"the encoder expects images of {self.channels} channels, got {channels}."
            )
        check_sides(height, width, stride=STRIDE)
        return self.layers(x)


class VQVAEDecoder(nn.Module):
    """G_θ: codewords (B, dim, H/4, W/4) → images (B, channels, H, W).

    Args:
        channels: 1 for grey, 3 for colour.
        dim: Dimensions D of a codeword.
        width: Hidden units; the original has 256. Must be even.
        residual_blocks: The original has 2.
    """

    def __init__(
        self, channels: int, dim: int, *, width: int = 256, residual_blocks: int = 2
    ) -> None:
        super().__init__()
        _check(width, residual_blocks)
        self.layers = nn.Sequential(
            nn.Conv2d(dim, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(residual_blocks)],
            nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, channels, 4, stride=2, padding=1),
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
    """The convolutional VQ-VAE: two convolutions of stride 2, residual blocks, and back.

    It takes images of 1 or 3 channels whose sides are multiples of 4, and has H/4 × W/4 embeddings.
    They have the quantizer's `dim`, to which the encoder's last 1×1 convolution goes from `width`:
    `VectorQuantizer(num_codes, dim=8)` looks codes up in 8 dimensions.

    Args:
        width: Hidden units of encoder and decoder; the original has 256. Must be even.
        residual_blocks: Residual blocks of each.
        normalization: Of embeddings before they are quantized, to mean 0 and variance 1: "batch" in
            each dimension over the batch, "layer" in each embedding; None for neither.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", Section 4.1.
    """

    width: int = 256
    residual_blocks: int = 2
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        _check(self.width, self.residual_blocks)
        check_normalization(self.normalization)

    def check(self, inputs: Inputs) -> None:
        check_sides(inputs.side, inputs.side, stride=STRIDE)

    def cut(self, inputs: Inputs, dim: int) -> tuple[nn.Module, nn.Module]:
        sizes = {"width": self.width, "residual_blocks": self.residual_blocks}
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


def _check(width: int, residual_blocks: int) -> None:
    if width < 2 or width % 2:
        raise MqvaeError(f"width must be an even number of 2 or more, got {width}.")
    if residual_blocks < 0:
        raise MqvaeError(f"residual_blocks must be 0 or more, got {residual_blocks}.")
    if residual_blocks > MOST_LAYERS:
        raise MqvaeError(f"residual_blocks must be {MOST_LAYERS:,} or less, got {residual_blocks}.")

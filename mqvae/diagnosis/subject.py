"""What is diagnosed: a network that selects codewords, and a sample of images."""

from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import VectorQuantizer
from mqvae.data import Images, Part
from mqvae.data.order import order_of
from mqvae.errors import MqvaeError


def quantizer_of(network: VQNetwork) -> VectorQuantizer:
    """The network's quantizer, or an error if it is no VectorQuantizer."""
    if not isinstance(network.quantizer, VectorQuantizer):
        raise MqvaeError(
            "this diagnosis is about the nearest codeword of one codebook a group: it expects a "
            f"VectorQuantizer, got {type(network.quantizer).__name__}. Diagnose another run."
        )
    return network.quantizer


def sample(images: Images, count: int, *, seed: int) -> Images:
    """`count` images drawn by the seed, in their order, or all; an error if that is none."""
    if count < 1 or not len(images):
        raise MqvaeError(
            f"a diagnosis needs images: expected a count of 1 or more, got {count} of "
            f"{len(images)} images."
        )
    if count >= len(images):
        return images
    indices = order_of(len(images), f"diagnosis,{seed}")[:count].sort().values
    return Part(images, indices)

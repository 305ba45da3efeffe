"""What a network is before it is built."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import Quantizer
from mqvae.errors import MqvaeError

MOST_LAYERS = 1000  # or blocks; more are a slip, and would be built one by one for hours


@dataclass(frozen=True)
class Inputs:
    """What a network is built for: square images or vectors, and the classes they are of.

    Attributes:
        channels: 1 for grey, 3 for colour; of vectors the number of their dimensions.
        side: Pixels a side; 0 of vectors.
        classes: Number of classes.
    """

    channels: int
    side: int
    classes: int = 1


class Architecture(ABC):
    """A network as a description: what it takes, and the encoder and decoder it is cut into.

    Derive from it to train a network of your own, `--network my_module.Mine`; its constructor's
    arguments become settings.
    """

    channel_axis: int = 1
    """Axis of the D dimensions in the encoder's output: 1 for convolutions, -1 for transformers."""

    takes_vectors: bool = False
    """Whether its inputs are vectors (B, D), and not images (B, C, H, W)."""

    def check(self, inputs: Inputs) -> None:  # noqa: B027
        """Refuse what it does not take; by default it takes everything.

        Raises:
            ValueError: names what does not fit, and what would.
        """

    @abstractmethod
    def cut(self, inputs: Inputs, dim: int) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, with embeddings of `dim` dimensions between them."""

    def build(self, inputs: Inputs, quantizer: Quantizer) -> VQNetwork:
        """The network with a quantizer at the cut, freshly initialized.

        Raises:
            ValueError: as `check`.
        """
        if self.takes_vectors != (inputs.side == 0):
            taken, other = ("vectors", "images") if self.takes_vectors else ("images", "vectors")
            raise MqvaeError(
                f"{type(self).__name__} is a network for {taken}, and the data are {other}: take "
                f"a preset for {other}, or --network {'VQVAE' if self.takes_vectors else 'MLP'}."
            )
        self.check(inputs)
        encoder, decoder = self.cut(inputs, quantizer.dim)
        return VQNetwork(encoder, quantizer, decoder, channel_axis=self.channel_axis)


def check_images(x: Tensor, channels: int, *, stride: int) -> None:
    """Refuse images (B, C, H, W) of other channels, or whose sides are no multiples of a stride."""
    if x.shape[1] != channels:
        raise MqvaeError(f"the encoder expects images of {channels} channels, got {x.shape[1]}.")
    check_sides(x.shape[2], x.shape[3], stride=stride)


def check_sides(height: int, width: int, *, stride: int) -> None:
    """Refuse images whose sides are no multiples of a stride, and name sides that would do."""
    if height % stride or width % stride:
        smaller = [max(side - side % stride, stride) for side in (height, width)]
        larger = [side + -side % stride for side in (height, width)]
        raise MqvaeError(
            f"image sides must be multiples of {stride}, got {height} × {width}: "
            f"{smaller[0]} × {smaller[1]} or {larger[0]} × {larger[1]} would do."
        )

"""Linear layers around a quantizer of vectors."""

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from mqvae.errors import MqvaeError, at_least
from mqvae.networks.architecture import MOST_LAYERS, Architecture, Inputs
from mqvae.networks.normalization import Normalization, check_normalization, norms


@dataclass(frozen=True)
class MLP(Architecture):
    """Linear layers with ReLU between them: a vector has one embedding, which has the codes.

    Args:
        width: Hidden units of each layer.
        layers: Hidden layers of encoder and of decoder; with 0 both are linear.
        normalization: Of embeddings before they are quantized, as in `VQVAE`.
    """

    width: int = 512
    layers: int = 2
    normalization: Normalization | None = None

    takes_vectors = True
    channel_axis = -1

    def __post_init__(self) -> None:
        check_normalization(self.normalization)
        at_least(1, width=self.width)
        if not 0 <= self.layers <= MOST_LAYERS:
            raise MqvaeError(f"layers must lie in 0 … {MOST_LAYERS:,}, got {self.layers}.")

    def cut(self, inputs: Inputs, dim: int) -> tuple[nn.Module, nn.Module]:
        between = [self.width] * self.layers
        encoder = _layers([inputs.channels, *between, dim])
        encoder.extend(norms(self.normalization, dim, vectors=True))
        return encoder, _layers([dim, *between, inputs.channels])


def _layers(sizes: list[int]) -> nn.Sequential:
    found: list[nn.Module] = []
    for before, after in pairwise(sizes):
        found += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*found[:-1])

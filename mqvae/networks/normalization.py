"""What normalizes embeddings before they are quantized."""

from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from mqvae.errors import one_of

Normalization: TypeAlias = Literal["batch", "layer"]


class PositionNorm(nn.Module):
    """Layer norm of the vector at each position of (B, dim, …), without scale and shift."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


def norms(
    normalization: Normalization | None, dim: int, *, vectors: bool = False
) -> list[nn.Module]:
    """The layer that follows an encoder, in a list; an empty one where there is none.

    "batch" has mean 0 and variance 1 in each dimension over the batch, "layer" in each embedding.
    Vectors are embeddings (B, dim), and not (B, dim, H, W).
    """
    if normalization is None:
        return []
    # No scale to be learned: it would lead embeddings away again.
    batch_norm = nn.BatchNorm1d if vectors else nn.BatchNorm2d
    return [batch_norm(dim, affine=False) if normalization == "batch" else PositionNorm()]


def check_normalization(normalization: Normalization | None) -> None:
    """Refuse, by a ValueError, a name that is none of those that `norms` knows."""
    one_of((None, *get_args(Normalization)), normalization=normalization)

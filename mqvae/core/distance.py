"""The space in which embeddings and codewords are compared."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Distance(ABC):
    """Base class of distances: projects vectors to where Euclidean distance compares them."""

    @abstractmethod
    def place(self, vectors: Tensor) -> Tensor:
        """Project vectors (..., d) to the space of comparison, (..., d)."""

    def scale(self, vectors: Tensor) -> Tensor:
        """Length of vectors (..., d) over the length of their projections, (..., 1)."""
        return vectors.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Euclidean(Distance):
    """d(z, e) = ‖z − e‖² (Eq. 2)."""

    def place(self, vectors: Tensor) -> Tensor:
        return vectors

    def scale(self, vectors: Tensor) -> Tensor:
        return vectors.new_ones(*vectors.shape[:-1], 1)


@dataclass(frozen=True)
class Cosine(Distance):
    """Embeddings and codewords on the unit sphere; nearest is most similar.

    The decoder gets unit vectors, the losses compare unit vectors.

    Source: Yu et al. 2021, "Vector-quantized image modeling with improved VQGAN".
    """

    def place(self, vectors: Tensor) -> Tensor:
        wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        return normalize(wide, dim=-1).to(vectors.dtype)

"""Embeddings to codewords: the layer h_C of Eq. 1 and 2."""

from mqvae.core.quantizers.base import USE, Quantizer, unrecorded
from mqvae.core.quantizers.finite_scalar import FiniteScalarQuantizer
from mqvae.core.quantizers.gumbel import GumbelQuantizer
from mqvae.core.quantizers.lookup_free import LookupFreeQuantizer
from mqvae.core.quantizers.none import NoQuantizer
from mqvae.core.quantizers.quantized import Quantized
from mqvae.core.quantizers.residual import ResidualQuantizer
from mqvae.core.quantizers.selecting import CodebookQuantizer
from mqvae.core.quantizers.vector import VectorQuantizer

__all__ = [
    "USE",
    "CodebookQuantizer",
    "FiniteScalarQuantizer",
    "GumbelQuantizer",
    "LookupFreeQuantizer",
    "NoQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "VectorQuantizer",
    "unrecorded",
]

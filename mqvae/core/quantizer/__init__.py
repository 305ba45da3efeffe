"""Embeddings to codewords: the layer h_C of Eq. 1 and 2."""

from mqvae.core.quantizer.base import USE, Quantizer, unrecorded
from mqvae.core.quantizer.finite_scalar import FiniteScalarQuantizer
from mqvae.core.quantizer.lookup_free import LookupFreeQuantizer
from mqvae.core.quantizer.none import NoQuantizer
from mqvae.core.quantizer.quantized import Quantized
from mqvae.core.quantizer.residual import ResidualQuantizer
from mqvae.core.quantizer.selecting import CodebookQuantizer
from mqvae.core.quantizer.vector import VectorQuantizer

__all__ = [
    "USE",
    "CodebookQuantizer",
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "NoQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "VectorQuantizer",
    "unrecorded",
]

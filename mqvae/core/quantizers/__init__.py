"""Embeddings to codewords: the layer h_C of Eq. 1 and 2."""

from mqvae.core.quantizers.base import USE as USE
from mqvae.core.quantizers.base import Quantizer as Quantizer
from mqvae.core.quantizers.base import unrecorded as unrecorded
from mqvae.core.quantizers.finite_scalar import FiniteScalarQuantizer as FiniteScalarQuantizer
from mqvae.core.quantizers.gumbel import GumbelQuantizer as GumbelQuantizer
from mqvae.core.quantizers.lookup_free import LookupFreeQuantizer as LookupFreeQuantizer
from mqvae.core.quantizers.none import NoQuantizer as NoQuantizer
from mqvae.core.quantizers.quantized import Quantized as Quantized
from mqvae.core.quantizers.residual import ResidualQuantizer as ResidualQuantizer
from mqvae.core.quantizers.selecting import CodebookQuantizer as CodebookQuantizer
from mqvae.core.quantizers.vector import VectorQuantizer as VectorQuantizer

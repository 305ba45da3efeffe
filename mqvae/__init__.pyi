"""The public names, once: type checkers read them here, and so does `__init__.py`."""

from .core.codebook import Affine as Affine
from .core.codebook import CodebookMap as CodebookMap
from .core.codebook import HyperNetwork as HyperNetwork
from .core.codebook import LinearMap as LinearMap
from .core.codebook import Table as Table
from .core.distance import Cosine as Cosine
from .core.distance import Distance as Distance
from .core.distance import Euclidean as Euclidean
from .core.estimator import Estimator as Estimator
from .core.estimator import Rotation as Rotation
from .core.estimator import StraightThrough as StraightThrough
from .core.gumbel import GumbelQuantizer as GumbelQuantizer
from .core.hypergradient import Ahead as Ahead
from .core.hypergradient import Amortized as Amortized
from .core.hypergradient import Central as Central
from .core.hypergradient import Derivative as Derivative
from .core.hypergradient import DirectOnly as DirectOnly
from .core.hypergradient import Exact as Exact
from .core.hypergradient import FiniteDifference as FiniteDifference
from .core.hypergradient import ForwardMode as ForwardMode
from .core.hypergradient import Hypergradient as Hypergradient
from .core.hypergradient import HypergradientRule as HypergradientRule
from .core.hypergradient import OneSided as OneSided
from .core.hypergradient import Unrolled as Unrolled
from .core.network import NetworkOutput as NetworkOutput
from .core.network import VQNetwork as VQNetwork
from .core.quantizer import NoQuantizer as NoQuantizer
from .core.quantizer import Quantized as Quantized
from .core.quantizer import Quantizer as Quantizer
from .core.quantizer import ResidualQuantizer as ResidualQuantizer
from .core.quantizer import VectorQuantizer as VectorQuantizer
from .core.replacement import LeastRecentlyUsed as LeastRecentlyUsed
from .core.replacement import Replacement as Replacement
from .core.updates import Alternated as Alternated
from .core.updates import Ema as Ema
from .core.updates import GenericMeta as GenericMeta
from .core.updates import GenericStep as GenericStep
from .core.updates import Joint as Joint
from .core.updates import Kept as Kept
from .core.updates import LookAhead as LookAhead
from .core.updates import Meta as Meta
from .core.updates import MetaBoth as MetaBoth
from .core.updates import MetaNetwork as MetaNetwork
from .core.updates import Step as Step
from .core.updates import Synchronous as Synchronous
from .core.updates import Undone as Undone
from .core.updates import Update as Update
from .networks.architecture import Architecture as Architecture
from .networks.vqvae import VQVAE as VQVAE
from .networks.vqvae import vqvae as vqvae
from .tasks import Reconstruction as Reconstruction
from .tasks import Task as Task
from .tokenizer import Tokenizer as Tokenizer

__all__: list[str]
__version__: str

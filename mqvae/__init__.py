"""Vector-quantized networks whose codebook is learned by hypergradient."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqvae.core.codebook import (
        Affine,
        CodebookMap,
        HyperNetwork,
        LinearMap,
        Table,
    )
    from mqvae.core.distance import (
        Cosine,
        Distance,
        Euclidean,
    )
    from mqvae.core.estimator import (
        Estimator,
        Rotation,
        StraightThrough,
    )
    from mqvae.core.gumbel import (
        GumbelQuantizer,
    )
    from mqvae.core.hypergradient import (
        Amortized,
        Central,
        Derivative,
        DirectOnly,
        Exact,
        FiniteDifference,
        ForwardMode,
        Hypergradient,
        HypergradientRule,
        OneSided,
        Unrolled,
    )
    from mqvae.core.network import (
        NetworkOutput,
        VQNetwork,
    )
    from mqvae.core.quantizer import (
        NoQuantizer,
        Quantized,
        Quantizer,
        ResidualQuantizer,
        VectorQuantizer,
    )
    from mqvae.core.replacement import (
        LeastRecentlyUsed,
        Replacement,
    )
    from mqvae.core.updates import (
        Alternated,
        Ema,
        GenericMeta,
        GenericStep,
        Joint,
        Kept,
        LookAhead,
        Meta,
        MetaBoth,
        MetaNetwork,
        Step,
        Synchronous,
        Undone,
        Update,
    )
    from mqvae.networks.vqvae import (
        vqvae,
    )
    from mqvae.tokenizer import (
        Tokenizer,
    )

__version__ = "0.1.0"

_HOMES = {
    "mqvae.core.codebook": (
        "Affine",
        "CodebookMap",
        "HyperNetwork",
        "LinearMap",
        "Table",
    ),
    "mqvae.core.distance": (
        "Cosine",
        "Distance",
        "Euclidean",
    ),
    "mqvae.core.estimator": (
        "Estimator",
        "Rotation",
        "StraightThrough",
    ),
    "mqvae.core.gumbel": ("GumbelQuantizer",),
    "mqvae.core.hypergradient": (
        "Amortized",
        "Central",
        "Derivative",
        "DirectOnly",
        "Exact",
        "FiniteDifference",
        "ForwardMode",
        "Hypergradient",
        "HypergradientRule",
        "OneSided",
        "Unrolled",
    ),
    "mqvae.core.network": (
        "NetworkOutput",
        "VQNetwork",
    ),
    "mqvae.core.quantizer": (
        "NoQuantizer",
        "Quantized",
        "Quantizer",
        "ResidualQuantizer",
        "VectorQuantizer",
    ),
    "mqvae.core.replacement": (
        "LeastRecentlyUsed",
        "Replacement",
    ),
    "mqvae.core.updates": (
        "Alternated",
        "Ema",
        "GenericMeta",
        "GenericStep",
        "Joint",
        "Kept",
        "LookAhead",
        "Meta",
        "MetaBoth",
        "MetaNetwork",
        "Step",
        "Synchronous",
        "Undone",
        "Update",
    ),
    "mqvae.networks.vqvae": ("vqvae",),
    "mqvae.tokenizer": ("Tokenizer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Affine",
    "Alternated",
    "Amortized",
    "Central",
    "CodebookMap",
    "Cosine",
    "Derivative",
    "DirectOnly",
    "Distance",
    "Ema",
    "Estimator",
    "Euclidean",
    "Exact",
    "FiniteDifference",
    "ForwardMode",
    "GenericMeta",
    "GenericStep",
    "GumbelQuantizer",
    "HyperNetwork",
    "Hypergradient",
    "HypergradientRule",
    "Joint",
    "Kept",
    "LeastRecentlyUsed",
    "LinearMap",
    "LookAhead",
    "Meta",
    "MetaBoth",
    "MetaNetwork",
    "NetworkOutput",
    "NoQuantizer",
    "OneSided",
    "Quantized",
    "Quantizer",
    "Replacement",
    "ResidualQuantizer",
    "Rotation",
    "Step",
    "StraightThrough",
    "Synchronous",
    "Table",
    "Tokenizer",
    "Undone",
    "Unrolled",
    "Update",
    "VQNetwork",
    "VectorQuantizer",
    "vqvae",
]


def __getattr__(name: str) -> Any:
    # Late, so that `mqvae --help` does not wait for torch.
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'mqvae' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

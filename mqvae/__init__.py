"""Vector-quantized networks whose codebook is learned by hypergradient."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqvae.core.hypergradient import (
        Central,
        DirectOnly,
        Exact,
        FiniteDifference,
        ForwardMode,
        Hypergradient,
        OneSided,
    )
    from mqvae.core.network import NetworkOutput, VQNetwork
    from mqvae.core.quantizer import Quantized, VectorQuantizer
    from mqvae.core.updates import Alternated, Joint, Kept, Meta, Step, Undone, Update
    from mqvae.networks.vqvae import vqvae
    from mqvae.tokenizer import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "mqvae.core.hypergradient": (
        "Central",
        "DirectOnly",
        "Exact",
        "FiniteDifference",
        "ForwardMode",
        "Hypergradient",
        "OneSided",
    ),
    "mqvae.core.network": ("NetworkOutput", "VQNetwork"),
    "mqvae.core.quantizer": ("Quantized", "VectorQuantizer"),
    "mqvae.core.updates": ("Alternated", "Joint", "Kept", "Meta", "Step", "Undone", "Update"),
    "mqvae.networks.vqvae": ("vqvae",),
    "mqvae.tokenizer": ("Tokenizer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Alternated",
    "Central",
    "DirectOnly",
    "Exact",
    "FiniteDifference",
    "ForwardMode",
    "Hypergradient",
    "Joint",
    "Kept",
    "Meta",
    "NetworkOutput",
    "OneSided",
    "Quantized",
    "Step",
    "Tokenizer",
    "Undone",
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

"""Vector-quantized networks whose codebook is learned by hypergradient."""

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

__version__ = "0.1.0"

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
    "Undone",
    "Update",
    "VQNetwork",
    "VectorQuantizer",
    "vqvae",
]

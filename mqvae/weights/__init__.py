"""Trained networks that metrics take: where their weights are, and where from."""

from mqvae.weights.files import Weights, WeightsNotFound, fetch, find, read, take
from mqvae.weights.networks import NETWORKS, Pretrained
from mqvae.weights.pickled import lpips_heads

__all__ = [
    "NETWORKS",
    "Pretrained",
    "Weights",
    "WeightsNotFound",
    "fetch",
    "find",
    "lpips_heads",
    "read",
    "take",
]

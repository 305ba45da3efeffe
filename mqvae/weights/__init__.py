"""Trained networks that metrics take: where their weights are, and where from."""

from mqvae.weights.files import Weights as Weights
from mqvae.weights.files import WeightsNotFound as WeightsNotFound
from mqvae.weights.files import fetch as fetch
from mqvae.weights.files import find as find
from mqvae.weights.files import read as read
from mqvae.weights.files import take as take
from mqvae.weights.networks import NETWORKS as NETWORKS
from mqvae.weights.networks import Pretrained as Pretrained
from mqvae.weights.pickled import lpips_heads as lpips_heads

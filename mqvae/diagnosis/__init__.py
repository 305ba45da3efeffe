"""What limits a trained network, found without training it."""

from mqvae.diagnosis.choice import BestOfNearest, best_of_nearest
from mqvae.diagnosis.refit import Refit, refitted

__all__ = [
    "BestOfNearest",
    "Refit",
    "best_of_nearest",
    "refitted",
]

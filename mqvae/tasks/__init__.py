"""What a network is trained for: targets, losses, figures, pictures, players of its own."""

from mqvae.tasks.adversarial import Adversarial
from mqvae.tasks.classification import Classification
from mqvae.tasks.reconstruction import Reconstruction
from mqvae.tasks.task import Figure, Matrix, Measurement, Picture, Player, Strip, Task

__all__ = [
    "Adversarial",
    "Classification",
    "Figure",
    "Matrix",
    "Measurement",
    "Picture",
    "Player",
    "Reconstruction",
    "Strip",
    "Task",
]

"""What a network is trained for: targets, losses, metrics, pictures, auxiliary networks."""

from mqvae.tasks.adversarial import Adversarial
from mqvae.tasks.classification import Classification
from mqvae.tasks.reconstruction import Reconstruction, VectorReconstruction
from mqvae.tasks.task import (
    AuxiliaryOptimizer,
    Matrix,
    Measurement,
    Metric,
    Picture,
    Strip,
    Task,
)

__all__ = [
    "Adversarial",
    "AuxiliaryOptimizer",
    "Classification",
    "Matrix",
    "Measurement",
    "Metric",
    "Picture",
    "Reconstruction",
    "Strip",
    "Task",
    "VectorReconstruction",
]

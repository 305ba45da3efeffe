"""What limits a trained network, found without training it."""

from mqvae.diagnosis.bound import without_quantization
from mqvae.diagnosis.choice import BestOfNearest, best_of_nearest
from mqvae.diagnosis.measured import Finding, Measured
from mqvae.diagnosis.motion import Motion, motion
from mqvae.diagnosis.refit import Refit, refitted
from mqvae.diagnosis.run import Diagnosis, diagnose, write_diagnosis

__all__ = [
    "BestOfNearest",
    "Diagnosis",
    "Finding",
    "Measured",
    "Motion",
    "Refit",
    "best_of_nearest",
    "diagnose",
    "motion",
    "refitted",
    "without_quantization",
    "write_diagnosis",
]

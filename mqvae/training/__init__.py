"""Training: settings in, a run folder out."""

from mqvae.config.settings import inputs_of
from mqvae.runs.images import load_run_split
from mqvae.training.loop import Training
from mqvae.training.processes import Processes, restarted
from mqvae.training.results import device_name, not_finite, versions, write_evaluation
from mqvae.training.runs import begin, resume, tried
from mqvae.training.schedule import learning_rate, warmup_cosine
from mqvae.training.stopping import (
    Interrupted,
    NotFinite,
    OutOfMemory,
    ProcessLost,
    TrainingFailed,
)

__all__ = [
    "Interrupted",
    "NotFinite",
    "OutOfMemory",
    "ProcessLost",
    "Processes",
    "Training",
    "TrainingFailed",
    "begin",
    "device_name",
    "inputs_of",
    "learning_rate",
    "load_run_split",
    "not_finite",
    "restarted",
    "resume",
    "tried",
    "versions",
    "warmup_cosine",
    "write_evaluation",
]

"""Training: settings in, a run folder out."""

from mqvae.trainer.results import device_name, versions, write_evaluation_files
from mqvae.trainer.settings import Settings, build_network, load_split, method_name
from mqvae.trainer.training import Interrupted, NotFinite, Training, warmup_cosine

__all__ = [
    "Interrupted",
    "NotFinite",
    "Settings",
    "Training",
    "build_network",
    "device_name",
    "load_split",
    "method_name",
    "versions",
    "warmup_cosine",
    "write_evaluation_files",
]

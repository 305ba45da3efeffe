"""Settings: from presets, files and the command line to objects, and back."""

from mqvae.config.options import Optimizer, Spec, Start, Trainer
from mqvae.config.presets import method_names, preset_names, presets_in_words
from mqvae.config.settings import Components, Settings, from_arguments, load_preset

__all__ = [
    "Components",
    "Optimizer",
    "Settings",
    "Spec",
    "Start",
    "Trainer",
    "from_arguments",
    "load_preset",
    "method_names",
    "preset_names",
    "presets_in_words",
]

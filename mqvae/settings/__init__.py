"""Settings: from presets, files and the command line to objects, and back."""

from mqvae.settings.options import Data, Optimizer, Spec, Start, Trainer
from mqvae.settings.presets import method_names, preset_names, presets_in_words
from mqvae.settings.settings import Components, Settings, from_arguments, load_preset

__all__ = [
    "Components",
    "Data",
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

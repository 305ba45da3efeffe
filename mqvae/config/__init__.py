"""Settings: from presets, files and the command line to objects, and back."""

from mqvae.config.options import Optimizer as Optimizer
from mqvae.config.options import Spec as Spec
from mqvae.config.options import Start as Start
from mqvae.config.options import Trainer as Trainer
from mqvae.config.presets import method_names as method_names
from mqvae.config.presets import preset_names as preset_names
from mqvae.config.presets import presets_in_words as presets_in_words
from mqvae.config.settings import Settings as Settings
from mqvae.config.settings import from_arguments as from_arguments
from mqvae.config.settings import load_preset as load_preset

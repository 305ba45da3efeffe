from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import beginning_with as beginning_with
from .checkpoint import optimizer_state as optimizer_state
from .checkpoint import restore_optimizer as restore_optimizer
from .folder import COLUMNS as COLUMNS
from .folder import Run as Run

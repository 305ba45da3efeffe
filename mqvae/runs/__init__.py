"""The folders that runs leave behind."""

from mqvae.files import read_json, write_json, write_whole
from mqvae.runs.checkpoint import (
    Checkpoint,
    beginning_with,
    optimizer_state,
    restore_optimizer,
)
from mqvae.runs.folder import COLUMNS, Run

__all__ = [
    "COLUMNS",
    "Checkpoint",
    "Run",
    "beginning_with",
    "optimizer_state",
    "read_json",
    "restore_optimizer",
    "write_json",
    "write_whole",
]

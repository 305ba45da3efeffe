"""The paper's mathematics. Imports torch and nothing else."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        if name in ("gap", "rules", "usage"):  # which pages write without importing them
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""A trained run as an object: images to codes and back, shared and exported."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from mqvae.tokenizer.codec import BATCH_SIZE as BATCH_SIZE
from mqvae.tokenizer.codes import Codes as Codes
from mqvae.tokenizer.codes import SizedCodes as SizedCodes
from mqvae.tokenizer.tokenizer import Tokenizer as Tokenizer

if not TYPE_CHECKING:

    def __getattr__(name: str) -> ModuleType:
        if name in ("export",):  # which pages write without importing them
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Modules of the user's own, imported where the command line names them and nowhere else."""

import os
import sys
from importlib import import_module

from mqvae.errors import MqvaeError

OWN_MODULES: set[str | None] = set()
"""Files of the modules that were imported."""


def imported(arguments: list[str]) -> list[str]:
    """The arguments without --import, whose modules are imported.

    Raises:
        MqvaeError: if a module is not there or fails.
    """
    others = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        option, given, module = argument.partition("=")
        if option != "--import":
            others.append(argument)
            continue
        if not given:
            module = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        if not all(part.isidentifier() for part in module.split(".")):
            raise MqvaeError(
                f"--import takes a module's name, as in --import my_module, got '{module}'."
            )
        import_own(module, f"--import {module}")
    return others


def import_own(module: str, option: str) -> None:
    """Import a module from the current folder or among installed packages.

    Args:
        module: Its name.
        option: What named it, for messages.

    Raises:
        MqvaeError: if it is not there or fails.
    """
    sys.path.insert(0, os.getcwd())  # where `python -m` looks first, too
    try:
        OWN_MODULES.add(getattr(import_module(module), "__file__", None))
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(str(error.name))
        raise MqvaeError(
            f"{option}: there is no such module in this folder or among installed packages."
            if missing
            else f"{option}: importing it failed with {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(os.getcwd())

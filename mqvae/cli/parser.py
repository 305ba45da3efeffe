"""Options, and what is said of those that do not fit."""

import argparse
import difflib
import importlib
import re
from collections.abc import Sequence
from typing import Any, NoReturn


class _Parser(argparse.ArgumentParser):
    """Unknown options are answered with the nearest name."""

    def error(self, message: str) -> NoReturn:
        known = [o for action in self._actions for o in action.option_strings]
        raise ValueError(_with_nearest_option(message, known))


def parser_of(command: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"mqvae {command}", description=description, allow_abbrev=False)


def _with_nearest_option(message: str, known: Sequence[str]) -> str:
    unknown = re.search(r"[Uu]nrecognized arguments: ([^\s=]+)", message)
    if not unknown:
        return f"{message}."
    if not unknown[1].startswith("-"):
        return f"there is an argument too many: '{unknown[1]}'."
    return f"there is no option {unknown[1]}.{nearest(unknown[1], known)} --help lists them."


def explained(message: str, parser: Any) -> str:
    """jsonargparse's message, in the words of somebody who typed an option."""
    from mqvae.config import nearest_name

    known = [o for action in parser._actions for o in action.option_strings]
    if "nrecognized arguments" in message:
        return _with_nearest_option(message, known)
    # From the outside in: where it is, and what was being made there.
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    classes = re.findall(r"Problem with given class_path '([\w.]+)'", message)
    key = ".".join(keys)

    if file := re.search(r"File does not exist: '(.+)'", message):
        return f"there is no file {file[1]}."
    if "Unable to load config" in message:
        example = next((o for o in known if o.startswith(f"--{keys[0]}.")), "")
        return f"--{keys[0]} takes a YAML file; a single setting goes as in {example}."
    if required := re.search(r"arguments are required: (.+)", message):
        return f"{required[1]} must be set: `base: paper` in the file is a beginning."
    if refused := re.search(
        r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", message
    ):
        name = ".".join(filter(None, refused.groups()))
        if not classes:
            settings = [o.lstrip("-") for o in known]
            return f"there is no setting '{name}'.{nearest_name(name, settings)}"
        accepted = _arguments_of(classes[-1])
        return (
            f"there is no option --{key}.{name} of {classes[-1].rpartition('.')[2]}."
            f"{nearest_name(name, accepted)} Options: {', '.join(accepted) or 'none'}."
        )
    missing = re.search(r"(?:has no attribute|No module named) '", message)
    unknown = re.search(r"(?:dot import path string:|Import path) (\S+)", message)
    if unknown or (missing and classes):
        name = (unknown[1] if unknown else classes[-1]).removeprefix("mqvae.")
        choices = _known_classes(key)
        return (
            f"--{key} has no choice '{name}'.{nearest_name(name, choices)} "
            f"Choices: {', '.join(choices)}."
        )
    kinds = [k for k in re.findall(r"Expected an? <class '(\w+)'>", message) if k != "NoneType"]
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if kinds and value:
        return f"--{key} expects {kinds[0]}, got '{value[1].strip()}'."
    if "Not a valid subclass" in message and value:
        return f"--{key} expects one of {', '.join(_known_classes(key))}, got '{value[1]}'."
    # A range that a class checks by itself says so in its own words.
    return re.sub(r"\s*\n\s*(- )?", " ", message).strip()


def _arguments_of(class_path: str) -> list[str]:
    import inspect

    module, _, name = class_path.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), name))
    return [p for p in signature.parameters if p not in ("network", "loss", "lower", "upper")]


def _known_classes(key: str) -> list[str]:
    import inspect

    import mqvae

    base: type = {
        "update": mqvae.Update,
        "quantizer": mqvae.Quantizer,
        "stages": mqvae.VectorQuantizer,
        "codebook": mqvae.CodebookMap,
        "distance": mqvae.Distance,
        "estimator": mqvae.Estimator,
        "replacement": mqvae.Replacement,
        "hypergradient": mqvae.HypergradientRule,
        "look_ahead": mqvae.LookAhead,
    }.get(key.rpartition(".")[2], mqvae.Derivative)
    public = [getattr(mqvae, name) for name in mqvae.__all__]
    return [
        kind.__name__
        for kind in public
        if isinstance(kind, type)
        and issubclass(kind, base)
        and not inspect.isabstract(kind)
        and kind is not mqvae.LookAhead
    ]


def nearest(name: str, known: Sequence[str] | dict[str, str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def text_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error) or type(error).__name__

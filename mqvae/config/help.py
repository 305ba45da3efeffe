"""Texts of `mqvae train --help`, `--help-all` and `--SLOT.help CLASS`."""

import textwrap
from collections.abc import Iterator
from enum import Enum
from inspect import Parameter, cleandoc, getdoc, signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse
from torch import Tensor

from mqvae.config.classes import choices, find, is_ours
from mqvae.config.command_line import SHORT
from mqvae.config.options import HANDED_LATER, LEVELS, LISTED, SLOTS, Start
from mqvae.errors import MqvaeError, did_you_mean

_EVERYDAY_NAMES = {setting: option for option, setting in SHORT.items()}


def show_help(arguments: list[str]) -> None:
    """Show what is asked for instead of training, and leave; nothing is done if nothing is.

    Raises:
        MqvaeError: if a class is asked for that is none.
    """
    for at, argument in enumerate(arguments):
        name, _, kind = argument.partition("=")
        if name in ("-h", "--help"):
            text = _text("help.txt")
        elif name == "--help-all":
            text = everything()
        elif name.startswith("--") and name.endswith(".help"):
            slot, given = name[2:-5], kind or "".join(arguments[at + 1 : at + 2])
            found = find(given)
            if found is None or not is_ours(found):
                known = choices(SLOTS[slot][0]) if slot in SLOTS else []
                raise MqvaeError(
                    f"{name} takes the name of a class, got '{given}'.{did_you_mean(given, known)}"
                )
            text = of_class(slot, found)
        else:
            continue
        print(text, end="")
        raise SystemExit(0)


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def everything() -> str:
    """All options of `mqvae train`."""
    lines = [_text("help-all.txt").rstrip("\n"), *_arguments("from", Start)]
    for name, group in LISTED.items():
        lines += ["", f"{name}:", *_arguments(name, group)]
    lines += ["", "components, a class each:"]
    for slot, (base, default) in SLOTS.items():
        names = ", ".join(choices(base))
        usual = "the preset's" if default is None else default["class_path"].rpartition(".")[2]
        lines += _option(f"--{slot} CLASS", f"{names} (default: {usual})")
        lines += _option(f"--{slot}.help CLASS", "the arguments of a class")
    return "\n".join(lines) + "\n"


def of_class(slot: str, kind: type) -> str:
    """The options of a class at a place of the settings."""
    first = cleandoc(getdoc(kind) or kind.__name__).partition("\n\n")[0]
    arguments = list(_arguments(slot, kind)) or ["  It takes no options."]
    return "\n".join(
        [f"--{slot} {kind.__name__}", "", *textwrap.wrap(first, 80), "", *arguments, ""]
    )


def _arguments(place: str, kind: type) -> Iterator[str]:
    """The arguments of a class: option, value, meaning and default of each."""
    begin: Any = getattr(kind, "__init__")  # noqa: B009
    pages = [each.__doc__ or "" for each in reversed(kind.__mro__)] + [getdoc(begin) or ""]
    documented = [each for page in pages for each in parse(page).params]
    meanings = {each.arg_name: each.description or "" for each in documented}
    hints = get_type_hints(begin)
    for name, argument in signature(kind).parameters.items():
        if argument.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        if name in HANDED_LATER or (place == "optimizer" and name in LEVELS):
            continue
        setting = f"{place}.{name}"
        value = _value(hints.get(name, Any))
        option = f"--{setting} {value}".rstrip()
        if everyday := _EVERYDAY_NAMES.get(setting):
            option = f"{everyday}, {option}"
        words = " ".join(meanings.get(name, "").split())
        default = argument.default
        # Which class None stands for is said in words, if at all.
        chosen = default is None and value == "CLASS"
        if default is not Parameter.empty and not chosen and "(default" not in words:
            words = f"{words.removesuffix('.')} (default: {_default(default)})".strip()
        yield from _option(option, words)


def _option(option: str, words: str) -> list[str]:
    """An option, and below it what it means."""
    found = textwrap.fill(
        words, 80, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False
    )
    return [f"  {option}", *([found] if words else [])]


def _value(hint: Any) -> str:
    """Placeholder of an option's value, by the type of its argument."""
    kinds = [kind for kind in get_args(hint) if kind not in (type(None), Tensor)]
    if get_origin(hint) is Literal:
        return "|".join(map(str, kinds))
    if get_origin(hint) in (list, tuple):
        return "A,B"
    if kinds and not isinstance(hint, type):
        each = dict.fromkeys(_value(kind) for kind in kinds)
        return "|".join(each)
    if not isinstance(hint, type):
        return "VALUE"
    for kind, word in ((bool, "true|false"), (int, "N"), (float, "X"), (str, "TEXT")):
        if issubclass(hint, kind):
            return word
    return "VALUE" if issubclass(hint, Enum | dict) else "CLASS"


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return str(value) if isinstance(value, int | float | str) else type(value).__name__

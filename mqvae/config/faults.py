"""What is wrong with settings, found by their schema, in plain words."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from inspect import Parameter, isabstract, signature
from types import UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from mqvae.config.classes import bases_in, choices, find, hints_of, only_ours, path_of
from mqvae.config.options import GROUPS, HANDED_LATER, SETTINGS, SLOTS, Start
from mqvae.data.source import ImageData
from mqvae.errors import did_you_mean
from mqvae.ranges import RANGES

LONGEST = 1000  # characters of a message
VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
Spelled: TypeAlias = Callable[[str], str]
"""The name of a setting, as "trainer.devices", to what its writer wrote, as "--devices"."""


def fault_in(config: Mapping[str, Any], spelled: Spelled = str) -> str | None:
    """The first thing that is wrong with settings, and what would be right; None if nothing is."""
    with only_ours(config):  # a value that is tried must not be imported either
        return next(map(shortened, _faults(config, spelled)), None)


def shortened(text: str) -> str:
    """One line that a terminal holds, however much was written where a word belongs."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


def _faults(config: Mapping[str, Any], spelled: Spelled) -> Iterator[str]:
    groups: dict[str, type[Any]] = {"from": Start, **GROUPS}
    for name, value in config.items():
        if name in SLOTS:
            if value is not None:
                yield from _of_component(name, value, SLOTS[name][0], spelled)
        elif name in groups:
            if value is not None:
                yield from _of_group(name, value, groups[name], spelled)
        elif name in SETTINGS:
            yield from _of_value(spelled(name), value, SETTINGS[name])
        else:
            inside = list(value)[:1] if isinstance(value, Mapping) else []
            yield _no_setting(".".join([name, *map(str, inside)]))
    missing = [slot for slot, (_, usual) in SLOTS.items() if not usual and not config.get(slot)]
    if missing:
        yield f"{', '.join(missing)} must be set: `base: paper` in the file is a beginning."


def _no_setting(name: str) -> str:
    groups = {"from": Start, "data": ImageData, **GROUPS}
    known = [*SETTINGS, *SLOTS, *groups]
    known += [f"{group}.{each.name}" for group, kind in groups.items() for each in fields(kind)]
    return f"there is no setting '{name}'.{did_you_mean(name, known)}"


def _of_group(name: str, given: Any, group: type[Any], spelled: Spelled) -> Iterator[str]:
    if not isinstance(given, Mapping) or "class_path" in given:
        own = ", ".join(field.name for field in fields(group))
        yield f"{spelled(name)} takes settings of its own, no class or value: {own}."
        return
    hints = get_type_hints(group)
    for key, value in given.items():
        place = f"{name}.{key}"
        if place in SLOTS:
            yield from _of_component(place, value, SLOTS[place][0], spelled)
        elif key in hints:
            yield from _of_value(spelled(place), value, hints[key])
        else:
            yield _no_setting(place)
    if group is Start and "run" not in given:
        yield f"{spelled('from.run')} must be set."


def _of_component(
    place: str, given: Any, base: Any, spelled: Spelled, usual: Any = None
) -> Iterator[str]:
    if isinstance(given, list):
        for each in given:
            yield from _of_component(place, each, base, spelled)
        return
    if given is None:
        return
    component = given if isinstance(given, Mapping) else {"class_path": given}
    default = path_of(type(usual)) if isinstance(usual, base) else None
    path, known = component.get("class_path", default), choices(base)
    if path is None:
        yield f"{spelled(place)}.class_path must name a class. Choices: {', '.join(known)}."
        return
    kind = find(path) if isinstance(path, str) else None
    if kind is None or not issubclass(kind, base) or isabstract(kind):
        name = str(path).removeprefix("mqvae.")
        yield (
            f"{spelled(place)} has no choice '{name}'.{did_you_mean(name, known)}{_own(name)} "
            f"Choices: {', '.join(known)}."
        )
        return
    arguments = component.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        yield f"{spelled(place)} must hold settings as 'name: value', got {arguments!r}."
        return
    yield from _of_arguments(place, arguments, kind, spelled)


def _of_arguments(
    place: str, given: Mapping[str, Any], kind: type, spelled: Spelled
) -> Iterator[str]:
    parameters = signature(kind).parameters
    taken = [n for n, p in parameters.items() if p.kind not in VARIADIC and n not in HANDED_LATER]
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    takes_any &= getattr(kind, "__init__") is not nn.Module.__init__  # noqa: B009
    for name, value in given.items():
        hint = hints_of(kind).get(name, Any)
        if bases := bases_in(hint):
            usual = parameters[name].default if name in taken else None
            yield from _of_component(f"{place}.{name}", value, bases, spelled, usual)
        elif name in taken:
            yield from _of_value(spelled(f"{place}.{name}"), value, hint)
        elif not takes_any or name in HANDED_LATER:
            meant = did_you_mean(name, taken)
            hint = f" The learning rate is {spelled(place)}_lr." if name == "lr" else meant
            yield (
                f"there is no option {spelled(f'{place}.{name}')} of {kind.__name__}.{hint} "
                f"Options: {', '.join(taken) or 'none'}."
            )
    for name in taken:
        if parameters[name].default is Parameter.empty and name not in given:
            yield f"{spelled(f'{place}.{name}')} must be set."


def _of_value(name: str, value: Any, hint: Any) -> Iterator[str]:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if hint is Any or (value is not None and _fits(value, hint)):
        return
    if value is None:
        if type(None) not in kinds:
            yield f"{name} expects a value, got none."
        return
    for kind in kinds:
        if get_origin(kind) is Literal:
            known = list(map(str, get_args(kind)))
            meant = did_you_mean(str(value), known)
            yield f"{name} must be one of {', '.join(known)}, got '{value}'.{meant}"
        elif get_origin(kind) in (list, tuple, Sequence):
            of_each = [each for each in get_args(kind) if each is not ...] or [Any]
            for at, each in enumerate(value) if isinstance(value, list | tuple) else ():
                yield from _of_value(name, each, of_each[min(at, len(of_each) - 1)])
            yield f"{name} expects a list, as in [1, 2], got '{value}'."
        elif kind in RANGES:
            number, words = RANGES[kind]
            try:
                number(str(value))
                yield f"{name} must {words}, got {value}."
            except ValueError:
                yield f"{name} expects {number.__name__}, got '{value}'."
        elif isinstance(kind, type) and kind is not type(None):
            yield f"{name} expects {kind.__name__}, got '{value}'."


@cache
def _parser_of(hint: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _fits(value: Any, hint: Any) -> bool:
    """Whether the parser takes a value for a type."""
    try:
        _parser_of(hint).parse_object({"value": value})
    except ArgumentError:
        return False
    return True


def _own(name: str) -> str:
    """How a class of the user's own module is had."""
    module = name.rpartition(".")[0]
    home = module.partition(".")[0]
    if home in ("", "torch", *sys.stdlib_module_names) or home in sys.modules:
        return ""
    return f" For a class of your own add --import {module}, or import it."

"""The one rule by which settings are laid over settings.

Presets, files over their `base`, `--config` and options all go through `merged`. A setting that is
said replaces the one below. A component of another class takes nothing of the old one's arguments;
one of the same class keeps what is not said.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any

from mqvae.config.classes import canonical, components_in, find, is_needed
from mqvae.config.options import GROUPS, HANDED_LATER, KEPT, SLOTS
from mqvae.config.sources import source_of
from mqvae.errors import MqvaeError, shortened

NAMED = {"class_path", "init_args"}


def merged(base: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """`delta` over `base`, components written out as {class_path, init_args}.

    A component may be said as its class alone, `update: Joint`, or by arguments alone,
    `update: {xi: 0.5}`, which are those of the class below.

    Raises:
        MqvaeError: if a group of settings is something else, or a component mixes both forms.
    """
    _check_names("", (part for name in delta for part in _parts(name)))
    data = delta.get("data")
    if isinstance(data, int | float) and not isinstance(data, bool):
        data = str(data)  # a folder may be called 2024
    if isinstance(data, str):
        delta = {**delta, "data": source_of(data)}
    if any("." in name for name in delta):  # `update.xi: 0.5`, as options are
        dotted, delta = delta, {}
        for name, given in dotted.items():
            put(delta, name, deepcopy(given))
    result = dict(base)
    for name, given in delta.items():
        if name == "from" and isinstance(given, str):
            given = {"run": given}
        if name in SLOTS:
            result[name] = _component(name, base.get(name), given, _usual(name))
        elif name in GROUPS:
            result[name] = _group(name, base.get(name) or {}, given)
        elif isinstance(given, Mapping) and isinstance(base.get(name), Mapping):
            result[name] = {**base[name], **given}
        else:
            result[name] = given
    return result


def put(options: dict[str, Any], name: str, value: Any) -> None:
    """Add an option to others, which are one layer together, in whichever order they come.

    Args:
        options: Settings as `merged` takes them.
        name: Dotted, as in "update.hypergradient.curvature".
        value: What is typed after it.
    """
    slot = next((s for s in SLOTS if f"{name}.".startswith(f"{s}.")), None)
    *groups, key = (slot or name).split(".")
    level = options
    for group in groups:
        level = level.setdefault(group, {})
        if not isinstance(level, dict):
            raise MqvaeError(
                f"{group} must hold settings as 'name: value', got {shortened(level)}."
            )
    inside = name[len(slot) + 1 :].split(".") if slot and name != slot else []
    for part in inside:
        if part in NAMED:  # as config.yaml writes it
            continue
        there = level.get(key)
        if not isinstance(there, dict):
            there = {} if there is None else {"class_path": there}
        elif there and not NAMED & there.keys():
            there = {"init_args": there}
        level[key] = there
        level, key = _arguments_of(there, key), part
    there = level.get(key)
    if isinstance(there, dict) and isinstance(value, str):
        there["class_path"] = value
    elif isinstance(there, dict) and isinstance(value, dict):
        bare = NAMED & there.keys() and not NAMED & value.keys()
        (there.setdefault("init_args", {}) if bare else there).update(value)
    else:
        level[key] = value


def _arguments_of(component: dict[str, Any], place: str) -> dict[str, Any]:
    """Arguments of a component, to be changed."""
    if component.get("init_args") is None:
        component["init_args"] = {}
    arguments = component["init_args"]
    if not isinstance(arguments, dict):
        raise MqvaeError(
            f"{place} must hold settings as 'name: value', got {shortened(arguments)}."
        )
    return arguments


def _parts(name: Any) -> list[Any]:
    return name.split(".") if isinstance(name, str) else [name]


def _check_names(place: str, names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise MqvaeError(f"there is no setting {place}{shortened(name)}: it is no name.")


def _usual(slot: str) -> str:
    """The class of a slot where none is named; empty if one must be."""
    default = SLOTS[slot][1]
    return str(default["class_path"]) if default else ""


def _group(name: str, base: Mapping[str, Any], given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or NAMED & given.keys():
        own = ", ".join(field.name for field in fields(GROUPS[name]))
        raise MqvaeError(
            f"{name} takes settings of its own, no class or value: {own}; got {shortened(given)}."
        )
    _check_names(f"{name}.", given)
    result = {**base, **given}
    for key in given:
        if (slot := f"{name}.{key}") in SLOTS:
            result[key] = _component(slot, base.get(key), given[key], _usual(slot))
    return result


def _component(key: str, old: Any, given: Any, usual: str) -> Any:
    """A component over the one below it.

    Args:
        key: Where it is, for messages.
        old: The one below, as this function returned it.
        given: The settings laid over it.
        usual: Path of its class if none is named, or empty.

    Returns:
        {class_path, init_args}; what cannot be one, as it is: the parser says what is wrong.

    Raises:
        MqvaeError: if it has arguments beside class_path and init_args.
    """
    if isinstance(given, str):
        given = {"class_path": given}
    if not isinstance(given, Mapping):
        return given
    if not NAMED & given.keys():
        given = {"init_args": given}
    elif more := given.keys() - NAMED:
        raise MqvaeError(
            f"{key} has a class_path and init_args, but also {', '.join(sorted(map(str, more)))}."
        )
    below: Mapping[str, Any] = old if isinstance(old, Mapping) and "class_path" in old else {}
    path = given.get("class_path", below.get("class_path") or usual)
    arguments = given.get("init_args")
    if not isinstance(path, str) or not isinstance(arguments, Mapping | None):
        return dict(given)
    if not path:
        return {"init_args": dict(arguments or {})}
    path = canonical(path)
    kept = below.get("init_args") or {}
    if below.get("class_path") != path:
        kept = {name: value for name, value in kept.items() if name in KEPT.get(key, ())}
    kind = find(path)
    inner = components_in(kind) if kind else {}
    result = dict(kept)
    _check_names(f"{key}.", arguments or {})
    for name, value in (arguments or {}).items():
        if value is None and kind and is_needed(kind, name):
            raise MqvaeError(f"{key}.{name} expects a value, got none.")
        if name in inner and name not in HANDED_LATER:
            place = f"{key}.{name}"
            if isinstance(value, list):
                value = [_component(place, None, each, inner[name]) for each in value]
            else:
                value = _component(place, result.get(name), value, inner[name])
        result[name] = value
    return {"class_path": path, "init_args": result}

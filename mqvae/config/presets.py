"""Presets, methods, and YAML files over them.

A preset is data, network and length; a method is quantizer, update rule and the codebook's
optimizer. Any method goes with any preset.
"""

import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache, reduce
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from mqvae.config.classes import canonical, find
from mqvae.config.merging import merged
from mqvae.config.options import Spec
from mqvae.errors import MqvaeError, did_you_mean, shortened
from mqvae.files import read_yaml

PRESETS: Any = resources.files("mqvae") / "presets"
METHODS: Any = PRESETS / "methods"
GROUPS = (
    "to begin with",
    "how the codebook learns",
    "kinds of quantizers",
    "MQ-VAE",
    "variants for comparison",
)
"""Headings of the list of methods, in this order."""
RECOMMENDED = "recommended"
DEMO = "fashion-mnist-demo"
"""Whose sizes a method has that stands in the place of a preset."""
SIZES = ("num_codes", "dim")
"""Arguments of quantizers that are a preset's, whichever quantizer a method has."""


class Listed(NamedTuple):
    """A line of `mqvae presets` or `mqvae methods`."""

    name: str
    title: str
    group: str


def preset_names() -> list[str]:
    """The presets that ship with the library."""
    return _names(PRESETS)


def method_names() -> list[str]:
    """The methods that ship with the library."""
    return _names(METHODS)


def listed(folder: Any) -> list[Listed]:
    """The presets or methods of a folder, `PRESETS` or `METHODS`, in their groups."""
    found = []
    for name in _names(folder):
        said = _contents(folder, name)
        found.append(Listed(name, said.get("title", ""), said.get("group", GROUPS[0])))
    return sorted(found, key=lambda each: (GROUPS.index(each.group), each.name != RECOMMENDED))


def presets_in_words() -> str:
    """The presets, in one sentence."""
    return f"Presets: {', '.join(preset_names())} (`mqvae presets` says what they are)."


def is_known(name: str) -> bool:
    """Whether a name is a preset's, or a method's in the place of one."""
    return name in preset_names() or _method_in(name) is not None


def layers(name: str, method: str | None = None) -> list[dict[str, Any]]:
    """The layers of a preset, or of a YAML file by its path, from its lowest `base` up.

    Args:
        name: The preset or file; a `base` that is a relative path starts at the file naming it.
        method: A method, or a YAML file of one, in the place of the one that is named there.

    Raises:
        ValueError: if there is no such preset, method or file, or it is no YAML of settings.
    """
    found: list[dict[str, Any]] = []
    for settings in _chain(name):
        own = settings.pop("method", None)
        if own is not None and method is None:
            found = [_with_method(found, own)]
        found.append(settings)
    return found if method is None else [_with_method(found, method)]


def _with_method(preset: Iterable[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """A preset whose quantizer, rule and codebook's optimizer are those of a method.

    The preset's sizes stay, and its learning rates where the method has none.

    Args:
        preset: What it says, from the bottom up.
        method: Name of the method, or path of its file.
    """
    sizes, below = dict[str, Any](), dict[str, Any]()
    for layer in preset:
        below = merged(below, layer)
        arguments = (below.get("quantizer") or {}).get("init_args", {})
        sizes |= {name: arguments[name] for name in SIZES if name in arguments}
    if "steps" in below:
        sizes["anneal_steps"] = below["steps"]
    for name in ("name", "update", "quantizer", "warm_start"):
        below.pop(name, None)
    if "optimizer" in below:
        below["optimizer"] = {k: v for k, v in below["optimizer"].items() if k != "codebook"}
    below["quantizer"] = {"class_path": "mqvae.VectorQuantizer"}
    result = reduce(merged, _method_layers(method), below)
    return {**result, "quantizer": _sized(result["quantizer"], sizes)}


def _sized(spec: Spec, sizes: Mapping[str, Any]) -> Spec:
    """A quantizer with these sizes where it takes them and has none; its stages likewise."""
    kind = find(str(spec.get("class_path")))
    if kind is None:
        return spec
    own = {
        name: [_sized(each, sizes) if isinstance(each, dict) else each for each in value]
        if isinstance(value, list)
        else value
        for name, value in (spec.get("init_args") or {}).items()
    }
    taken = {k: v for k, v in sizes.items() if k in signature(kind).parameters}
    return {"class_path": canonical(spec["class_path"]), "init_args": {**taken, **own}}


def _method_in(name: str) -> str | None:
    """The method that a name in the place of a preset stands for, as in methods/ema."""
    if name == RECOMMENDED:
        return name
    method = name.removeprefix("methods/")
    return method if method != name and method in method_names() else None


def _method_layers(method: Any, above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The layers of a method, from its lowest `base` up."""
    if not isinstance(method, str):
        raise MqvaeError(f"method must name a method or a YAML file, got {shortened(method)}.")
    name = method.removeprefix("methods/")
    if name in method_names():
        settings = _shipped(METHODS, name)
    elif name.endswith((".yaml", ".yml")):
        settings = contents(Path(method))
    else:
        raise MqvaeError(
            f"there is no method '{name}'.{did_you_mean(name, method_names())} `mqvae methods` "
            "lists them; a path to a YAML file would do too."
        )
    base = settings.pop("base", None)
    if base is None:
        return [settings]
    _check_circle(method, base, above)
    return [*_method_layers(base, (*above, method)), settings]


def _check_circle(name: str, base: Any, above: tuple[str, ...]) -> None:
    if base in (*above, name):
        raise MqvaeError(f"{name}: base goes in a circle, {' → '.join([*above, name, base])}.")


def _chain(name: str, above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """A preset or file and those it stands on, from the bottom up; each may name a `method`.

    Args:
        name: The preset or file.
        above: The files that led here.
    """
    path = Path(name)
    if (method := _method_in(name)) is not None:
        return [*_chain(DEMO), {"method": method}]
    if name in preset_names():
        settings = _shipped(PRESETS, name)
    elif path.suffix in (".yaml", ".yml") or (path.is_file() and "/" in name):
        settings = contents(path)
    elif (path / "config.yaml").is_file():
        raise MqvaeError(
            f"{name} is a run: `mqvae train --resume {name}` resumes it, `mqvae train "
            f"{path / 'config.yaml'}` repeats it."
        )
    elif name in method_names():
        raise MqvaeError(f"{name} is a method: `mqvae train PRESET --method {name}`.")
    else:
        led = f"{above[-1]}: " if above else ""
        known = [*preset_names(), RECOMMENDED, *(f"methods/{each}" for each in method_names())]
        raise MqvaeError(
            f"{led}there is no preset '{name}'.{did_you_mean(name, known)} {presets_in_words()} A "
            "path to a YAML file or to images would do too."
        )
    base = settings.pop("base", None)
    if base is None:
        return [settings]
    if not isinstance(base, str):
        raise MqvaeError(f"{name}: base must name a preset or a YAML file, got {base!r}.")
    if not is_known(base) and (base.endswith((".yaml", ".yml")) or "/" in base):
        base = os.path.normpath(path.parent / base)
    _check_circle(name, base, above)
    return [*_chain(base, (*above, name)), settings]


def delta_of(path: str) -> dict[str, Any]:
    """The settings of a YAML file of --config.

    Raises:
        ValueError: if there is none, it is no YAML of settings, or it has a `base` of its own.
    """
    settings = contents(Path(path))
    for key in ("base", "method"):
        if key in settings:
            raise MqvaeError(
                f"{path} has a {key}, so it is a preset of its own: `mqvae train {path}`. "
                "--config takes a file without one."
            )
    return settings


def contents(path: Any) -> dict[str, Any]:
    """The contents of a YAML file of settings.

    Raises:
        ValueError: if there is none, or it is not YAML, or holds something else.
    """
    try:
        settings = read_yaml(path)
    except FileNotFoundError:
        raise MqvaeError(f"there is no file {path}. {presets_in_words()}") from None
    if settings is None:
        settings = {}
    if isinstance(settings, dict) and {"mqvae", "settings"} <= settings.keys():
        settings = settings["settings"]  # config.json of `Tokenizer.save_pretrained`
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise MqvaeError(f"{path} must hold settings as 'name: value', got {shortened(settings)}.")
    return settings


@cache
def _contents(folder: Any, name: str) -> Mapping[str, Any]:
    """The contents of a file of the package."""
    return contents(folder / f"{name}.yaml")


def _shipped(folder: Any, name: str) -> dict[str, Any]:
    """The settings in it, which may be changed."""
    found = deepcopy(_contents(folder, name))
    return {key: value for key, value in found.items() if key not in ("title", "group")}


@cache
def _names(folder: Any) -> list[str]:
    files = (path.name for path in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))

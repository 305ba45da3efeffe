"""Presets, methods, and YAML files over them.

A preset is data, network and length; a method is quantizer, update rule and the codebook's
optimizer. Any method goes with any preset.
"""

import os
from collections.abc import Callable, Iterable, Mapping
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
        name: The preset or file; a `base` or `method` in it that is a relative path starts there.
        method: A method, or a YAML file of one, in the place of the one that is named there.

    Raises:
        ValueError: if there is no such preset, method or file, or it is no YAML of settings.
    """
    found: list[dict[str, Any]] = []
    for settings in _with_bases(name, "preset", _preset):
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
    result = reduce(merged, _with_bases(method, "method", _method), below)
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


def _with_bases(
    name: Any, what: str, read: Callable[[str], dict[str, Any]], above: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """The layers of a preset, method or file, from its lowest `base` up.

    Args:
        name: Of it; a `base` or `method` that is a relative path starts at the file naming it.
        what: "preset" or "method".
        read: What it says.
        above: The files that led here.
    """
    if not isinstance(name, str):
        led = f"{above[-1]}: base" if above else what
        raise MqvaeError(f"{led} must name a {what} or a YAML file, got {shortened(name)}.")
    if name in above:
        raise MqvaeError(f"{above[-1]}: base goes in a circle, {' → '.join([*above, name])}.")
    try:
        settings = read(name)
    except MqvaeError as error:
        if not above:
            raise
        raise MqvaeError(f"{above[-1]}: {error}") from error
    for key in ("base", "method"):
        said = settings.get(key)
        if not isinstance(said, str) or is_known(said):
            continue
        if said.endswith((".yaml", ".yml")) or "/" in said:
            settings[key] = os.path.normpath(Path(name).parent / said)
    base = settings.pop("base", None)
    if base is None:
        return [settings]
    return [*_with_bases(base, what, read, (*above, name)), settings]


def _method(name: str) -> dict[str, Any]:
    """What a method or a YAML file of one says."""
    known = name.removeprefix("methods/")
    if known in method_names():
        return _shipped(METHODS, known)
    if name.endswith((".yaml", ".yml")):
        return contents(Path(name))
    raise MqvaeError(
        f"there is no method '{known}'.{did_you_mean(known, method_names())} `mqvae methods` "
        "lists them; a path to a YAML file would do too."
    )


def _preset(name: str) -> dict[str, Any]:
    """What a preset or a YAML file says; it may name a `method`."""
    path = Path(name)
    if (method := _method_in(name)) is not None:
        return {"base": DEMO, "method": method}
    if name in preset_names():
        return _shipped(PRESETS, name)
    if path.suffix in (".yaml", ".yml") or (path.is_file() and "/" in name):
        return contents(path)
    if (path / "config.yaml").is_file():
        raise MqvaeError(
            f"{name} is a run: `mqvae train --resume {name}` resumes it, `mqvae train "
            f"{path / 'config.yaml'}` repeats it."
        )
    if name in method_names():
        raise MqvaeError(f"{name} is a method: `mqvae train PRESET --method {name}`.")
    known = [*preset_names(), RECOMMENDED, *(f"methods/{each}" for each in method_names())]
    raise MqvaeError(
        f"there is no preset '{name}'.{did_you_mean(name, known)} {presets_in_words()} A "
        "path to a YAML file or to images would do too."
    )


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

"""Files of settings: presets, and YAML over them."""

import os
from importlib import resources
from pathlib import Path
from typing import Any

from mqvae.errors import MqvaeError
from mqvae.plain import read_yaml
from mqvae.spelling import brief, nearest

PRESETS = resources.files("mqvae") / "presets"


def preset_names() -> list[str]:
    """The presets that ship with the library."""
    found = []
    for folder, prefix in ((PRESETS, ""), (PRESETS / "methods", "methods/")):
        names = (p.name for p in folder.iterdir())
        found += sorted(prefix + n.removesuffix(".yaml") for n in names if n.endswith(".yaml"))
    return found


def presets_in_words() -> str:
    """The presets, those of single methods in one word."""
    names = [name for name in preset_names() if "/" not in name]
    return f"Presets: {', '.join(names)}, methods/… (`mqvae train --help` lists all)."


def layers(name: str, *, above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What a preset, or a YAML file by its path, says over its `base`, from the bottom up.

    Args:
        name: The preset or file; a `base` that is a relative path starts at the file naming it.
        above: The files that led here.

    Raises:
        ValueError: if there is no such preset or file, or it is no YAML of settings.
    """
    path = Path(name)
    if name in preset_names():
        settings = contents(PRESETS / f"{name}.yaml")
    elif path.suffix in (".yaml", ".yml") or (path.is_file() and "/" in name):
        settings = contents(path)
    elif (path / "config.yaml").is_file():
        raise MqvaeError(
            f"{name} is a run: `mqvae train --resume {name}` goes on with it, `mqvae train "
            f"{path / 'config.yaml'}` repeats it."
        )
    else:
        led = f"{above[-1]}: " if above else ""
        raise MqvaeError(
            f"{led}there is no preset '{name}'.{nearest(name, preset_names())} "
            f"{presets_in_words()} A path to a YAML file would do too."
        )
    base = settings.pop("base", None)
    if base is None:
        return [settings]
    if not isinstance(base, str):
        raise MqvaeError(f"{name}: base must name a preset or a YAML file, got {base!r}.")
    if base not in preset_names() and (base.endswith((".yaml", ".yml")) or "/" in base):
        base = os.path.normpath(path.parent / base)
    above = (*above, name)
    if base in above:
        raise MqvaeError(f"{name}: base goes in a circle, {' → '.join([*above, base])}.")
    return [*layers(base, above=above), settings]


def delta_of(path: str) -> dict[str, Any]:
    """What a YAML file of --config says, over whatever it is laid.

    Raises:
        ValueError: if there is none, it is no YAML of settings, or it has a `base` of its own.
    """
    settings = contents(Path(path))
    if "base" in settings:
        raise MqvaeError(
            f"{path} has a base, so it is a preset of its own: `mqvae train {path}`. --config "
            "takes a file without one."
        )
    return settings


def contents(path: Any) -> dict[str, Any]:
    """What a YAML file of settings says.

    Raises:
        ValueError: if there is none, or it is not YAML, or holds something else.
    """
    try:
        settings = read_yaml(path)
    except FileNotFoundError:
        raise MqvaeError(f"there is no file {path}. {presets_in_words()}") from None
    if settings is None:
        settings = {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise MqvaeError(f"{path} must hold settings as 'name: value', got {brief(settings)}.")
    return settings

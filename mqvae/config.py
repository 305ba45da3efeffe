"""Settings: from presets and the command line to objects."""

import importlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

PRESETS = resources.files("mqvae") / "presets"


@dataclass(frozen=True)
class DataOptions:
    """Images.

    Args:
        name: Name of a dataset, or a folder of images.
        root: Folder with the dataset's files; searched for and downloaded if not given.
        side: Resize and crop images to this side.
        channels: 1 for grey, 3 for colour.
        batch_size: Images in a batch, per process.
    """

    name: str = "fashion-mnist"
    root: str | None = None
    side: int | None = None
    channels: int | None = None
    batch_size: int = 512

    def __post_init__(self) -> None:
        check_types(self, "data.")
        _at_least("data.batch_size", self.batch_size, 1)
        if self.side is not None:
            _at_least("data.side", self.side, 1)
        if self.channels not in (None, 1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {self.channels}.")


@dataclass(frozen=True)
class NetworkOptions:
    """Encoder and decoder of the VQ-VAE.

    Args:
        width: Hidden units.
        residual_blocks: Residual blocks of each.
    """

    width: int = 256
    residual_blocks: int = 2

    def __post_init__(self) -> None:
        check_types(self, "network.")


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW on both levels, warm-up and cosine.

    Args:
        network_lr: Learning rate of encoder and decoder.
        codebook_lr: Learning rate of the codebook.
        weight_decay: Weight decay of both.
        warmup: Share of the steps in which the rates rise linearly; then they fall as a cosine.
    """

    network_lr: float = 3e-4
    codebook_lr: float = 6e-2
    weight_decay: float = 1e-4
    warmup: float = 0.1

    def __post_init__(self) -> None:
        check_types(self, "optimizer.")
        for name in ("network_lr", "codebook_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"optimizer.{name} must be 0 or more and finite, got {getattr(self, name)}."
                )
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"optimizer.warmup must lie in 0 … 1, got {self.warmup}.")


@dataclass(frozen=True)
class TrainerOptions:
    """The loop.

    Args:
        accelerator: "auto", "cpu", "cuda" or "mps".
        devices: Number of processes; only 1 so far.
        precision: "32-true" or "bf16-mixed".
        log_every: Steps between two rows of metrics.csv; chosen from `steps` if not given.
        checkpoint_every: Steps between two checkpoints; chosen from `steps` if not given.
    """

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    log_every: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        check_types(self, "trainer.")
        if self.devices != 1:
            raise ValueError(
                f"trainer.devices must be 1, got {self.devices}: training in several processes "
                "is not there yet."
            )
        for name in ("log_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                _at_least(f"trainer.{name}", getattr(self, name), 1)
        _one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "cuda", "mps"))
        _one_of("trainer.precision", self.precision, ("32-true", "bf16-mixed"))


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


def load_preset(name: str, *, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A preset by name, or a YAML file by path, over the `base` it names.

    Args:
        name: The preset or file; a `base` that is a relative path starts at the file naming it.
        above: The files that led here.

    Raises:
        ValueError: if there is no such preset or file, or it is no YAML of settings.
    """
    path = Path(name)
    if name in preset_names():
        settings = read_settings(PRESETS / f"{name}.yaml")
    elif path.suffix in (".yaml", ".yml") or (path.is_file() and "/" in name):
        if not path.is_file():
            raise ValueError(f"there is no file {name}. {presets_in_words()}")
        settings = read_settings(path)
    else:
        raise ValueError(
            f"there is no preset '{name}'.{nearest_name(name, preset_names())} "
            f"{presets_in_words()} A path to a YAML file would do too."
        )
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise ValueError(f"{name}: base must name a preset or a YAML file, got {base!r}.")
    if base not in preset_names() and (base.endswith((".yaml", ".yml")) or "/" in base):
        base = os.path.normpath(path.parent / base)
    above = (*above, name)
    if base in above:
        raise ValueError(f"{name}: base goes in a circle, {' → '.join([*above, base])}.")
    return merged(load_preset(base, above=above), settings)


def read_settings(path: Any) -> dict[str, Any]:
    """The contents of a YAML file of settings.

    Raises:
        ValueError: if it is not YAML, or holds something else.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if settings is None:
        settings = {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path} must hold settings as 'name: value', got {settings!r}.")
    return settings


def merged(base: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """`delta` over `base`; another `class_path` takes nothing from the old class's arguments."""
    result = dict(base)
    for key, value in delta.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            same = value.get("class_path", old.get("class_path")) == old.get("class_path")
            result[key] = merged(old, value) if same else value
        else:
            result[key] = value
    return result


def nearest_name(name: str, known: list[str]) -> str:
    """' Did you mean …?', or nothing."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def instantiate(spec: Any, **extra: Any) -> Any:
    """The object that {class_path, init_args} names; other values as they are."""
    if isinstance(spec, list):
        return [instantiate(item) for item in spec]
    if not (isinstance(spec, Mapping) and "class_path" in spec):
        return spec
    kind = class_of(spec["class_path"])
    arguments = {k: instantiate(v) for k, v in (spec.get("init_args") or {}).items()}
    known = list(inspect.signature(kind).parameters)
    for name in arguments:
        if name not in known or name in extra:
            raise ValueError(
                f"{spec['class_path']} has no argument '{name}'.{nearest_name(name, known)}"
            )
    try:
        return kind(**arguments, **extra)
    except TypeError as error:
        raise ValueError(f"{spec['class_path']} does not take its init_args: {error}.") from error


def class_of(class_path: Any) -> type:
    """The class of a component by its path: one of mqvae's, or derived from one.

    Nothing else is ever called, whatever a config.yaml from elsewhere says.
    """
    module, _, name = str(class_path).rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        kind = None
    if isinstance(kind, type):
        for ancestor in kind.__mro__:
            if ancestor.__module__.partition(".")[0] == "mqvae":
                return kind
    known = [f"mqvae.{name}" for name in importlib.import_module("mqvae").__all__]
    raise ValueError(
        f"class_path '{class_path}' is no part of mqvae, nor derived from one."
        f"{nearest_name(str(class_path), known)}"
    )


def spec_of(value: Any) -> Any:
    """The {class_path, init_args} of a dataclass; other values as they are."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    fields = {k: spec_of(getattr(value, k)) for k in inspect.signature(type(value)).parameters}
    return {"class_path": f"mqvae.{type(value).__name__}", "init_args": fields}


def with_defaults(spec: Mapping[str, Any], built: Any) -> dict[str, Any]:
    """A spec with the arguments that its class chose by itself written out."""
    arguments = dict(spec.get("init_args") or {})
    for name in inspect.signature(type(built)).parameters:
        if is_dataclass(chosen := getattr(built, name, None)):
            arguments[name] = spec_of(chosen)
    return {"class_path": spec["class_path"], "init_args": arguments}


def plain(options: Any) -> dict[str, Any]:
    """A dataclass of options as a plain dict."""
    return asdict(options)


def check_types(options: Any, prefix: str = "") -> None:
    """Refuse a dataclass whose values are not of the types it declares.

    Raises:
        ValueError: names the value, what was expected and what came.
    """
    for name, hint in get_type_hints(type(options)).items():
        value, origin = getattr(options, name), get_origin(hint)
        kinds = get_args(hint) if origin is UnionType else (origin or hint,)
        # A whole number is a float too; True is neither, though Python calls it an int.
        fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
        if not fits or isinstance(value, bool):
            expected = " or ".join("none" if k is NoneType else k.__name__ for k in kinds)
            raise ValueError(f"{prefix}{name} expects {expected}, got {value!r}.")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}.")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}, got '{value}'."
            f"{nearest_name(value, list(known))}"
        )

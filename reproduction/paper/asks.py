"""What runs of the paper ask for, by which their results are found: settings in full."""

import copy
import json
from collections.abc import Mapping
from functools import cache
from inspect import signature
from pydoc import locate
from typing import Any

from mqvae.config import Settings, load_preset
from reproduction.paper.methods import METHODS
from reproduction.paper.renamed import of_today
from reproduction.paper.scales import load_scale


def asked(settings: Settings) -> dict[str, Any]:
    """All that a run's result depends on: neither its label, nor where it is trained."""
    config = settings.config()
    config["data"] = config["data"]["init_args"]  # of images, the study's only data
    del config["name"], config["data"]["root"]
    for name in ("accelerator", "devices", "loggers"):
        del config["trainer"][name]
    return {"kind": "run", **config}


def filled(asks: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's older result asks for, with the settings that have come since at their defaults.

    A new setting's default leaves runs as they were; what would change them is another setting.
    """
    seed = {"seed": asks["seed"]} if "seed" in asks else {}
    return {**_filled(json.dumps({**asks, **dict.fromkeys(seed, 0)}, sort_keys=True)), **seed}


@cache
def _filled(asks: str) -> dict[str, Any]:
    """The same for all seeds, as to read settings takes a tenth of a second."""
    whole: dict[str, Any] = json.loads(asks)
    try:
        return asked(Settings.of(of_today({k: v for k, v in whole.items() if k != "kind"})))
    except ValueError:  # it has a setting that is there no more
        return whole


@cache
def base_settings(scale: str, task: str, method: str) -> Settings:
    """The settings of a method at a scale, but for data set, rate, training steps and seed.

    To read and check settings takes a tenth of a second.
    """
    preset = _preset(METHODS[method].preset)
    sizes = copy.deepcopy(dict(load_scale(scale).settings[task]))
    takes = signature(locate(preset["quantizer"]["class_path"])).parameters  # type: ignore[arg-type]
    arguments = sizes.get("quantizer", {}).get("init_args", {})
    for name in arguments.keys() - takes.keys():  # without quantization there is no number of codes
        del arguments[name]
    return Settings.of(preset, sizes)


@cache
def _preset(name: str) -> dict[str, Any]:
    return load_preset(f"methods/{name}")

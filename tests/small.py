"""Settings that many tests share, read once: their parser checks every default each time."""

import json
from copy import deepcopy
from functools import cache
from typing import Any

from mqvae.config import Settings, load_preset


def settings_of(preset: str, *deltas: Any, over: tuple[Any, ...] = ()) -> Settings:
    """`Settings.of(load_preset(preset, *deltas), *over)`; each a copy of its own."""
    return deepcopy(_read(json.dumps([preset, deltas, over])))


@cache
def _read(asked: str) -> Settings:
    preset, deltas, over = json.loads(asked)
    return Settings.of(load_preset(preset, *deltas), *over)

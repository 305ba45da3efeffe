"""Settings under their older names, as older files have them."""

from typing import Any

from mqvae.config.classes import canonical
from mqvae.config.merging import put

RENAMED = {
    "trainer.average": "trainer.ema_decay",
    "trainer.parts": "trainer.micro_batches",
    "data.above": "update.upper_batch",
}
RETIRED = {"mqvae.ReplaceUnused": {"placed": None, "draws": 1}}
"""By class: arguments that are there no more, with the values that change nothing."""


def of_today(config: Any) -> Any:
    """Settings of one layer, under the names and without the arguments that are there no more."""
    found = _without_retired(config)
    for old, new in RENAMED.items():
        group, key = old.split(".")
        below = found.get(group)
        if isinstance(below, dict) and isinstance(below.get("init_args"), dict):
            below = below["init_args"]
        place, name = (found, old) if old in found else (below, key)
        if isinstance(place, dict) and name in place:
            value = place.pop(name)
            if value != "same" or group != "data":  # which rules without a batch above have, too
                put(found, new, value)
    return found


def _without_retired(config: Any) -> Any:
    if isinstance(config, list):
        return [_without_retired(item) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: _without_retired(value) for key, value in config.items()}
    retired = RETIRED.get(canonical(str(found.get("class_path"))), {})
    arguments = found.get("init_args")
    if isinstance(arguments, dict):
        changing = {k: v for k, v in arguments.items() if k not in retired or v != retired[k]}
        found["init_args"] = changing
    return found

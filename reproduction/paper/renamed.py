"""Settings under their older names, as older results have them."""

from typing import Any

from mqvae.config.classes import canonical

RENAMED = {
    ("trainer", "average"): ("trainer", "ema_decay"),
    ("trainer", "parts"): ("trainer", "micro_batches"),
    ("data", "above"): ("update", "upper_batch"),
}
RETIRED = {"mqvae.ReplaceUnused": {"placed": None, "draws": 1}}
"""By class: arguments that are there no more, with the values that change nothing."""


def of_today(config: Any) -> Any:
    """Settings of a run, under the names and without the arguments that are there no more."""
    found = _without_retired(config)
    for (old_group, old), (new_group, new) in RENAMED.items():
        below, place = (_arguments(found.get(group, {})) for group in (old_group, new_group))
        value = below.pop(old, None)
        # The same batch is what rules without a batch above have, too.
        if value is not None and (old, value) != ("above", "same"):
            place[new] = value
    return found


def _arguments(group: dict[str, Any]) -> dict[str, Any]:
    return group.get("init_args", group)


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

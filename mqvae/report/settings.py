"""The settings of runs: what differs, and what they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mqvae.places import names_only
from mqvae.report.run import Run


@dataclass(frozen=True)
class Settings:
    """What differs between the runs, and what all of them share; "-" where a run has none."""

    differing: dict[str, Sequence[str]]
    shared: dict[str, str]


def settings(runs: Sequence[Run]) -> Settings:
    """The settings of all runs but their names, as dotted keys."""
    flat = [flatten({k: v for k, v in run.config.items() if k != "name"}) for run in runs]
    rows = {key: [each.get(key, "-") for each in flat] for each in flat for key in each}
    shared = {key: values[0] for key, values in rows.items() if len(set(values)) == 1}
    return Settings({key: row for key, row in rows.items() if key not in shared}, shared)


def sought(runs: Sequence[Run], settings: Settings) -> list[tuple[str, str]]:
    """What runs are found by: words of them, and the settings in which they differ."""
    return [
        (
            " ".join([run.name, *run.rule, run.path.name]).lower(),
            "".join(f"{key}={row[i]}|" for key, row in settings.differing.items()).lower(),
        )
        for i, run in enumerate(runs)
    ]


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as options of `mqvae train` and written values; an empty group has no line.

    >>> flatten({"data": {"side": 28, "root": None}, "devices": [0, 1]})
    {'data.side': '28', 'data.root': 'none', 'devices': '0, 1'}
    >>> flatten({"update": {"class_path": "mqvae.Meta", "init_args": {"xi": 1.0}}})
    {'update': 'mqvae.Meta', 'update.xi': '1'}
    """
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if key == "class_path" and prefix:
            flat[prefix.removesuffix(".")] = written(value)
        elif key == "init_args" and isinstance(value, dict):
            flat |= flatten(value, prefix)
        elif isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = written(value)
    return flat


def written(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(written, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} = {written(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else names_only(str(value))

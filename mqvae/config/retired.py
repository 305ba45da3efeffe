"""Arguments that are there no more, as older files still have them."""

from typing import Any

from mqvae.config.classes import canonical

RETIRED = {"mqvae.ReplaceUnused": {"placed": None, "draws": 1}}
"""By class: arguments, with the values that change nothing."""


def without_retired(config: Any) -> Any:
    """The same without arguments that are there no more, where they change nothing."""
    if isinstance(config, list):
        return [without_retired(item) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: without_retired(value) for key, value in config.items()}
    retired = RETIRED.get(canonical(str(found.get("class_path"))))
    arguments = found.get("init_args")
    if retired and isinstance(arguments, dict):
        found["init_args"] = {
            key: value
            for key, value in arguments.items()
            if key not in retired or value != retired[key]
        }
    return found

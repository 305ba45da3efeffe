"""Plain data out of YAML and JSON files that may come from anybody."""

import json
from pathlib import Path
from typing import Any

import yaml

from mqvae.errors import MqvaeError
from mqvae.finite import restored

LARGEST = 4 << 20  # bytes of a file of settings, which has a few thousand
MOST_VALUES = 100_000  # that a file of settings may hold, aliases written out
DEEPEST = 64  # lists and mappings in each other


def read_yaml(path: Any) -> Any:
    """What a YAML file holds: mappings, lists, text, numbers, truth values and null.

    Args:
        path: A `Path`, or what has its `open`.

    Raises:
        FileNotFoundError: if there is none.
        MqvaeError: if it is not YAML, or holds anything else or more than settings would.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise MqvaeError(f"{path} has more than {LARGEST:,} bytes: it is no file of settings.")
    try:
        return parsed_yaml(content.decode())
    except ValueError as error:
        raise MqvaeError(f"{path} is not valid YAML: {error}") from error


def parsed_yaml(text: str) -> Any:
    """What YAML says, in plain values.

    Raises:
        ValueError: if it is not YAML, or holds anything else or more than settings would.
    """
    try:
        _check_depth(text)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # Beside its own errors PyYAML lets some of what it calls pass, for a date or a number.
        raise MqvaeError(" ".join(str(error).split())) from error
    _check_plain(found, [0], 0)
    return found


def read_json(path: Path) -> Any:
    """What a JSON file holds; what `only_finite` has replaced is there again.

    Raises:
        FileNotFoundError: if there is none.
        MqvaeError: if it is not JSON.
    """
    try:
        return restored(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise MqvaeError(f"{path} is not valid JSON: {error}") from error


def _check_depth(text: str) -> None:
    # Before anything is made of it: PyYAML takes quadratic time for what is nested deeply.
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise MqvaeError(f"lists and mappings are nested more than {DEEPEST} times")


def _check_plain(value: Any, count: list[int], depth: int) -> None:
    count[0] += 1
    if count[0] > MOST_VALUES or depth > DEEPEST:
        raise MqvaeError(
            f"expected {MOST_VALUES:,} values at most, in each other {DEEPEST} times at most; "
            "aliases count as what they stand for"
        )
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str | int | float | bool | None):
                raise MqvaeError(f"expected a word before the colon, got {key!r}")
            _check_plain(each, count, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check_plain(each, count, depth + 1)
    elif not isinstance(value, str | int | float | bool | None):
        raise MqvaeError(
            f"{value} is read as a {type(value).__name__}: expected text (in quotes), a number, "
            "true, false or null"
        )

"""Numbers that are not finite in JSON files, whose numbers all are."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

KEY = "not_finite"


def only_finite(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with null for every number that is not finite.

    Under the key `KEY` it then says which they were, by JSON pointers (RFC 6901).

    >>> only_finite({"mse": 0.5, "psnr": math.inf})
    {'mse': 0.5, 'psnr': None, 'not_finite': {'/psnr': 'inf'}}
    """
    found: dict[str, str] = {}
    plain = _without(content, "", found)
    return {**plain, KEY: found} if found else dict(plain)


def restored(content: Any) -> Any:
    """What `only_finite` was given, from what it gave; anything else as it is.

    >>> restored({"mse": 0.5, "psnr": None, "not_finite": {"/psnr": "inf"}})
    {'mse': 0.5, 'psnr': inf}
    """
    if not isinstance(content, dict) or not isinstance(content.get(KEY), dict):
        return content
    for pointer, number in content.pop(KEY).items():
        *way, last = _steps(pointer)
        place: Any = content
        try:
            for step in way:
                place = place[int(step) if isinstance(place, list) else step]
            place[int(last) if isinstance(place, list) else last] = float(number)
        except (KeyError, IndexError, TypeError, ValueError):
            continue  # there is no such place (any more)
    return content


def _without(value: Any, pointer: str, found: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        found[pointer] = str(value)
        return None
    if isinstance(value, Mapping):
        return {k: _without(v, f"{pointer}/{_escaped(str(k))}", found) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without(v, f"{pointer}/{i}", found) for i, v in enumerate(value)]
    return value


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _steps(pointer: str) -> Iterator[str]:
    return (step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])

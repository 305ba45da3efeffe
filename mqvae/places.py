"""What is shared names no place on the machine that it comes from."""

import re
from pathlib import Path, PurePath
from typing import Any

# An absolute path in a text: no address, whose slashes follow a colon or each other.
_PATH = re.compile(r"(?<![\w:/.~])~?/[^\s,;()\[\]'\"]+")


def without_places(value: Any) -> Any:
    """Settings with the last part of a path in its place, at any depth."""
    if isinstance(value, dict):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name
    return value


def names_only(text: str, *places: str | Path | None) -> str:
    """A text with the last part of each path in its place.

    Folders in it whose names have spaces are found only where they are among `places`.
    """
    known = set[Path]()
    for place in (Path(each) for each in places if each):
        here = place.expanduser()
        known |= {place, here, here.absolute(), here.resolve()}
    for path in sorted(known, key=lambda path: len(str(path)), reverse=True):
        if path.is_absolute() and len(path.parts) > 1:
            text = text.replace(str(path), path.name)
    return _PATH.sub(lambda found: PurePath(found[0]).name, text)

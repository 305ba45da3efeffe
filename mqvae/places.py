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

    Args:
        text: The text.
        places: Folders that may be in it: those whose names have spaces are found only so.
    """
    known = {str(form) for place in places if place for form in _forms(Path(place))}
    for path in sorted(known, key=len, reverse=True):
        text = text.replace(path, PurePath(path).name)
    return _PATH.sub(lambda found: PurePath(found[0]).name, text)


def _forms(place: Path) -> list[Path]:
    here = place.expanduser()
    forms = [place, here, here.absolute(), here.resolve()]
    return [form for form in forms if form.is_absolute() and len(form.parts) > 1]

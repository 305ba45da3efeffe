"""Results: one small JSON file for each piece of work, found again by what was asked for."""

import hashlib
import json
import re
from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from mqvae.errors import MqvaeError
from mqvae.finite import only_finite, restored
from mqvae.runs import read_json, write_whole


class Asked(Hashable, Protocol):
    """A piece of work, as far as its result is concerned."""

    @property
    def title(self) -> str:
        """What its file begins with."""

    def asks(self) -> dict[str, Any]:
        """All that its result depends on, as JSON."""

    def filled(self, asks: Mapping[str, Any]) -> dict[str, Any]:
        """What an older result asks for, with the settings that have come since."""

    def satisfied(self, content: Mapping[str, Any]) -> bool:
        """Whether a result for this holds everything that is wanted of it."""


class Results:
    """A folder of results.

    Args:
        folder: Where they are; made when the first is written.

    Raises:
        ValueError: if a file in it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, tuple[str, dict[str, Any]]] = {}
        self._titles: set[str] = set()
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            self._read(path)

    def __len__(self) -> int:
        return len({name for name, _ in self._found.values()})

    def contents(self) -> Iterator[dict[str, Any]]:
        """All results, in the order of their names."""
        by_name = dict(self._found.values())
        yield from (by_name[name] for name in sorted(by_name))

    def get(self, work: Asked) -> dict[str, Any] | None:
        """The result of a piece of work; None if there is none."""
        found = self._entry(work)
        return None if found is None else found[1]

    def name(self, work: Asked) -> str:
        """The name of its file, without suffix."""
        found = self._entry(work)
        return file_name(work) if found is None else found[0]

    def _entry(self, work: Asked) -> tuple[str, dict[str, Any]] | None:
        if work.title not in self._titles:  # what it asks for takes a tenth of a second to tell
            return None
        key = _key_of(work)
        if key not in self._found:
            # A result from before a setting was there, whose default leaves everything as it was.
            for name, content in list(self._found.values()):
                if name.startswith(f"{work.title}-") and _key(work.filled(content["asks"])) == key:
                    self._found[key] = (name, content)
        return self._found.get(key)

    def complete(self, work: Asked) -> bool:
        """Whether there is a result that holds everything that is wanted."""
        content = self.get(work)
        return content is not None and work.satisfied(content)

    def read(self, work: Asked) -> None:
        """Take up a result that somebody else has written."""
        self._read(self.folder / f"{self.name(work)}.json")

    def _read(self, path: Path) -> None:
        try:
            content = read_json(path)
            self._keep(path.stem, content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MqvaeError(
                f"{path} is no result ({type(error).__name__}: {error}): remove it, and what it "
                "held is made again."
            ) from error

    def put(self, work: Asked, content: Mapping[str, Any]) -> None:
        """Write a result."""
        asks = work.asks()
        whole = only_finite({"asks": asks, **content})
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self.name(work)
        text = json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False)
        write_whole(self.folder / f"{name}.json", _compact(text) + "\n")
        self._keep(name, restored(json.loads(text)))

    def _keep(self, name: str, content: dict[str, Any]) -> None:
        self._found[_key(content["asks"])] = (name, content)
        self._titles.add(name.rpartition("-")[0])


def file_name(work: Asked) -> str:
    """The name of a result's file without suffix, and of the run folder it is made from."""
    digest = hashlib.sha256(_key_of(work).encode()).hexdigest()
    return f"{work.title}-{digest[:6]}"


@cache
def _key_of(work: Asked) -> str:
    """What a piece of work asks for, by which its result is known; it is looked for many times."""
    return _key(work.asks())


def _key(asks: Mapping[str, Any]) -> str:
    return json.dumps(asks, sort_keys=True)


def _compact(text: str) -> str:
    """Lists of numbers on one line."""
    return re.sub(
        r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text
    )

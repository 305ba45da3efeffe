"""Results of the paper's runs, found again by what was asked for."""

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from reproduction.results import put, read


class Asked(Hashable, Protocol):
    """A piece of work, as far as its result is concerned."""

    @property
    def title(self) -> str:
        """What its name begins with."""

    def asks(self) -> dict[str, Any]:
        """All that its result depends on, as JSON."""

    def filled(self, asks: Mapping[str, Any]) -> dict[str, Any]:
        """What an older result asks for, with the settings that have come since."""

    def satisfied(self, content: Mapping[str, Any]) -> bool:
        """Whether a result for this holds everything that is wanted of it."""


class Results:
    """A file of results.

    Args:
        file: Where they are; made when the first is written.

    Raises:
        MqvaeError: if a line of it is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._found: dict[str, tuple[str, dict[str, Any]]] = {}
        self._titles: set[str] = set()
        self.reload()

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
        """The name of its line."""
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

    def reload(self) -> None:
        """Take up what other processes have written."""
        for line in read(self.file):
            self._keep(line)

    def put(self, work: Asked, content: Mapping[str, Any]) -> None:
        """Write a result."""
        line = {"name": self.name(work), "asks": work.asks(), **content}
        put(self.file, line, key="name")
        self._keep(json.loads(json.dumps(line)))

    def _keep(self, line: dict[str, Any]) -> None:
        name = line.pop("name")
        self._found[_key(line["asks"])] = (name, line)
        self._titles.add(name.rpartition("-")[0])


def file_name(work: Asked) -> str:
    """The name of a result's line, and of the run folder it is made from."""
    digest = hashlib.sha256(_key_of(work).encode()).hexdigest()
    return f"{work.title}-{digest[:6]}"


@cache
def _key_of(work: Asked) -> str:
    """What a piece of work asks for, by which its result is known; it is looked for many times."""
    return _key(work.asks())


def _key(asks: Mapping[str, Any]) -> str:
    return json.dumps(asks, sort_keys=True)

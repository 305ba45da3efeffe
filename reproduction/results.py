"""Results of the studies: files with a line of JSON for every run."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mqvae.errors import MqvaeError
from mqvae.files import only_finite, restored, write_whole


def read(file: Path) -> list[dict[str, Any]]:
    """All lines of a file of results; none where there is no file.

    Raises:
        MqvaeError: if a line is damaged; says which.
    """
    found = []
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            found.append(restored(json.loads(line)))
        except ValueError as error:
            raise MqvaeError(
                f"line {number} of {file} is no result ({error}): remove it, and what it held is "
                "made again."
            ) from error
    return found


def append(file: Path, result: Mapping[str, Any]) -> None:
    """Add a line; several processes may at once."""
    with _locked(file), file.open("a", encoding="utf-8") as out:
        out.write(_line(result))


def put(file: Path, result: Mapping[str, Any], *, key: str) -> None:
    """Add a line, in place of the one of the same key; lines are sorted by it.

    Several processes may do so at once.
    """
    with _locked(file):
        lines = {each[key]: each for each in read(file)} | {result[key]: result}
        write_whole(file, "".join(_line(lines[name]) for name in sorted(lines)))


def _line(result: Mapping[str, Any]) -> str:
    return json.dumps(only_finite(result), ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Inside, no other process writes to a file of this folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)  # the file itself is replaced
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)

"""Results of a study: a line of JSON for every run."""

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(file: Path) -> list[dict[str, Any]]:
    """All lines of a file of results; none where there is no file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def append(file: Path, result: Mapping[str, Any]) -> None:
    """Add a line; several processes may at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        out.write(json.dumps(result, ensure_ascii=False) + "\n")

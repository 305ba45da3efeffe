"""The page of runs in training, written again while they go on."""

import time
from collections.abc import Sequence
from pathlib import Path

from mqvae.report.page import write_report

ENDS = ("summary.json", "failure.json")
FILES = ("metrics.csv", *ENDS, "diagnosis.json")


def watch(
    runs: Sequence[Path], out: Path, *, title: str | None = None, seconds: float = 10
) -> Path:
    """Write the page whenever a run has more to show, until all have ended or Ctrl-C.

    Until then the page loads itself again; the last one that is written does not.

    Args:
        runs: As `write_report` takes them.
        out: The page.
        title: Its heading.
        seconds: Between looks at the runs, and between two loads of the page.

    Returns:
        `out`.

    Raises:
        ValueError: as `write_report` does.
    """
    seen: object = None
    try:
        while not all(any((run / end).is_file() for end in ENDS) for run in runs):
            now = [(file, _state(file)) for run in runs for file in _files(run)]
            if now != seen:
                write_report(runs, out, title=title, reload=seconds)
                seen = now
            time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    return write_report(runs, out, title=title)


def _files(run: Path) -> list[Path]:
    """What the page of a run is made of, whether it is there yet or not."""
    return [*(run / name for name in FILES), *sorted((run / "evaluations").glob("*.json"))]


def _state(file: Path) -> tuple[int, int] | None:
    """Changes when the file does."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size

"""The page of runs in training, written again while they go on."""

import time
from collections.abc import Sequence
from pathlib import Path

from mqvae.report.page import write_report
from mqvae.report.reading import ENDS, state_of


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
            now = [state_of(run) for run in runs]
            if now != seen:
                write_report(runs, out, title=title, reload=seconds)
                seen = now
            time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    return write_report(runs, out, title=title)

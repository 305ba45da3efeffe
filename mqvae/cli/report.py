"""`mqvae report`."""

import sys
from pathlib import Path
from typing import Annotated


def report(
    runs: Annotated[list[str], "RUN"],
    *,
    out: Annotated[str, "FILE.html"] = "report.html",
    title: str | None = None,
    watch: bool = False,
) -> int:
    """Write a report of runs: one self-contained HTML page.

    Args:
        runs: Folders of runs, or tokenizers of `mqvae pretrained` by their names.
        out: The page.
        title: Heading of the page (default: the dataset's).
        watch: Write the page again while the runs train.
    """
    from mqvae.report import watch as watched
    from mqvae.report import write_report

    given = [Path(run) for run in runs]
    # `runs/*` takes what lies beside the runs, too: a page, sweep.json.
    shown = [run for run in given if not run.is_file()] or given
    if watch:
        print(f"{out}: written again until the runs have finished; Ctrl-C ends it", file=sys.stderr)
    print((watched if watch else write_report)(shown, Path(out), title=title))
    return 0

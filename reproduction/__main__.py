"""`python -m reproduction`: the paper's tables and figures, and studies beyond it."""

import argparse
import importlib
import sys
from pathlib import Path

from mqvae.errors import MqvaeError
from mqvae.optional import ExtraMissing
from reproduction import page, results
from reproduction.paper.command import reproduce
from reproduction.rows import FOLDER, Study
from reproduction.work import Failed, claimed, make

RATE_DISTORTION = "rate-distortion"
STUDIES = {
    RATE_DISTORTION: "quantizers at equal network and steps: error against bits",
    "few-shot-codebook": "docs/hypergradient-experiments.md",
    "classifier-codes": "docs/hypergradient-experiments.md",
    "codebook-under-prior": "docs/hypergradient-experiments.md",
}
RESULTS = FOLDER / "results" / "rate-distortion.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    study, rest = (arguments or ["--help"])[0], arguments[1:]
    try:
        if study == RATE_DISTORTION:
            return rate_distortion(rest)
        if study in STUDIES:
            return importlib.import_module(f"reproduction.{study.replace('-', '_')}").main(rest)
        return reproduce(arguments or ["--help"], STUDIES)
    except (MqvaeError, ExtraMissing) as error:
        print(f"reproduction: error: {error}", file=sys.stderr)
        return 2


def rate_distortion(arguments: list[str]) -> int:
    """Train and measure the rows of the rate-distortion study; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m reproduction {RATE_DISTORTION}", description=STUDIES[RATE_DISTORTION]
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/rate-distortion"), help="folder of run folders"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--scale", default="cpu", choices=("cpu", "debug"))
    parser.add_argument("--only", default="", metavar="ROW,…", help="these rows alone")
    parser.add_argument("--missing", action="store_true", help="list what has no result, and stop")
    parser.add_argument("--reverse", action="store_true", help="the last run first")
    parser.add_argument("--page", action="store_true", help="write the results' page, and stop")
    options = parser.parse_args(arguments)
    if options.page:
        print(page.write(options.results))
        return 0
    failed: set[str] = set()
    while True:  # rows and results are read anew: others may add to both
        loaded = Study.load(scale=options.scale)
        only = [name for name in options.only.split(",") if name]
        if unknown := set(only) - set(loaded.rows):
            parser.error(f"no row {', '.join(sorted(unknown))}; rows: {', '.join(loaded.rows)}")
        known = {result["key"] for result in results.read(options.results)} | failed
        missing = [
            task
            for task in loaded.tasks()
            if task.key not in known and (not only or task.row in only)
        ]
        if options.missing:
            print(*(task.folder for task in missing), sep="\n")
            return 0
        for task in reversed(missing) if options.reverse else missing:
            with claimed(task, options.runs) as mine:
                if not mine:
                    continue
                print(f"{task.folder} …", file=sys.stderr, flush=True)
                try:
                    result = make(task, options.runs)
                except Failed as failure:
                    failed.add(task.key)
                    print(f"{task.folder}: {failure}", file=sys.stderr, flush=True)
                else:
                    results.append(options.results, {"key": task.key, **result})
                break
        else:
            return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m reproduction`."""

import argparse
import importlib
import sys
from pathlib import Path

from reproduction import page, results
from reproduction.rows import FOLDER, Study
from reproduction.work import Failed, claimed, make

# Studies whose module reads its own options.
OTHERS = ("few-shot-codebook", "classifier-codes", "codebook-under-prior")
RESULTS = FOLDER / "results" / "rate-distortion.jsonl"


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    commands = parser.add_subparsers(dest="study", required=True)
    for name in OTHERS:
        commands.add_parser(name, help="docs/hypergradient-experiments.md", add_help=False)
    study = commands.add_parser(
        "rate-distortion", help="quantizers at equal network and steps: error against bits"
    )
    study.add_argument(
        "--runs", type=Path, default=Path("runs/rate-distortion"), help="folder of run folders"
    )
    study.add_argument("--results", type=Path, default=RESULTS, help="file of the results")
    study.add_argument("--scale", default="cpu", choices=("cpu", "debug"))
    study.add_argument("--only", default="", metavar="ROW,…", help="these rows alone")
    study.add_argument("--missing", action="store_true", help="list what has no result, and stop")
    study.add_argument("--reverse", action="store_true", help="the last run first")
    study.add_argument("--page", action="store_true", help="write the results' page, and stop")
    options, rest = parser.parse_known_args(arguments)
    if options.study in OTHERS:
        return importlib.import_module(f"reproduction.{options.study.replace('-', '_')}").main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

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

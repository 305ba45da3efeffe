"""`python -m reproduction NAME…`: the paper's tables and figures."""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from mqvae.errors import MqvaeError
from mqvae.optional import require
from mqvae.training import Interrupted, TrainingFailed
from reproduction.paper.estimate import estimate
from reproduction.paper.page import write_page
from reproduction.paper.reproduce import (
    ALL,
    EXPERIMENTS,
    PROGRAM,
    carry_out_all,
    experiments,
    pages,
    present,
    published,
    wants,
)
from reproduction.paper.results import Results
from reproduction.paper.runner import WorkFailed
from reproduction.paper.scales import SCALES, load_scale
from reproduction.paper.study import Study
from reproduction.paper.terminal import text
from reproduction.paper.work import Place

DESCRIPTION = """\
Train and measure what the paper's tables and figures need, and show the results beside the
paper's. Finished runs are reused, interrupted ones resume. Writes results, runs, and a page as
HTML and Markdown to DIR."""


def reproduce(arguments: list[str], studies: Mapping[str, str]) -> int:
    """The command; returns its exit code.

    Args:
        arguments: What is typed after `python -m reproduction`.
        studies: What is typed for other studies, and what they are; --help ends with it.
    """
    lines = [f"  {name:<11} {each.title}" for name, each in EXPERIMENTS.items()]
    others = [f"  {name:<21} {title}" for name, title in studies.items()]
    epilog = ["names:", *lines, "", "other studies, each with options of its own:", *others]
    parser = argparse.ArgumentParser(
        prog=" ".join(PROGRAM),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(epilog),
        allow_abbrev=False,
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help=f"table-1 …, or {ALL}")
    parser.add_argument(
        "--scale",
        default="cpu",
        choices=SCALES,
        help="sizes: debug (seconds each), cpu (minutes each), paper (a GPU) (default: cpu)",
    )
    parser.add_argument(
        "--methods",
        metavar="METHOD",
        nargs="+",
        default=(),
        help="rows to train, as a table names them (default: all)",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="of each row; the scale's own: 3")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at a time, a thread each"
    )
    parser.add_argument("--out", metavar="DIR", help="folder (runs/reproduce/SCALE)")
    parser.add_argument(
        "--results",
        metavar="FILE",
        help="results, of which missing ones are added (DIR/results.jsonl)",
    )
    parser.add_argument("--root", metavar="DIR", help="folder with the files of data sets")
    parser.add_argument(
        "--accelerator",
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="what it runs on (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="show the committed results; trains nothing",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="say how long what is missing takes on this device; trains nothing",
    )
    options = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise MqvaeError(f"--{name} must be 1 or more, got {value}.")
    if options.accelerator == "cuda" and options.jobs > 1:
        raise MqvaeError("--jobs shares processors, not a GPU: leave it out with cuda.")
    return _reproduce(options, arguments)


def _reproduce(options: argparse.Namespace, arguments: list[str]) -> int:
    require("matplotlib")  # before training, not after
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)  # of Inception
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    chosen, scale = experiments(options.names), load_scale(options.scale)
    out = Path(options.out or f"runs/reproduce/{scale.name}")
    seeds = options.seeds or scale.seeds
    command = shlex.join([*PROGRAM, *arguments])
    if options.published:
        results = published(scale.name)
        if not results.is_file():
            raise MqvaeError(f"there are no committed results of the scale '{scale.name}'.")
        study = Study(scale, seeds, Results(results))
    else:
        found = {} if scale.dataset else present(chosen, options.root)
        for name, reason in found.items():
            if reason:
                print(f"reproduction: {name} is left out: {reason}", file=sys.stderr)
        there = frozenset(name for name, reason in found.items() if not reason)
        results = Path(options.results or out / "results.jsonl")
        study = Study(scale, seeds, Results(results), there)
        place = Place(out / "runs", results, options.root, options.accelerator)
        if options.estimate:
            for line in estimate(
                wants(chosen, study, options.methods), study.results, scale, place
            ):
                print(line)
            return 0
        try:
            carry_out_all(chosen, study, place, jobs=options.jobs, methods=options.methods)
        except (Interrupted, KeyboardInterrupt):
            print(f"stopped; the same command resumes:\n  {command}", file=sys.stderr)
            return 130
        except (WorkFailed, TrainingFailed) as failure:
            print(f"reproduction: {failure}", file=sys.stderr)
            return 1
    # A page of published results is the same wherever it is written.
    written = []
    for made in pages(chosen, study, options.names):
        for section in made.sections:
            print(f"\n{section.title}")
            judged = [f"{c.claim}: {c.verdict}." for c in section.judged]
            for sentence in (*judged, *section.verdict, *section.missing):
                print(f"  {sentence}")
            for each in section.tables:
                print(f"\n{text(each)}")
        written += write_page(made, out)
    print()
    for path in written:
        print(path)
    return 0

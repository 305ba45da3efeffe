"""`mqvae reproduce`."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from mqvae.cli.parser import add_machine, parser_of
from mqvae.cli.terminal import quiet
from mqvae.errors import MqvaeError
from mqvae.extras import require


def reproduce(arguments: list[str]) -> int:
    from mqvae.paper.reproduce import ALL, EXPERIMENTS
    from mqvae.paper.scales import SCALES

    parser = parser_of(
        "reproduce",
        "Runs the paper's tables and figures again, and puts them beside the paper's figures.\n"
        "What is finished is found again, what was interrupted goes on. Writes results, runs,\n"
        "a page as HTML and Markdown to DIR.",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        ["names:", *(f"  {name:<11} {each.title}" for name, each in EXPERIMENTS.items())]
    )
    parser.add_argument("names", metavar="NAME", nargs="+", help=f"table-1 …, or {ALL}")
    parser.add_argument(
        "--scale",
        default="cpu",
        choices=SCALES,
        help="sizes: debug (seconds each), cpu (minutes each), paper (a GPU); cpu if not given",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="of each row; the scale's own: 3")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at a time, a thread each"
    )
    parser.add_argument("--out", metavar="DIR", help="folder (runs/reproduce/SCALE)")
    parser.add_argument("--root", metavar="DIR", help="folder with the files of data sets")
    add_machine(parser)
    parser.add_argument(
        "--published",
        action="store_true",
        help="show the results that came with the program; trains nothing",
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
    from mqvae.paper.page import write_page
    from mqvae.paper.reproduce import carry_out_all, experiments, pages, present, published
    from mqvae.paper.results import Results
    from mqvae.paper.runner import WorkFailed
    from mqvae.paper.scales import load_scale
    from mqvae.paper.study import Study
    from mqvae.paper.terminal import text
    from mqvae.paper.work import Place
    from mqvae.trainer import Interrupted, TrainingFailed

    require("matplotlib")  # before training, not after
    quiet()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    chosen, scale = experiments(options.names), load_scale(options.scale)
    out = Path(options.out or f"runs/reproduce/{scale.name}")
    seeds = options.seeds or scale.seeds
    command = shlex.join(["mqvae", "reproduce", *arguments])
    if options.published:
        folder = published(scale.name)
        if not folder.is_dir():
            raise MqvaeError(f"no results of the scale '{scale.name}' came with the program.")
        study = Study(scale, seeds, Results(folder))
    else:
        found = {} if scale.dataset else present(chosen, options.root)
        for name, reason in found.items():
            if reason:
                print(f"mqvae: {name} is left out: {reason}", file=sys.stderr)
        there = frozenset(name for name, reason in found.items() if not reason)
        study = Study(scale, seeds, Results(out / "results"), there)
        try:
            place = Place(out / "runs", out / "results", options.root, options.accelerator)
            carry_out_all(chosen, study, place, jobs=options.jobs)
        except (Interrupted, KeyboardInterrupt):
            print(f"stopped; the same command goes on\n  {command}", file=sys.stderr)
            return 130
        except (WorkFailed, TrainingFailed) as failure:
            print(f"mqvae: {failure}", file=sys.stderr)
            return 1
    # A page of published results is the same wherever it is written.
    written = []
    for made in pages(chosen, study, options.names):
        for section in made.sections:
            print(f"\n{section.title}")
            for sentence in (*section.verdict, *section.missing):
                print(f"  {sentence}")
            for each in section.tables:
                print(f"\n{text(each)}")
        written += write_page(made, out)
    print()
    for path in written:
        print(path)
    return 0

"""`mqvae report`."""

import sys
from pathlib import Path

from mqvae.cli.parser import add_run, parser_of


def report(arguments: list[str]) -> int:
    parser = parser_of("report", "Runs to one self-contained HTML page.")
    add_run(parser, many=True)
    parser.add_argument(
        "--out", default="report.html", metavar="FILE.html", help="(default: report.html)"
    )
    parser.add_argument("--title")
    parser.add_argument(
        "--watch", action="store_true", help="write the page again while the runs train"
    )
    options = parser.parse_args(arguments)
    from mqvae.report import watch, write_report

    given, out = [Path(run) for run in options.runs], Path(options.out)
    # `runs/*` takes what lies beside the runs, too: a page, sweep.json.
    runs = [run for run in given if not run.is_file()] or given
    if options.watch:
        print(f"{out}: written again until the runs have finished; Ctrl-C ends it", file=sys.stderr)
    print((watch if options.watch else write_report)(runs, out, title=options.title))
    return 0

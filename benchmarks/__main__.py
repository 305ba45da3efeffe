"""`python -m benchmarks`."""

import argparse
import sys
from pathlib import Path

from benchmarks import OF_A_PRESET, ON_CPUS, SECTIONS, measure
from mqvae.errors import MqvaeError, did_you_mean
from mqvae.optional import ExtraMissing

DESCRIPTION = """\
Measure on this machine. Prints tables and writes them, with plots, to DIR/performance*.md and
DIR/performance/. `python -m benchmarks gpu` is all there is to measure on a GPU, with options of
its own, as have the scripts beside: python -m benchmarks.NAME --help."""


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["gpu"]:
        from benchmarks import gpu

        return gpu.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            ["sections:", *(f"  {name:<10} {words}" for name, words in SECTIONS.items())]
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "sections",
        metavar="SECTION",
        nargs="*",
        help="what to measure; without any: all of them",
    )
    parser.add_argument(
        "--out", default="runs/bench", metavar="DIR", help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--accelerator", default="cpu", choices=("cpu", "cuda"), help="(default: cpu)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"whose steps {' and '.join(OF_A_PRESET)} measure, or a YAML file; the demo's if not "
        "given",
    )
    try:
        return _measured(parser.parse_args(arguments))
    except (MqvaeError, ExtraMissing) as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2


def _measured(options: argparse.Namespace) -> int:
    if unknown := [s for s in options.sections if s not in SECTIONS]:
        raise MqvaeError(
            f"there is no section '{unknown[0]}'.{did_you_mean(unknown[0], SECTIONS)} Sections: "
            f"{', '.join(SECTIONS)}."
        )
    if options.rounds is not None and options.rounds < 2:
        raise MqvaeError(f"--rounds must be 2 or more, got {options.rounds}: one has no spread.")
    out = Path(options.out)
    if out.is_file():
        raise MqvaeError(f"{out} is a file: --out takes a folder.")
    everything = [s for s in SECTIONS if options.accelerator == "cpu" or s != ON_CPUS]
    for section in options.sections or everything:
        for table in measure(
            section,
            out,
            device=options.accelerator,
            rounds=options.rounds,
            only=options.only,
            preset=options.preset,
        ):
            print(table.text(), end="\n\n", flush=True)
    print(out / "performance.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`mqvae bench`."""

import argparse
from pathlib import Path

from mqvae.cli.parser import parser_of
from mqvae.cli.terminal import quiet
from mqvae.errors import MqvaeError
from mqvae.spelling import nearest


def bench(arguments: list[str]) -> int:
    from mqvae.bench import OF_A_PRESET, SECTIONS, measure

    parser = parser_of(
        "bench",
        "Measures on this machine; prints tables and writes them, with plots, to\n"
        "DIR/performance.md and DIR/performance/.",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        ["sections:", *(f"  {name:<10} {words}" for name, words in SECTIONS.items())]
    )
    parser.add_argument(
        "sections",
        metavar="SECTION",
        nargs="*",
        help="what to measure; without any: all of them",
    )
    parser.add_argument("--out", default="bench", metavar="DIR", help="folder, if not bench")
    parser.add_argument(
        "--accelerator", default="cpu", choices=("cpu", "cuda"), help="cpu if not given"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"whose steps {' and '.join(OF_A_PRESET)} measure, or a YAML file; the demo's if not "
        "given",
    )
    options = parser.parse_args(arguments)
    if unknown := [s for s in options.sections if s not in SECTIONS]:
        raise MqvaeError(
            f"there is no section '{unknown[0]}'.{nearest(unknown[0], SECTIONS)} Sections: "
            f"{', '.join(SECTIONS)}."
        )
    if options.rounds is not None and options.rounds < 2:
        raise MqvaeError(f"--rounds must be 2 or more, got {options.rounds}: one has no spread.")
    out = Path(options.out)
    if out.is_file():
        raise MqvaeError(f"{out} is a file: --out takes a folder.")
    quiet()
    everything = [s for s in SECTIONS if options.accelerator == "cpu" or s != "processes"]
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

"""`mqvae diagnose`."""

import shlex
from typing import TYPE_CHECKING

from mqvae.cli.parser import add_accept, add_machine, add_run, parser_of
from mqvae.cli.terminal import quiet

if TYPE_CHECKING:
    from mqvae.diagnosis.measured import Measured
    from mqvae.diagnosis.run import Diagnosis


def diagnose(arguments: list[str]) -> int:
    parser = parser_of(
        "diagnose", "What limits a run, and what to try; writes diagnosis.json, for the report."
    )
    add_run(parser)
    parser.add_argument(
        "--images",
        type=int,
        default=10_000,
        metavar="N",
        help="training images that the codebook is refitted to (default: 10000)",
    )
    parser.add_argument(
        "--searched",
        type=int,
        metavar="N",
        help="test images whose codes are chosen by the task's loss (default: 200, of a GAN 8)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=8,
        metavar="N",
        help="steps of a copy in which drift is measured (default: 8)",
    )
    add_machine(parser, default=None)
    add_accept(parser)
    options = parser.parse_args(arguments)
    from mqvae.diagnosis.run import diagnose as of_run
    from mqvae.diagnosis.run import write_diagnosis
    from mqvae.runs import Run

    quiet()
    diagnosis = of_run(
        options.run,
        images=options.images,
        searched=options.searched,
        steps=options.steps,
        accelerator=options.accelerator,
        accept_changed_data=options.accept_changed_data,
    )
    print(_text(diagnosis))
    written = write_diagnosis(diagnosis, Run(options.run))
    print(f"written: {written}\nnext: mqvae report {shlex.quote(options.run)} --out report.html")
    return 0


def _text(diagnosis: "Diagnosis") -> str:
    lines = [*_table(diagnosis.measured), ""]
    for finding in diagnosis.findings:
        lines.append(f"{'LIMITS' if finding.limits else finding.about}: {finding.words}")
        lines += [f"  {command}" for command in finding.commands]
    return "\n".join(lines)


def _table(measured: "Measured") -> list[str]:
    """The task's metrics in every case, a line each."""
    nearest = f"on {measured.searched_images:,} images"
    cases = {
        "as it is": measured.now,
        "not quantized, same network": measured.unquantized,
        "codebook refitted": measured.refitted,
        f"as it is, {nearest}": measured.nearest,
        f"best of the {measured.candidates} nearest, {nearest}": measured.chosen,
    }
    width = max(map(len, cases))
    head = " ".join(f"{name:>13}" for name in measured.now)
    return [
        f"{'':<{width}} {head}",
        *(
            f"{case:<{width}} " + " ".join(f"{figures[name]:>13.6g}" for name in measured.now)
            for case, figures in cases.items()
        ),
        "",
        f"perplexity {measured.perplexity:.1f} of {measured.codes:,} codes, refitted "
        f"{measured.perplexity_refitted:.1f}; usage {measured.usage:.1%} of the codes on "
        f"{measured.test_images:,} test images (a code that these do not choose need not be dead)",
    ]

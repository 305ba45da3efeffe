"""`mqvae diagnose`."""

import shlex
from typing import TYPE_CHECKING, Annotated, Literal

from mqvae.cli.parser import AcceptChanged, RunName
from mqvae.cli.terminal import quiet

if TYPE_CHECKING:
    from mqvae.diagnosis.measured import Measured
    from mqvae.diagnosis.run import Diagnosis


def diagnose(
    run: RunName,
    *,
    images: int = 10_000,
    searched: Annotated[int | None, "N"] = None,
    steps: int = 8,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] | None = None,
    accept_changed_data: AcceptChanged = False,
) -> int:
    """Find what limits a run and what to try; writes diagnosis.json for the report.

    Args:
        images: Training images that the codebook is refitted to.
        searched: Test images whose codes are chosen by the task's loss (default: 200, of a GAN 8).
        steps: Steps of a copy in which drift is measured.
        accelerator: What it runs on (default: the run's own).
    """
    from mqvae.diagnosis.run import diagnose as of_run
    from mqvae.diagnosis.run import write_diagnosis
    from mqvae.runs import Run

    quiet()
    diagnosis = of_run(
        run,
        images=images,
        searched=searched,
        steps=steps,
        accelerator=accelerator,
        accept_changed_data=accept_changed_data,
    )
    print(_text(diagnosis))
    written = write_diagnosis(diagnosis, Run(run))
    print(f"written: {written}\nnext: mqvae report {shlex.quote(run)} --out report.html")
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

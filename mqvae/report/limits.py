"""What `mqvae diagnose` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mqvae.report.run import Run
from mqvae.report.words import scientific
from mqvae.runs.results import damaged

TITLES = (
    "Figure",
    "As it is",
    "Not quantized",
    "Refitted",
    "Best of the nearest",
    "Dead codewords",
    "Drift",
    "In common",
    "Speed",
    "Cosine",
)


class Row(NamedTuple):
    """What was found of a run, by its number; what limits it is the first finding."""

    run: int
    cells: tuple[str, ...]
    findings: list[dict[str, Any]]  # their words, and commands to try


class Limits(NamedTuple):
    """A row for each run that was diagnosed."""

    titles: tuple[str, ...]
    rows: list[Row]


def limits(runs: Sequence[Run]) -> Limits | None:
    """What limits the runs; None where none was diagnosed.

    Raises:
        ValueError: if a diagnosis.json is damaged.
    """
    rows = [_row(i, run) for i, run in enumerate(runs) if run.diagnosis]
    return Limits(TITLES, rows) if rows else None


def _row(number: int, run: Run) -> Row:
    found = run.diagnosis
    try:
        findings = [{key: f[key] for key in ("words", "commands")} for f in found["findings"]]
        _ = findings[0]
        return Row(number, _cells(found), findings)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        file = run.path / "diagnosis.json"
        raise damaged(file, f"expected what `mqvae diagnose` writes ({error})") from error


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    figure, moved = found["figure"], found["motion"]
    scale = found["scales"][figure]
    gained = 1 - found["chosen"][figure] / found["nearest"][figure]
    unit = found["units"][figure] or ("" if scale == 1 else f"×{scientific(scale)}")
    return (
        f"{found['titles'][figure]} {unit}".strip() + f" ({found['test_images']:,} test images)",
        *(f"{found[case][figure] / scale:.4g}" for case in ("now", "unquantized", "refitted")),
        f"{100 * gained:.1f}%",
        f"{found['dead']:,} of {found['codewords']:,} "
        f"(over {found['train_images']:,} training images)",
        f"{moved['drift']:.2g}",
        f"{100 * moved['coherence']:.0f}%",
        f"{moved['speed']:.2g}",
        f"{moved['alignment']:.2f}",
    )

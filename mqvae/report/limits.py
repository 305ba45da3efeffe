"""What `mqvae diagnose` found."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mqvae.report.run import Run
from mqvae.report.words import scientific
from mqvae.runs.results import damaged


class Row(NamedTuple):
    """What was found of a run, by its number; what limits it is the first finding."""

    run: int
    cells: dict[str, str]  # by their columns' titles
    findings: list[dict[str, Any]]  # their words, and commands to try


def limits(runs: Sequence[Run]) -> list[Row]:
    """What limits the runs: a row for each that was diagnosed.

    Raises:
        ValueError: if a diagnosis.json is damaged.
    """
    return [_row(i, run) for i, run in enumerate(runs) if run.diagnosis]


def _row(number: int, run: Run) -> Row:
    found = run.diagnosis
    try:
        findings = [{key: f[key] for key in ("words", "commands")} for f in found["findings"]]
        _ = findings[0]
        return Row(number, _cells(found), findings)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        file = run.path / "diagnosis.json"
        raise damaged(file, f"expected what `mqvae diagnose` writes ({error})") from error


def _cells(found: Mapping[str, Any]) -> dict[str, str]:
    figure, moved = found["figure"], found["motion"]
    scale = found["scales"][figure]
    gained = 1 - found["chosen"][figure] / found["nearest"][figure]
    unit = found["units"][figure] or ("" if scale == 1 else f"×{scientific(scale)}")
    title = f"{found['titles'][figure]} {unit}".strip()
    cases = {"As it is": "now", "Not quantized": "unquantized", "Refitted": "refitted"}
    return {
        "Figure": f"{title} ({found['test_images']:,} test images)",
        **{name: f"{found[case][figure] / scale:.4g}" for name, case in cases.items()},
        "Best of the nearest": f"{100 * gained:.1f}%",
        "Dead codewords": f"{found['dead']:,} of {found['codewords']:,} "
        f"(over {found['train_images']:,} training images)",
        "Drift": f"{moved['drift']:.2g}",
        "In common": f"{100 * moved['coherence']:.0f}%",
        "Speed": f"{moved['speed']:.2g}",
        "Cosine": f"{moved['alignment']:.2f}",
    }

"""The table of results."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import NamedTuple

from mqvae.report.run import Evaluation, Figure, Run, checkpoint_of, images_of, number
from mqvae.report.settings import Settings, written
from mqvae.report.words import aligned, duration

FEW = 3  # settings up to which those that differ have columns of the results
SIZES = ("Tokens an image", "Compression", "Parameters", "Images/s")


@dataclass(frozen=True)
class Column:
    """A column of the results: one cell per run, of which some may be best."""

    title: str
    cells: Sequence[str]
    better: str | None = None
    unit: str = ""
    best: frozenset[int] = frozenset()
    ratios: Sequence[str] = field(default=())
    """Beside the cells, in small print."""
    setting: bool = False
    """It is one of what was set, not of what came out."""
    values: Sequence[float | None] = field(default=())
    """What the cells say, to sort by."""

    @property
    def order(self) -> list[str]:
        """The values as a script reads them; nothing where there is none."""
        known = [None if v is None or math.isnan(v) else float(v) for v in self.values]
        return ["" if v is None else str(v).replace("inf", "Infinity") for v in known]


def figures(runs: Sequence[Run | Evaluation]) -> dict[str, Figure]:
    """All figures of the runs in the order of the columns."""
    found: dict[str, Figure] = {}
    for run in runs:
        for key, figure in run.figures.items():
            found.setdefault(key, figure)
    return found


def swept(settings: Settings) -> list[Column]:
    """The settings that differ where there are few of them, to read and sort the results by."""
    if len(settings.differing) > FEW:
        return []
    found = []
    for key, row in settings.differing.items():
        if key == "steps":  # a column anyway
            continue
        try:
            values = [None if value == "-" else float(value) for value in row]
        except ValueError:
            continue
        found.append(
            Column(key.rpartition(".")[2].replace("_", " "), row, setting=True, values=values)
        )
    return found


def one_rule(runs: Sequence[Run]) -> str:
    """The update rule of all runs, in words; nothing where there are several, or one run."""
    rules = {", ".join(filter(None, run.rule)) for run in runs if run.finished}
    if len(runs) == 1 or len(rules) != 1:
        return ""
    updates = {written(run.config.get("update")) for run in runs}
    return rules.pop() if len(updates) == 1 else ""


def results(runs: Sequence[Run]) -> list[Column]:
    """What the runs measured, and beside it what a step costs."""
    columns = [_column(runs, key, figure) for key, figure in figures(runs).items()]
    seconds = [run.number("seconds_per_step") for run in runs]
    times = [run.seconds for run in runs]
    cost = aligned([None if s is None else 1e3 * s for s in seconds], most=2)
    ratios = [
        "" if s is None or not seconds[0] or len(runs) == 1 else f"{s / seconds[0]:.2f}×"
        for s in seconds
    ]
    return [
        *columns,
        Column(
            "Cost\N{NO-BREAK SPACE}of a\N{NO-BREAK SPACE}step",
            cost,
            unit="ms",
            ratios=ratios,
            values=seconds,
        ),
        Column("Training time", [duration(s) for s in times], values=times),
        Column("Steps", [_steps(run) for run in runs], values=[run.steps for run in runs]),
        *(
            Column(title, [f"{v:,.0f}" if v else "-" for v in values], values=values)
            for title in SIZES
            if any(values := [_sizes(run)[title] for run in runs])
        ),
    ]


def _sizes(run: Run) -> dict[str, float | None]:
    """How large a run is and how fast, where it says so."""
    side, channels, batch = (run.data.get(key) for key in ("side", "channels", "batch_size"))
    entropy, bits = run.number("entropy"), run.number("bits_per_pixel")
    seconds = run.number("seconds_per_step")
    found = (
        bits * side**2 / entropy if side and bits and entropy else None,
        8 * channels / bits if channels and bits else None,
        run.number("parameters"),
        batch / seconds if batch and seconds else None,
    )
    return dict(zip(SIZES, found, strict=True))


def as_csv(runs: Sequence[Run], columns: Sequence[Column]) -> str:
    """The results as the text of a CSV file, unrounded."""
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["run", "device", *(column.title.replace("\xa0", " ") for column in columns)])
    for i, run in enumerate(runs):
        values = [column.order[i] if column.values else column.cells[i] for column in columns]
        rows.writerow([run.name, run.summary.get("device", ""), *values])
    return text.getvalue()


class Other(NamedTuple):
    """A row of what was measured of a run besides: which run, on what, of which checkpoint."""

    run: int
    images: str
    checkpoint: str
    cells: list[str]


class Others(NamedTuple):
    """What was measured besides; `figures` are those that the results lack."""

    columns: list[Column]  # without cells, which the rows have
    rows: list[Other]
    figures: list[Figure]


def others(runs: Sequence[Run]) -> Others | None:
    """A row for each file of `evaluations` that the results are not about; None without any."""
    found = [(i, each) for i, run in enumerate(runs) for each in run.others]
    described = figures([each for _, each in found])
    columns = [
        _formatted(figure, [number(each.content.get(key)) for _, each in found])
        for key, figure in described.items()
    ]
    rows = [
        Other(
            i,
            images_of(each.content),
            checkpoint_of(each.content).removeprefix("checkpoint "),
            [column.cells[row] for column in columns],
        )
        for row, (i, each) in enumerate(found)
    ]
    known = figures(runs)
    further = [each for key, each in described.items() if key not in known and each.protocol]
    return Others(columns, rows, further) if rows else None


def measured_on(runs: Sequence[Run]) -> str:
    """On which images, and of which checkpoint, the results were measured, in words."""
    told = {
        run.name: ", ".join(filter(None, (run.images, run.checkpoint)))
        for run in runs
        if run.figures
    }
    if len(set(told.values())) <= 1:
        return next(iter(told.values()), "the test images")
    images = {run.images for run in runs if run.figures}
    if len(images) == 1:
        return f"{images.pop()}, the last checkpoint of each run"
    return "; ".join(f"{name}: {words}" for name, words in told.items())


def details(runs: Sequence[Run]) -> list[str]:
    """The first figure of every run, in words; nothing where it has none."""
    columns = (_column(runs, key, figure) for key, figure in figures(runs).items())
    column = next(columns, Column("", ["-"] * len(runs)))
    return [
        "" if cell == "-" else f"{column.title} {cell}\N{NO-BREAK SPACE}{column.unit}".strip()
        for cell in column.cells
    ]


def comparisons(runs: Sequence[Run]) -> list[tuple[int, str]]:
    """The others by number: their first figure and cost of a step against the first run's."""
    key, figure = next(iter(figures(runs).items()), ("", Figure("")))
    reference, cost = runs[0].number(key), runs[0].number("seconds_per_step")
    found = []
    for i, run in enumerate(runs[1:], start=1):
        if run.kind != runs[0].kind:
            continue
        value, seconds = run.number(key), run.number("seconds_per_step")
        if value is not None and reference is not None:
            verdict = _compare(figure, value, reference)
            if seconds is not None and cost:
                verdict += f", at {seconds / cost:.2f} times the cost of a step"
            found.append((i, verdict))
    return found


def _compare(figure: Figure, value: float, reference: float) -> str:
    """In per cent; what has a unit, in its unit: 2% of an accuracy would be read as points."""
    if figure.unit:
        change = (value - reference) / figure.scale
        size = f"{abs(change):.2f} {'points' if figure.unit == '%' else figure.unit}"
    else:
        change = 100 * (value / reference - 1) if reference else math.nan
        size = f"{abs(change):.1f}%"
    if not math.isfinite(change):
        return f"{figure.title} cannot be compared"
    if abs(change) < 0.05:
        return f"the same {figure.title}"
    direction = "lower" if change < 0 else "higher"
    verdict = {None: "", direction: " (better)"}.get(figure.better, " (worse)")
    return f"{figure.title} {size} {direction}{verdict}"


def _column(runs: Sequence[Run], key: str, figure: Figure) -> Column:
    column = _formatted(figure, [run.number(key) for run in runs])
    values, shown = column.values, column.cells
    winners: frozenset[int] = frozenset()
    for kind in {run.kind for run in runs}:
        own = [v if run.kind == kind else None for v, run in zip(values, runs, strict=True)]
        winners |= best(own, shown, figure.better)
    return replace(column, best=winners)


def _formatted(figure: Figure, raw: Sequence[float | None]) -> Column:
    values = [None if value is None else value / figure.scale for value in raw]
    # A decibel is a logarithm: its fourth digit is a difference to be seen.
    shown = aligned(values, digits=4 if figure.unit == "dB" else 3)
    return Column(figure.title, shown, figure.better, figure.shown_in, values=raw)


def best(
    values: Sequence[float | None], shown: Sequence[str], better: str | None
) -> frozenset[int]:
    """Rows that hold the best value as shown; none where there is nothing to choose from."""
    finite = {i: v for i, v in enumerate(values) if v is not None and math.isfinite(v)}
    if better is None or len(finite) < 2:
        return frozenset()
    choose = min if better == "lower" else max
    winner = shown[choose(finite, key=lambda i: finite[i])]
    rows = {i for i in finite if shown[i] == winner}
    return frozenset() if len(rows) == len(finite) else frozenset(rows)


def _steps(run: Run) -> str:
    done, planned = run.steps, run.planned_steps
    if done is None:
        return "-"
    if run.finished or planned is None or done >= planned:
        return f"{done:,}"
    return f"{done:,} of {planned:,}"

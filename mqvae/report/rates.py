"""Error against bits: what the codes of each run buy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from mqvae.report.charts import COLOURS, RUN, Mark, drawing, mark, plain, spans_decade, y_ticks
from mqvae.report.curves import Chart, Charts, comparable
from mqvae.report.run import Run
from mqvae.report.tables import figures
from mqvae.report.words import enumerate_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {
    "entropy": ("entropy", "entropy of a position's codes, bits"),
    "prior_bits": ("bits under the prior", "bits of a position under the run's prior"),
}
SHAPES = "osD^vPX*"  # where colours repeat, they tell runs apart


def rates(runs: Sequence[Run]) -> list[Charts]:
    """The first figure against bits, where two comparable runs or more have both."""
    found = []
    measured = [i for i, run in enumerate(runs) if run.number("entropy") is not None]
    for title, members in comparable(runs, measured):
        key, figure = next(iter(figures([runs[i] for i in members]).items()))
        charts = []
        for axis, (words, xlabel) in AXES.items():
            points = [
                (i, x, y / figure.scale)
                for i in members
                if (x := runs[i].number(axis)) is not None
                and (y := runs[i].number(key)) is not None
            ]
            if len(points) < 2:
                continue
            told = [f"{runs[i].name} {y:.3g} at {x:.3g} bits" for i, x, y in points]
            named = f"{figure.title} against {words}"
            svg = scatter(
                points,
                name=f"{key}-{axis}-{members[0]}",
                xlabel=xlabel,
                alt=f"{named}: {enumerate_words(told)}.",
            )
            charts.append(Chart(f"{named}{', in ' * bool(figure.shown_in)}{figure.shown_in}", svg))
        if charts:
            legend: list[Mark] = [mark(runs[i].name, i) for i in members]
            found.append(Charts(charts, legend, title=title))
    return found


def scatter(
    points: Sequence[tuple[int, float, float]], *, name: str, xlabel: str, alt: str
) -> Markup:
    """A point for each run: its position, x and y."""

    def draw(axes: Axes) -> None:
        import numpy as np
        from matplotlib.ticker import MaxNLocator

        for run, x, y in points:
            shape = SHAPES[run // COLOURS % len(SHAPES)]
            axes.plot(x, y, shape, color=RUN.format(run % COLOURS), ms=7, gid=f"run-{run}")
        logarithmic = spans_decade(np.array([y for _, _, y in points]))
        if logarithmic:
            axes.set_yscale("log")
        axes.margins(0.08)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(plain)
        y_ticks(axes, logarithmic)

    return drawing(draw, name=name, alt=alt)

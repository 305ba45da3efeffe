"""The charts of the page: training, gradient dynamics, code usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mqvae.report.charts import DENSE, NARROW, Line, Mark, curves, mark, ranks
from mqvae.report.run import Run
from mqvae.report.words import enumerate_words


@dataclass(frozen=True)
class Chart:
    """A chart under its title; where it is of one run, `mark` is that run's."""

    title: str
    svg: Markup
    mark: Mark | None = None


@dataclass(frozen=True)
class Charts:
    """Charts beside each other, the legend of all of them, and whether raw values are faint."""

    charts: Sequence[Chart]
    legend: Sequence[Mark] = ()
    smoothed: bool = False


def training(runs: Sequence[Run]) -> Charts | None:
    """Loss and perplexity, against updates and against time; None if no run logged a step."""
    shown = [i for i, run in enumerate(runs) if len(run.column("step"))]
    if not shown:
        return None
    elapsed = np.concatenate([runs[i].column("seconds") for i in shown])
    longest = float(elapsed[np.isfinite(elapsed)].max(initial=0.0))
    unit, seconds = next(
        (name, size)
        for name, size, limit in (("hours", 3600, 7200), ("minutes", 60, 180), ("seconds", 1, -1))
        if longest > limit
    )
    axes = (("step", 1, "updates", "updates"), ("seconds", seconds, "time", f"{unit} of training"))
    validated = [i for i in shown if np.isfinite(runs[i].column("validation")).any()]
    charts = []
    for key, quantity in (("task", "Task loss"), ("perplexity", "Perplexity of a batch")):
        for column, size, against, xlabel in axes:
            lines = [Line(runs[i].column(column) / size, runs[i].column(key), i) for i in shown]
            if key == "task":
                lines += [_validation(runs[i], i, column, size) for i in validated]
            title = f"{quantity} against {against}"
            svg = curves(
                lines,
                name=f"{key}-{column}",
                xlabel=xlabel,
                alt=_describe(f"{title}.", runs, lines, "validation"),
                log=None if key == "task" else False,
            )
            charts.append(Chart(title, svg))
    legend = [mark(runs[i].name, i) for i in shown]
    legend += [mark("validation", kind="second")] if validated else []
    return Charts(charts, legend, any(len(runs[i].column("step")) >= DENSE for i in shown))


def dynamics(runs: Sequence[Run]) -> Charts | None:
    """Norms, ratio and cosine of the two parts of the hypergradient; None if no run has any."""
    shown = [i for i, run in enumerate(runs) if run.has_dynamics]
    if not shown:
        return None
    norms, ratios, cosines = [], [], []
    for i in shown:
        steps, direct = runs[i].column("step"), runs[i].column("direct_norm")
        indirect = runs[i].column("indirect_norm")
        known = np.isfinite(direct) & (direct > 0)
        ratio = np.divide(indirect, direct, out=np.full_like(direct, np.nan), where=known)
        norms += [Line(steps, direct, i), Line(steps, indirect, i, "second")]
        ratios.append(Line(steps, ratio, i))
        cosines.append(Line(steps, runs[i].column("cosine"), i))
    charts = []
    for title, name, lines, log, zero in (
        ("Norms of the direct and the indirect part", "norms", norms, True, False),
        ("Indirect over direct norm", "ratio", ratios, None, False),
        ("Cosine between the two parts", "cosine", cosines, False, True),
    ):
        alt = _describe(f"{title}, against updates.", runs, lines, "indirect")
        svg = curves(lines, name=name, xlabel="updates", alt=alt, log=log, zero=zero, width=NARROW)
        charts.append(Chart(title, svg))
    kinds = [mark("direct part"), mark("indirect part", kind="second")]
    return Charts(charts, [mark(runs[i].name, i) for i in shown] + kinds)


def codes(runs: Sequence[Run]) -> Charts | None:
    """How often each code is chosen, one chart per run, same axes; None if none was counted."""
    shares = {
        i: np.concatenate(run.counts) / sum(group.sum() for group in run.counts)
        for i, run in enumerate(runs)
        if any(group.any() for group in run.counts)
    }
    if not shares:
        return None
    positive = np.concatenate([share[share > 0] for share in shares.values()])
    charts = []
    for i, share in shares.items():
        used, total = runs[i].codes_used
        title = f"{used:,} of {total:,} codes used, perplexity {runs[i].perplexity:,.1f}"
        svg = ranks(
            share,
            run=i,
            name=f"codes-{i}",
            alt=f"{runs[i].name}: share of every code, most frequent first; {title}.",
            total=max(len(each) for each in shares.values()),
            lowest=float(positive.min()),
            highest=float(positive.max()),
        )
        charts.append(Chart(title, svg, mark(runs[i].name, i)))
    return Charts(charts)


def _validation(run: Run, index: int, column: str, size: float) -> Line:
    """Measured now and then: a line from one value to the next."""
    values = run.column("validation")
    known = np.isfinite(values)
    return Line(run.column(column)[known] / size, values[known], index, "second")


def _describe(title: str, runs: Sequence[Run], lines: Sequence[Line], second: str) -> str:
    """A chart in words: where every line ends; `second` names those of the second kind."""
    ends = []
    for line in lines:
        known = line.y[np.isfinite(line.y)]
        if len(known):
            kind = f" ({second})" if line.kind == "second" else ""
            ends.append(f"{runs[line.run].name}{kind} {known[-1]:.3g}")
    return f"{title} Last values: {enumerate_words(ends)}." if ends else title

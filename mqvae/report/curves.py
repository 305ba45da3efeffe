"""The charts of the page: training, gradient dynamics, code usage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from mqvae.report.charts import COLOURS, DENSE, NARROW, Line, Mark, curves, mark, thin
from mqvae.report.run import Run
from mqvae.report.words import enumerate_words


@dataclass(frozen=True)
class Chart:
    """A chart under its title.

    Attributes:
        title: The title.
        svg: The drawing.
        against: What x is, where the page lets one choose: "step" or "seconds".
    """

    title: str
    svg: Markup
    against: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts beside each other, the legend of all of them, and whether raw values are faint.

    `title` says what the runs have in common, where a page has others.
    """

    charts: Sequence[Chart]
    legend: Sequence[Mark] = ()
    smoothed: bool = False
    title: str = ""


def training(runs: Sequence[Run]) -> list[Charts]:
    """Loss and perplexity, against steps and against time, of runs that can be compared."""
    shown = [i for i, run in enumerate(runs) if len(run.column("step"))]
    return [_training(runs, members, title) for title, members in comparable(runs, shown)]


def _training(runs: Sequence[Run], shown: Sequence[int], kind: str) -> Charts:
    validated = [i for i in shown if np.isfinite(runs[i].column("validation")).any()]
    # Where dashes tell runs apart they cannot tell what is validation: that has its own chart.
    many = len(runs) > COLOURS
    drawn = {"task": "Task loss", "perplexity": "Perplexity of a batch"}
    drawn |= {"validation": "Validation loss"} if many and validated else {}
    # Not every quantizer has these, and older runs did not log learning rates.
    some = {"auxiliary": "Quantizer's own loss", "commitment": "Commitment loss"}
    some |= {"network_lr": "Learning rate"}
    own = {key: [i for i in shown if np.nanmax(runs[i].column(key), initial=0) > 0] for key in some}
    drawn |= {key: title for key, title in some.items() if own[key]}
    charts = []
    for key, quantity in drawn.items():
        for column, size, against, xlabel in _axes(runs, shown):
            members = own.get(key, shown)
            lines = [Line(runs[i].column(column) / size, runs[i].column(key), i) for i in members]
            if key == "validation":
                lines = [
                    replace(_validation(runs[i], i, column, size), kind="first") for i in validated
                ]
            if key == "task" and not many:
                lines += [_validation(runs[i], i, column, size) for i in validated]
            title = f"{quantity} against {against}"
            svg = curves(
                lines,
                name=f"{key}-{column}-{shown[0]}",
                xlabel=xlabel,
                alt=_describe(f"{title}.", runs, lines, "validation"),
                log=False if key in ("perplexity", "network_lr") else None,
            )
            charts.append(Chart(title, svg, against=column))
    legend = [mark(runs[i].name, i) for i in shown]
    legend += [mark("validation", kind="second")] if validated and not many else []
    smoothed = any(len(runs[i].column("step")) >= DENSE for i in shown)
    return Charts(charts, legend, smoothed, kind)


def dynamics(runs: Sequence[Run]) -> list[Charts]:
    """Norms, ratio and cosine of the two parts of the hypergradient, of comparable runs."""
    shown = [i for i, run in enumerate(runs) if run.has_dynamics]
    return [_dynamics(runs, members, title) for title, members in comparable(runs, shown)]


def _dynamics(runs: Sequence[Run], shown: Sequence[int], kind: str) -> Charts:
    charts, many = [], len(runs) > COLOURS
    for column, size, against, xlabel in _axes(runs, shown):
        directs, indirects, ratios, cosines = [], [], [], []
        for i in shown:
            x, direct = runs[i].column(column) / size, runs[i].column("direct_norm")
            indirect = runs[i].column("indirect_norm")
            known = np.isfinite(direct) & (direct > 0)
            ratio = np.divide(indirect, direct, out=np.full_like(direct, np.nan), where=known)
            directs.append(Line(x, direct, i))
            indirects.append(Line(x, indirect, i, "first" if many else "second"))
            ratios.append(Line(x, ratio, i))
            cosines.append(Line(x, runs[i].column("cosine"), i))
        norms = {"Norms of the direct and the indirect part": [*directs, *indirects]}
        if many:
            norms = {"Norm of the direct part": directs, "Norm of the indirect part": indirects}
        for title, name, lines, log, zero in (
            *(
                (title, f"norms{n}", own, True, False)
                for n, (title, own) in enumerate(norms.items())
            ),
            ("Indirect over direct norm", "ratio", ratios, None, False),
            ("Cosine between the two parts", "cosine", cosines, False, True),
        ):
            svg = curves(
                lines,
                name=f"{name}-{column}-{shown[0]}",
                xlabel=xlabel,
                alt=_describe(f"{title}, against {against}.", runs, lines, "indirect"),
                log=log,
                zero=zero,
                width=NARROW,
            )
            charts.append(Chart(title, svg, against=column))
    kinds = [mark("direct part"), mark("indirect part", kind="second")]
    legend = [mark(runs[i].name, i) for i in shown] + ([] if many else kinds)
    return Charts(charts, legend, title=kind)


def codes(runs: Sequence[Run]) -> list[Charts]:
    """How often each code is chosen, the most frequent first, of comparable runs."""
    counted = {
        i: np.sort(np.concatenate([each.counts for each in run.counts]))[::-1]
        for i, run in enumerate(runs)
        # Without quantization there is one.
        if any(len(each.codes) and each.total > 1 for each in run.counts)
    }
    found = []
    for kind, members in comparable(runs, list(counted)):
        shares = {i: counted[i] / counted[i].sum() for i in members}
        lines = [Line(*thin(np.arange(1.0, len(y) + 1), y), i) for i, y in shares.items()]
        told = [f"{runs[i].name} {runs[i].codes_used[0]:,}" for i in members]
        title = "Share of a code, most frequent first"
        svg = curves(
            lines,
            name=f"codes-{members[0]}",
            xlabel="code, by rank",
            alt=f"{title}. Codes used: {enumerate_words(told)}.",
            log=True,
            averaged=False,
            percent=True,
        )
        legend = [mark(_used(runs[i]), i) for i in members]
        found.append(Charts([Chart(title, svg)], legend, title=kind))
    return found


def _used(run: Run) -> str:
    used, total = run.codes_used
    return (
        f"{run.name}: {used:,} of {total:,} codes used over {run.images}, {total - used:,} not, "
        f"perplexity {run.perplexity:,.1f}"
    )


def comparable(runs: Sequence[Run], shown: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Runs of one kind, and what kind; losses of others share no axis with theirs."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i in shown:
        groups.setdefault(runs[i].kind, []).append(i)
    several = len({run.kind for run in runs}) > 1
    return [
        (", ".join(filter(None, kind)) if several else "", members)
        for kind, members in groups.items()
    ]


def _axes(runs: Sequence[Run], shown: Sequence[int]) -> tuple[tuple[str, float, str, str], ...]:
    """What curves are drawn against: column, size of a unit, name, label."""
    elapsed = np.concatenate([runs[i].column("seconds") for i in shown])
    longest = float(elapsed[np.isfinite(elapsed)].max(initial=0.0))
    unit, size = next(
        (name, size)
        for name, size, limit in (("hours", 3600, 7200), ("minutes", 60, 180), ("seconds", 1, -1))
        if longest > limit
    )
    return ("step", 1, "steps", "training steps"), ("seconds", size, "time", f"{unit} of training")


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

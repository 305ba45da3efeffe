"""Line charts as SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup

from mqvae.optional import require
from mqvae.report.words import scientific

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 8  # as many as style.css has
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
WIDE, NARROW = 420, 330  # widths of drawings, for two and for three beside each other
DENSE = 80  # from this many points on, a line is smoothed
MOST_POINTS = 6000  # of all curves of a chart together: many runs must not make a page heavy

# matplotlib knows no CSS variables: it draws in colours found nowhere else (the first two are in
# chart.mplstyle), which are then replaced, so that one drawing serves light and dark.
INK, RULE, RUN = "#fd0001", "#fd0002", "#fe00{:02x}"


@dataclass(frozen=True)
class Mark:
    """A piece of line with its meaning, as a legend has it.

    Attributes:
        name: The meaning.
        colour: As CSS has it.
        dashes: As SVG writes them.
        run: Whose line it is; None for a kind of line.
    """

    name: str
    colour: str
    dashes: str
    run: int | None = None


def mark(name: str, run: int | None = None, *, kind: Literal["first", "second"] = "first") -> Mark:
    """The mark of a run, or that of a kind of line, whichever run it is of."""
    style = dash(run or 0, kind)
    dashes = "" if isinstance(style, str) else " ".join(f"{1.6 * part:g}" for part in style[1])
    colour = "currentColor" if run is None else f"var(--run-{run % COLOURS})"
    return Mark(name, colour, dashes, run)


def dash(run: int, kind: str = "first") -> Any:
    """How matplotlib draws a run's line: where colours repeat, dashes tell runs apart."""
    return DASHES[1] if kind == "second" else DASHES[run // COLOURS % len(DASHES)]


@dataclass(frozen=True)
class Line:
    """One curve: `kind` is what of a run it shows when a chart shows two things of each."""

    x: np.ndarray
    y: np.ndarray
    run: int
    kind: Literal["first", "second"] = "first"


def curves(
    lines: Sequence[Line],
    *,
    name: str,
    xlabel: str,
    alt: str,
    log: bool | None = None,
    zero: bool = False,
    width: int = WIDE,
    averaged: bool = True,
    percent: bool = False,
) -> Markup:
    """Curves over a shared axis; dense ones are smoothed, the raw values faint behind them.

    Args:
        lines: the curves.
        name: prefix of the ids, unique in the page.
        xlabel: what x is, with its unit.
        alt: the chart in words.
        log: logarithmic y; None means if the positive values span more than a decade.
        zero: mark y = 0.
        width: of the drawing, which the page scales; a smaller one has larger text.
        averaged: dense ones are noisy, to be smoothed.
        percent: y is a share.
    """

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines] or [np.empty(0)])
        logarithmic = spans_decade(values) if log is None else log and bool((values > 0).any())
        if logarithmic:
            axes.set_yscale("log")
        points = max(MOST_POINTS // max(len(lines), 1), 40)
        for line in lines:
            drawable = np.isfinite(line.y) & ((line.y > 0) | (not logarithmic))
            y = np.where(drawable, line.y, np.nan)
            style, colour = dash(line.run, line.kind), RUN.format(line.run % COLOURS)
            if averaged and np.isfinite(y).sum() >= DENSE:
                raw = envelope(line.x, y, min(points, 300))
                drawn = axes.plot(*raw, color=colour, alpha=0.22, lw=0.8)
                drawn += axes.plot(
                    *thin(line.x, smooth(y), min(points, 400)), color=colour, ls=style, lw=1.7
                )
            else:
                dot = "o" if len(y) == 1 else None
                drawn = axes.plot(line.x, y, color=colour, ls=style, lw=1.7, marker=dot)
            for each in drawn:
                each.set_gid(f"run-{line.run}")
        if zero:
            axes.axhline(0, color=INK, lw=0.6, alpha=0.6)
        axes.set_xlabel(xlabel)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        y_ticks(axes, logarithmic, percent=percent)

    return drawing(draw, name=name, alt=alt, width=width)


def spans_decade(values: np.ndarray) -> bool:
    """Whether values, all of them positive, cover more than a factor of ten."""
    return bool(len(values)) and float(values.min()) > 0 and values.max() > 10 * values.min()


def smooth(y: np.ndarray) -> np.ndarray:
    """Moving average over a fortieth of the points, blanks left out.

    The window narrows towards the start, where a loss falls too steeply to be averaged over one
    side only; at the end it is cut off instead, so that the last value is not a single batch's.
    """
    known = np.isfinite(y)
    at = np.arange(len(y))
    half = np.minimum(max(len(y) // 80, 1), at)
    first, last = at - half, np.minimum(at + half, len(y) - 1)
    totals = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    mean = (totals[last + 1] - totals[first]) / np.maximum(counts[last + 1] - counts[first], 1)
    return np.where(known, mean, np.nan)


def thin(x: np.ndarray, y: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` of a smooth curve, its last one among them."""
    picked = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
    return x[picked], y[picked]


def envelope(x: np.ndarray, y: np.ndarray, bins: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of every stretch: thousands of noisy points keep their extent."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) <= 2 * bins:
        return x, y
    picked: set[int] = set()
    for stretch in np.array_split(np.arange(len(x)), bins):
        values = y[stretch]
        picked |= {int(stretch[values.argmin()]), int(stretch[values.argmax()])}
    order = sorted(picked)
    return x[order], y[order]


def plain(value: float, _position: object = None) -> str:
    """A tick in Unicode instead of mathtext, which needs fonts of its own.

    >>> plain(2000.0), plain(0.02), plain(0.00002)
    ('2,000', '0.02', '2·10⁻⁵')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.10g}"
    return scientific(value)


def percentage(value: float, _position: object = None) -> str:
    """
    >>> percentage(0.001)
    '0.1%'
    """
    return plain(round(100 * value, 12)) + "%"


def y_ticks(axes: Axes, logarithmic: bool, *, percent: bool = False) -> None:
    """A handful of round numbers along y."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.yaxis.set_major_formatter(percentage if percent else plain)
    if not logarithmic:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        return
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 3 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_ylim(low, high)


def drawing(draw: Callable[[Axes], None], *, name: str, alt: str, width: int = WIDE) -> Markup:
    """What `draw` puts on the axes, as SVG for a page.

    Args:
        draw: draws in the colours `INK` and `RUN`.
        name: prefix of the ids, unique in the page.
        alt: the chart in words.
        width: of the drawing.
    """
    require("matplotlib")
    from matplotlib import rc_context, style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # What a user's own matplotlibrc says must not reach the page.
    with style.context("mqvae.report.chart", after_reset=True), rc_context({"svg.hashsalt": name}):
        height = 250 if width == WIDE else 220
        figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        FigureCanvasSVG(figure)
        # Fixed margins, so that the axes of neighbouring charts line up.
        left, right, bottom, top = 50, 14, 44, 10
        box = (left / width, bottom / height, 1 - (left + right) / width)
        axes = figure.add_axes((*box, 1 - (bottom + top) / height), facecolor="none")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(plain)
        draw(axes)
        written = StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(written, format="svg", metadata=nothing)
    return _adopt(written.getvalue(), name=name, alt=alt)


def _adopt(svg: str, *, name: str, alt: str) -> Markup:
    """Fit matplotlib's file into a page: no clashing ids, no leaking style, no fixed colour."""
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="([^"]*)"', body)
    assert view is not None
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.S)
    body = body.replace("xlink:href", "href")
    body = re.sub(r' id="run-(\d+)"', r' data-run="\1"', body)  # lets the page hide a run
    referenced = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in referenced else "", body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(
        r' (?:d|x|y|x1|x2|y1|y2|width|height|transform)="[^"]*"',
        lambda m: re.sub(r"\d+\.\d{2,}", lambda n: f"{float(n[0]):.1f}".removesuffix(".0"), m[0]),
        body,
    )
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"#fe00([0-9a-f]{2})", lambda m: f"var(--run-{int(m[1], 16)})", body)
    body = body.replace(INK, "var(--muted)").replace(RULE, "var(--rule)")
    body = re.sub(r"\s*\n\s*", "\n", body)
    return Markup('<svg class="chart" viewBox="{}" role="img" aria-label="{}">{}</svg>').format(
        view[1], alt, Markup(body)
    )

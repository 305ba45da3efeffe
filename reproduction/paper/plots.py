"""Plots as SVG: inside a page, and as files that stand alone in light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from mqvae.report.charts import COLOURS, RUN, WIDE, Mark, dash, drawing, mark, plain, y_ticks
from reproduction.paper.sections import Line, Plot, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 16  # up to this many points, each is marked
SHOWN_WIDTH = 480  # CSS pixels of a file that nothing scales
MARKERS = "os^Dv"  # of points
LETTER = 6.6  # estimated width of a letter of a legend, on the wide side
LINE = 18  # height of a line of a legend


@dataclass(frozen=True)
class Drawn:
    """A plot, its drawing for a page, and the legend of its lines."""

    plot: Plot
    svg: Markup
    legend: Sequence[Mark]


def draw(section: Section) -> list[Drawn]:
    """The plots of a section; a label has the same colour in all of them."""
    labels = dict.fromkeys(line.label for plot in section.plots for line in plot.lines)
    places = {label: place for place, label in enumerate(labels)}
    found = []
    for plot in section.plots:
        svg = drawing(partial(_draw, plot=plot, places=places), name=plot.name, alt=alt(plot))
        legend = [mark(line.label, places[line.label]) for line in plot.lines]
        found.append(Drawn(plot, svg, legend))
    return found


def alt(plot: Plot) -> str:
    """A plot in words: where every line ends."""
    if plot.points:
        counts = ", ".join(f"{line.label} {len(line.x)}" for line in plot.lines)
        return f"{plot.title}: {plot.y} over {plot.x}. Points: {counts or 'none'}."
    ends = []
    for line in plot.lines:
        known = [y for y in line.y if math.isfinite(y)]
        if known:
            ends.append(f"{line.label} {known[-1]:.3g}")
    return f"{plot.title}: {plot.y} over {plot.x}. Last values: {', '.join(ends) or 'none'}."


def standalone(drawn: Drawn) -> str:
    """A plot as a file: its own colours and ground, for light and dark, and its legend."""
    plot, legend = drawn.plot, drawn.legend
    longest = max((len(each.name) for each in legend), default=0)
    columns = max(1, min(3, int((WIDE - 20) // (40 + LETTER * longest))))
    top, chart = 22, 250
    height = top + chart + LINE * math.ceil(len(legend) / columns) + 8
    entries = []
    for i, each in enumerate(legend):
        x = 14 + (WIDE - 20) // columns * (i % columns)
        y = top + chart + LINE * (i // columns) + 8
        dashes = Markup(' stroke-dasharray="{}"').format(each.dashes) if each.dashes else ""
        entries.append(
            Markup(
                '<line x1="{}" x2="{}" y1="{}" y2="{}" style="stroke: {}" stroke-width="3"{}/>'
                '<text x="{}" y="{}">{}</text>'
            ).format(x, x + 24, y - 4, y - 4, each.colour, dashes, x + 31, y, each.name)
        )
    placed = str(drawn.svg).replace(
        "<svg ", f'<svg x="0" y="{top}" width="{WIDE}" height="{chart}" ', 1
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" '
            f'width="{SHOWN_WIDTH}" height="{round(height * SHOWN_WIDTH / WIDE)}" role="img" '
            f'aria-label="{escape(alt(plot))}">',
            f"<style>\n{_palette()}"
            "text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', "
            "'Liberation Sans', Arial, sans-serif; font-size: 12px !important; }\n"
            "text { fill: var(--ink); } .chart text { fill: var(--muted); }\n</style>",
            '<rect width="100%" height="100%" style="fill: var(--page)"/>',
            f'<text x="14" y="15">{escape(plot.y)}</text>',
            placed,
            *entries,
            "</svg>\n",
        )
    )


def _palette() -> str:
    """The colours of the report, which its style sheet begins with."""
    style = resources.files("mqvae.report").joinpath("templates", "style.css")
    return style.read_text(encoding="utf-8").partition("* {")[0]


def _draw(axes: Axes, plot: Plot, places: dict[str, int]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    everything = [_values(line, plot) for line in plot.lines]
    x_known = np.concatenate([x[np.isfinite(x) & np.isfinite(y)] for x, y in everything] or [[]])
    y_known = np.concatenate([y[np.isfinite(y)] for _, y in everything] or [[]])
    if plot.log_y and len(y_known):
        axes.set_yscale("log")
    if plot.log_x and len(x_known):
        axes.set_xscale("log")
    for line, (x, y) in zip(plot.lines, everything, strict=True):
        place = places[line.label]
        colour = RUN.format(place % COLOURS)
        marker = "o" if np.isfinite(y).sum() <= FEW else None
        if plot.points:
            axes.plot(x, y, color=colour, ls="", marker=MARKERS[place % len(MARKERS)], ms=5)
        else:
            axes.plot(x, y, color=colour, ls=dash(place), lw=1.7, marker=marker, ms=3)
        if line.low is not None and line.high is not None:
            low, high = np.asarray(line.low, float), np.asarray(line.high, float)
            # A logarithm has no room for what reaches below zero.
            low = np.where((low > 0) | (not plot.log_y), low, y)
            axes.fill_between(x, low, high, color=colour, alpha=0.16, lw=0)
    axes.set_xlabel(plot.x)
    if plot.log_x and len(x_known):
        axes.xaxis.set_major_locator(LogLocator(numticks=7))
        axes.xaxis.set_major_formatter(plain)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        if len(x_known) and 0 <= x_known.min() < 0.3 * x_known.max():
            axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    y_ticks(axes, plot.log_y and bool(len(y_known)))


def _values(line: Line, plot: Plot) -> tuple[np.ndarray, np.ndarray]:
    """What can be drawn of a line; gaps elsewhere."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    drawable = np.isfinite(x) & np.isfinite(y)
    drawable &= (x > 0) | (not plot.log_x)
    drawable &= (y > 0) | (not plot.log_y)
    return np.where(np.isfinite(x), x, np.nan), np.where(drawable, y, np.nan)

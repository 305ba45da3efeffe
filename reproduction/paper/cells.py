"""The figures of a table as people read them, the same on every page."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mqvae.report.words import aligned, duration
from reproduction.paper.sections import (
    PROTOCOLS,
    Cell,
    Claim,
    Column,
    Protocol,
    Row,
    Section,
    Table,
)

SHORT: Mapping[Protocol, str] = {
    "paper": "our reading",
    "equal": "6e-2 for all",
    "matched": "matched",
    "time": "equal time",
    "cost": "a step",
    "all": "",
}
SUBSTITUTE = "†"
NOT_COMPARABLE = f"{SUBSTITUTE} Not comparable to the paper's: stands for one that cannot be had."
LEGEND = (
    "Large: ours, with ± the standard deviation over seeds. Small: the paper's. "
    "×: ratio to VQ-VAE in the same protocol, unless a note names another method, "
    "of means over seeds; sentences have the mean of the seeds' ratios."
)
DEBUG = "Trained for seconds, to see that everything works: the figures mean nothing."
NOTHING = "-"
SIDE_BY_SIDE = 6  # columns
WIDEST = 1000.0  # up to this ratio of largest to smallest, a column has equally many decimals


@dataclass(frozen=True)
class Shown:
    """A cell, written out; what it lacks is empty.

    Attributes:
        ours: Our mean.
        spread: Standard deviation over the seeds.
        ratio: Ours, as in "×0.76".
        paper: The paper's figure.
        paper_ratio: The paper's.
        order: What it sorts by; None sorts last.
        detail: What is to be known of it alone.
    """

    ours: str = NOTHING
    spread: str = ""
    ratio: str = ""
    paper: str = ""
    paper_ratio: str = ""
    order: float | None = None
    detail: str = ""

    @property
    def value(self) -> str:
        """Mean and spread; they never part at the end of a line."""
        if not self.spread:
            return self.ours
        return f"{self.ours} ± {self.spread}".replace(" ", "\N{NO-BREAK SPACE}")


def shown(table: Table) -> list[list[Shown]]:
    """The cells of a table, row by row, in the order of its columns."""
    columns = [_column([row.cells.get(c.key) for row in table.rows]) for c in table.columns]
    return [[cells[i] for cells in columns] for i in range(len(table.rows))]


def protocols(sections: Sequence[Section], claims: Sequence[Claim] = ()) -> list[Protocol]:
    """Those that occur in sections, and in claims beside them."""
    used = {row.protocol for section in sections for t in section.tables for row in t.rows}
    claims = [*claims, *(claim for section in sections for claim in section.judged)]
    used |= {protocol for claim in claims for protocol in claim.here}
    return [protocol for protocol in SHORT if protocol in used and PROTOCOLS[protocol]]


def parts(table: Table) -> list[tuple[Protocol, list[int], list[int]]]:
    """What a table is cut into for the width of a page: protocols, their rows, some columns.

    As many columns in each as go beside each other, `SIDE_BY_SIDE` at most.
    """
    count = len(table.columns)
    cuts = max(1, -(-count // SIDE_BY_SIDE))
    size = max(1, -(-count // cuts))
    return [
        (protocol, rows, list(range(start, min(start + size, count))))
        for protocol, rows in groups(table)
        for start in range(0, count, size)
    ]


def groups(table: Table) -> Iterator[tuple[Protocol, list[int]]]:
    """Numbers of the rows that follow each other under one protocol."""
    numbers = range(len(table.rows))
    for protocol, group in itertools.groupby(numbers, lambda i: table.rows[i].protocol):
        yield protocol, list(group)


def notes(table: Table) -> list[str]:
    """What a reader must know besides, the substitutes' warning among it."""
    substitutes = any(column.substitute for column in table.columns)
    return [*table.notes, *([NOT_COMPARABLE] if substitutes else [])]


def definitions(table: Table) -> str:
    """How figures were computed, where columns say so."""
    told = [f"{c.title}: {c.protocol.rstrip('.')}." for c in table.columns if c.protocol]
    return " ".join(told)


def heading(column: Column) -> str:
    """A column's title with its direction.

    >>> heading(Column("mse", "MSE (e-3)", "lower"))
    'MSE (e-3) ↓'
    >>> heading(Column("frechet_vgg", "Fréchet", None, substitute=True))
    'Fréchet†'
    """
    arrow = {"lower": " ↓", "higher": " ↑", None: ""}[column.better]
    return f"{column.title}{SUBSTITUTE * column.substitute}{arrow}"


def rate(value: float | None) -> str:
    """
    >>> rate(0.06), rate(3e-4), rate(0.0025), rate(None)
    ('6e-2', '3e-4', '2.5e-3', '-')
    """
    if value is None:
        return NOTHING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def steps(row: Row) -> str:
    """How many training steps a method made."""
    return f"{row.steps:,}" if row.steps else NOTHING


def runs(table: Table) -> list[tuple[str, Sequence[str]]]:
    """The results that rows were made of: the same ones once, with every protocol they stand in."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in table.rows:
        if row.runs:
            found.setdefault((row.method, row.runs), []).append(SHORT[row.protocol])
    return [
        (", ".join(filter(None, (method, *protocols))), names)
        for (method, names), protocols in found.items()
    ]


def seconds(row: Row) -> str:
    """How long a method was trained."""
    return duration(row.seconds) if row.seconds else NOTHING


def ratio(value: float | None) -> str:
    """
    >>> ratio(0.756), ratio(0.0123), ratio(1234.5), ratio(None)
    ('×0.76', '×0.012', '×1,234', '')
    """
    if value is None or not math.isfinite(value):
        return ""
    if abs(value) >= 100:
        return f"×{value:,.0f}"
    return f"×{value:.2f}" if abs(value) >= 0.095 or value == 0 else f"×{value:.2g}"


def _column(cells: Sequence[Cell | None]) -> list[Shown]:
    """The cells of a column, all with as many decimals where their sizes allow."""
    means = [cell.mean if cell and cell.values else None for cell in cells]
    papers = [cell.paper if cell else None for cell in cells]
    values = [*means, *papers]
    sizes = [abs(v) for v in values if v and math.isfinite(v)]
    together = not sizes or max(sizes) <= WIDEST * min(sizes)
    written = aligned(values) if together else [aligned([v])[0] for v in values]
    found = []
    for i, cell in enumerate(cells):
        if cell is None:
            found.append(Shown())
            continue
        ours, paper, mean = written[i], written[len(cells) + i], means[i]
        finite = mean is not None and math.isfinite(mean)
        spread = cell.spread if finite else None
        decimals = len(ours.partition(".")[2])
        found.append(
            Shown(
                ours,
                "" if spread is None else f"{spread:,.{decimals}f}",
                ratio(cell.ratio),
                "" if cell.paper is None else paper,
                ratio(cell.paper_ratio),
                mean if finite else None,
                cell.detail,
            )
        )
    return found

"""The page as one HTML file that loads nothing."""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from markupsafe import Markup, escape
from PIL import Image as Pixels

from mqvae.report.charts import Mark
from mqvae.report.page import environment
from mqvae.report.strips import TILE
from reproduction.paper.cells import (
    DEBUG,
    LEGEND,
    SHORT,
    Shown,
    definitions,
    groups,
    heading,
    notes,
    parts,
    protocols,
    rate,
    runs,
    seconds,
    shown,
    steps,
)
from reproduction.paper.plots import Drawn, draw
from reproduction.paper.sections import (
    PROTOCOLS,
    Claim,
    Column,
    Image,
    Page,
    Protocol,
    Row,
    Section,
    Table,
)


@dataclass(frozen=True)
class ShownRow:
    """A row with its cells written out."""

    row: Row
    cells: Sequence[Shown]
    rate: str
    steps: str
    seconds: str


@dataclass(frozen=True)
class ShownPart:
    """Some columns of the rows of one protocol; `ratios` tells for each whether it has any."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[ShownRow]
    heads: Sequence[str]
    ratios: Sequence[bool]
    timed: bool


@dataclass(frozen=True)
class ShownTable:
    """A table with its rows written out."""

    table: Table
    parts: Sequence[ShownPart]
    notes: Sequence[str]
    definitions: str
    runs: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Strip:
    """An image in the page itself, with its size there."""

    title: str
    uri: str
    width: int
    height: int
    enlarged: bool


@dataclass(frozen=True)
class ShownSection:
    """A section with its tables, plots and images; `legend` is one for all of its plots."""

    section: Section
    tables: Sequence[ShownTable]
    plots: Sequence[Drawn]
    legend: Sequence[Mark]
    strips: Sequence[Strip]


def html(page: Page) -> str:
    """The page with its styles, plots, images and the script that sorts its tables."""
    templates = environment("reproduction.paper", "mqvae.report")
    templates.filters["prose"] = prose
    return templates.get_template("reproduction.html").render(
        title=page.title,
        page=page,
        debug=DEBUG if page.scale == "debug" else "",
        legend=LEGEND,
        protocols=[
            (SHORT[each], _definition(PROTOCOLS[each]))
            for each in protocols(page.sections, page.claims)
        ],
        short=SHORT,
        shown_protocols=_shown,
        sections=[_section(section) for section in page.sections],
    )


def prose(text: str) -> Markup:
    """A sentence with code between its backticks.

    >>> prose("a < b, see `mqvae price`")
    Markup('a &lt; b, see <code>mqvae price</code>')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _shown(claims: Sequence[Claim]) -> list[Protocol]:
    """The protocols that claims have values in."""
    return [p for p in SHORT if any(p in claim.here for claim in claims)]


def _definition(text: str) -> str:
    """What a protocol is, behind its name."""
    return text.partition(": ")[2] or text


def _section(section: Section) -> ShownSection:
    plots = draw(section)
    legends = {tuple(drawn.legend) for drawn in plots}
    shared = legends.pop() if len(legends) == 1 and len(plots) > 1 else ()
    return ShownSection(
        section,
        [_table(table) for table in section.tables],
        plots,
        shared,
        _strips(section.images),
    )


def _table(table: Table) -> ShownTable:
    cells = shown(table)
    several = len(dict(groups(table))) > 1
    found = []
    for protocol, rows, columns in parts(table):
        name = SHORT[protocol] if several else ""
        shown_rows = [
            ShownRow(
                row,
                [cells[i][j] for j in columns],
                rate(row.rate),
                steps(row),
                seconds(row),
            )
            for i in rows
            for row in [table.rows[i]]
        ]
        found.append(
            ShownPart(
                f"{table.title}: {name}" if name else table.title,
                [table.columns[j] for j in columns],
                shown_rows,
                [heading(table.columns[j]) for j in columns],
                [any(r.cells[k].ratio for r in shown_rows) for k in range(len(columns))],
                columns[-1] == len(table.columns) - 1 and any(r.row.steps for r in shown_rows),
            )
        )
    return ShownTable(table, found, notes(table), definitions(table), runs(table))


def _strips(images: Sequence[Image]) -> list[Strip]:
    """All as large as each other, and large enough to see a pixel."""
    sizes = []
    for image in images:
        with Pixels.open(BytesIO(image.png)) as opened:
            sizes.append(opened.size)
    highest = max((height for _, height in sizes), default=TILE)
    scale = math.ceil(TILE / highest)
    return [
        Strip(
            image.title,
            f"data:image/png;base64,{base64.b64encode(image.png).decode()}",
            scale * width,
            scale * height,
            scale > 1,
        )
        for image, (width, height) in zip(images, sizes, strict=True)
    ]

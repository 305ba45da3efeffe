"""The page as one HTML file that loads nothing."""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from markupsafe import Markup, escape
from PIL import Image as Pixels

from mqvae.paper.cells import (
    DEBUG,
    LEGEND,
    SHORT,
    Shown,
    definitions,
    groups,
    heading,
    notes,
    protocols,
    rate,
    seconds,
    shown,
    updates,
)
from mqvae.paper.plots import Drawn, draw
from mqvae.paper.sections import PROTOCOLS, Image, Page, Row, Section, Table
from mqvae.report.charts import Mark
from mqvae.report.page import environment
from mqvae.report.strips import TILE


@dataclass(frozen=True)
class ShownRow:
    """A row with its cells written out; `first` begins a protocol."""

    row: Row
    cells: Sequence[Shown]
    first: bool
    rate: str
    updates: str
    seconds: str


@dataclass(frozen=True)
class ShownTable:
    """A table with its rows written out; `ratios` tells for each column whether it has any."""

    table: Table
    rows: Sequence[ShownRow]
    heads: Sequence[str]
    ratios: Sequence[bool]
    notes: Sequence[str]
    definitions: str


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
    templates = environment("mqvae.paper", "mqvae.report")
    templates.filters["prose"] = prose
    return templates.get_template("reproduction.html").render(
        title=page.title,
        page=page,
        debug=DEBUG if page.scale == "debug" else "",
        legend=LEGEND,
        protocols=[(SHORT[each], _definition(PROTOCOLS[each])) for each in protocols(page)],
        short=SHORT,
        sections=[_section(section) for section in page.sections],
    )


def prose(text: str) -> Markup:
    """A sentence with code between its backticks.

    >>> prose("a < b, see `mqvae price`")
    Markup('a &lt; b, see <code>mqvae price</code>')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


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
    firsts = {numbers[0] for _, numbers in list(groups(table))[1:]}
    cells = shown(table)
    return ShownTable(
        table,
        [
            ShownRow(row, cells[i], i in firsts, rate(row.rate), updates(row), seconds(row))
            for i, row in enumerate(table.rows)
        ],
        [heading(column) for column in table.columns],
        [
            any(row[i].ratio or row[i].paper_ratio for row in cells)
            for i in range(len(table.columns))
        ],
        notes(table),
        definitions(table),
    )


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

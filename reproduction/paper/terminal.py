"""A table for a terminal: a block for each figure, so that eighty columns are enough."""

import shutil
import textwrap
from collections.abc import Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from reproduction.paper.cells import (
    NOTHING,
    SHORT,
    definitions,
    groups,
    heading,
    notes,
    rate,
    seconds,
    shown,
    steps,
)
from reproduction.paper.sections import Table


def text(table: Table, *, width: int | None = None) -> str:
    """The table as lines, without colours.

    Args:
        table: What to show.
        width: In characters; None is the terminal's.
    """
    width = width or shutil.get_terminal_size().columns
    cells = shown(table)
    parts = [table.title]
    for i, column in enumerate(table.columns):
        lines = [(r[i].value, r[i].ratio, r[i].paper or NOTHING, r[i].paper_ratio) for r in cells]
        parts.append(_block(table, heading(column), ("ours", "", "paper", ""), lines, width))
    costs = [(rate(row.rate), steps(row), seconds(row)) for row in table.rows]
    heads = ("codebook learning rate", "steps", "time")
    parts.append(_block(table, "Training", heads, costs, width))
    remarks = [*notes(table), *filter(None, [definitions(table)])]
    parts += [textwrap.fill(remark, width) for remark in remarks]
    return "\n".join(parts) + "\n"


def _block(
    table: Table,
    title: str,
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    width: int,
) -> str:
    """Methods under each other, protocol by protocol."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column(Text(title), overflow="fold", min_width=26)
    for head in heads:
        grid.add_column(head, justify="right", no_wrap=True)
    for protocol, numbers in groups(table):
        if SHORT[protocol]:
            grid.add_row(SHORT[protocol])
        for i in numbers:
            grid.add_row(Text(f"  {table.rows[i].method}"), *map(Text, lines[i]))
        grid.add_section()
    written = StringIO()
    Console(file=written, width=width, color_system=None, force_terminal=False).print(grid)
    return "\n".join(line.rstrip() for line in written.getvalue().rstrip().split("\n"))

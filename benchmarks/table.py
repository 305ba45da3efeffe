"""A table of figures: as text, as Markdown, as JSON."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Rows of figures, and what they were measured under.

    Attributes:
        name: What it is called in files, as in `step-demo`.
        title: One line.
        conditions: Sizes and settings, by name.
        rows: Cells by column; a column that a row lacks stays empty.
        notes: What a reader must know besides.
    """

    name: str
    title: str
    conditions: Mapping[str, Cell]
    rows: Sequence[Mapping[str, Cell]]
    notes: Sequence[str] = field(default_factory=tuple)

    def columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def under(self) -> str:
        """The conditions in a line."""
        return ", ".join(f"{name} {value}" for name, value in self.conditions.items())

    def text(self) -> str:
        """For a terminal."""
        columns = self.columns()
        lines = [[shown(row.get(c)) for c in columns] for row in self.rows]
        widths = [max(len(c), *(len(line[i]) for line in lines)) for i, c in enumerate(columns)]
        numeric = [any(isinstance(row.get(c), int | float) for row in self.rows) for c in columns]

        def joined(cells: Sequence[str]) -> str:
            parts = (
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(cells, widths, numeric, strict=True)
            )
            return "  ".join(parts).rstrip()

        body = [joined(columns), *(joined(line) for line in lines), *self.notes]
        return "\n".join([self.title, self.under(), "", *body])

    def markdown(self) -> str:
        """For a page of the documentation."""
        columns = self.columns()
        lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        for row in self.rows:
            lines.append(f"| {' | '.join(shown(row.get(c)) for c in columns)} |")
        after = [f"\n{note}" for note in self.notes]
        return "\n".join([f"{self.title}: {self.under()}.\n", *lines, *after])

    def json(self) -> dict[str, Any]:
        return asdict(self)


def shown(cell: Cell) -> str:
    """A cell in words: three significant digits, thousands apart."""
    if cell is None:
        return ""
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int) or (abs(cell) >= 1000 and math.isfinite(cell)):
        return f"{round(cell):,}"
    if not math.isfinite(cell):
        return str(cell)
    digits = 2 if cell == 0 else max(0, 2 - math.floor(math.log10(abs(cell))))
    return f"{cell:.{min(digits, 6)}f}"


def hardware(device: str) -> dict[str, Cell]:
    """What a figure was measured on."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    found: dict[str, Cell] = {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device != "cpu":
        found["device"] = torch.cuda.get_device_name() if device == "cuda" else device
    return found

"""What the page of the paper is made of: sections of tables, plots and pictures.

Nothing here knows how runs are made, nor how a page looks.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Protocol = Literal["paper", "matched", "time", "cost"]

PROTOCOLS: Mapping[Protocol, str] = {
    "paper": "the paper's protocol: one AdamW with the network's rate for everything; MQ-VAE's "
    "codebook at its own, higher rate",
    "matched": "matched: every method at its own best codebook rate, chosen on validation "
    "images early in its run",
    "time": "equal time: matched, and as many updates as fit into VQ-VAE's time",
    "cost": "a step: no training; one step of each method, in turns",
}


@dataclass(frozen=True)
class Column:
    """A figure of a table.

    Attributes:
        key: As in a run's summary.json.
        title: As a reader knows it, with its scale, as in "MSE (e-3)".
        better: "lower", "higher", or None for neither.
        scale: What values were divided by.
        protocol: How it was computed.
        substitute: Whether it stands for one of the paper's that cannot be had, and is not
            comparable to it.
    """

    key: str
    title: str
    better: Literal["lower", "higher"] | None
    scale: float = 1.0
    protocol: str = ""
    substitute: bool = False


@dataclass(frozen=True)
class Cell:
    """A figure of a method.

    Attributes:
        values: One for each seed, in the column's scale.
        paper: The paper's; None where it has none.
        ratio: Our mean over that of the row it is compared with; None in that row itself.
        paper_ratio: The same of the paper's figures.
    """

    values: tuple[float, ...]
    paper: float | None = None
    ratio: float | None = None
    paper_ratio: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """A method under a protocol.

    Attributes:
        method: As the paper names it.
        protocol: Under which it was trained.
        cells: By the columns' keys.
        rate: Learning rate of its codebook; None where it has none.
        updates: How many it made.
        seconds: Of training, mean over the seeds.
        runs: The names of its results, one for each seed.
        seeds: The seeds, in the order of `runs` and of the cells' values.
    """

    method: str
    protocol: Protocol
    cells: Mapping[str, Cell]
    rate: float | None = None
    updates: int = 0
    seconds: float = 0.0
    runs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """Methods beside each other on one data set.

    Attributes:
        title: One line.
        columns: In order.
        rows: In order; those of one protocol follow each other.
        notes: What a reader must know besides, a sentence each.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Line:
    """A line of a plot; `low` and `high` bound it where there are several seeds."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Plot:
    """Lines over a common axis.

    Attributes:
        name: Of its file, without a suffix.
        title: One line.
        x: What the horizontal axis is.
        y: What the vertical axis is.
        lines: In order of the legend.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is.
    """

    name: str
    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Image:
    """A strip of images.

    Attributes:
        title: What it is of, as in "MQ-VAE, matched".
        png: The file.
    """

    title: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """One table or figure of the paper.

    Attributes:
        name: As a command takes it, as in "table-1".
        title: One line.
        claim: What the paper says, a sentence or two.
        verdict: What holds of it here and what does not, a sentence each.
        tables: Ours beside the paper's.
        plots: Curves.
        images: Strips of images, each as wide as the others.
        missing: What could not be had here, and what would bring it, a sentence each.
    """

    name: str
    title: str
    claim: str = ""
    verdict: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    images: Sequence[Image] = ()
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
        scale: "debug", "cpu" or "paper".
        headline: What a reader takes home, a sentence each; the first is the most important.
        conditions: Sizes, hardware, dates, by name.
        sections: In the paper's order.
        commands: That make it again.
        name: Of its files, without a suffix.
        title: One line.
    """

    scale: str
    headline: Sequence[str]
    conditions: Mapping[str, str]
    sections: Sequence[Section]
    commands: Sequence[str] = field(default_factory=tuple)
    name: str = "reproduction"
    title: str = "The paper, reproduced"

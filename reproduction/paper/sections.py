"""What the page of the paper is made of: sections of tables, plots and pictures.

Nothing here knows how runs are made, nor how a page looks.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Protocol = Literal["paper", "equal", "matched", "time", "cost", "all"]

PROTOCOLS: Mapping[Protocol, str] = {
    "paper": "our reading: a reading of the paper's protocol, which it does not spell out; "
    "baselines have one AdamW with the network's learning rate for everything, and MQ-VAE's "
    "codebook the paper's 6e-2",
    "equal": "6e-2 for all: the other reading; the codebook of every method has the paper's "
    "learning rate of 6e-2",
    "matched": "matched: every method at its own best codebook learning rate, chosen on "
    "validation images early in its run; not the paper's",
    "time": "equal time: matched, and as many training steps as fit into VQ-VAE's time; "
    "not the paper's",
    "cost": "a step: no training; one step of each method, in turns",
    "all": "",
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
        detail: What a reader must know of this value alone, as in "learning rate 2e-2".
    """

    values: tuple[float, ...]
    paper: float | None = None
    ratio: float | None = None
    paper_ratio: float | None = None
    detail: str = ""

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
        steps: How many training steps it made.
        seconds: Of training, mean over the seeds.
        runs: The names of its results, one for each seed.
        seeds: The seeds, in the order of `runs` and of the cells' values.
    """

    method: str
    protocol: Protocol
    cells: Mapping[str, Cell]
    rate: float | None = None
    steps: int = 0
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
        folded: Whether a page shows it when asked to.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    folded: bool = False


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
        points: Whether lines are points, with nothing between them.
    """

    name: str
    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    points: bool = False


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
class Claim:
    """What the paper claims, and what became of it here.

    Attributes:
        section: The section that it is from; empty on that section itself.
        claim: A few words.
        paper: The paper's value.
        here: Ours, by protocol.
        verdict: A few words.
    """

    section: str
    claim: str
    paper: str
    here: Mapping[Protocol, str]
    verdict: str


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
        judged: What holds of it here and what does not, a row each; before the sentences.
    """

    name: str
    title: str
    claim: str = ""
    verdict: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    images: Sequence[Image] = ()
    missing: Sequence[str] = ()
    judged: Sequence[Claim] = ()


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
        claims: What comes first.
        taken: What the paper does not say, and what was taken, by name.
    """

    scale: str
    headline: Sequence[str]
    conditions: Mapping[str, str]
    sections: Sequence[Section]
    commands: Sequence[str] = field(default_factory=tuple)
    name: str = "reproduction"
    title: str = "The paper, reproduced"
    claims: Sequence[Claim] = ()
    taken: Mapping[str, str] = field(default_factory=dict)

"""Progress bars."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mqvae.core.distributed import process_rank
from mqvae.core.rules import Step
from mqvae.data import Images, in_order

T = TypeVar("T")

EVERY = 30.0  # seconds between two lines where there is no terminal


@dataclass
class Progress:
    """A bar with rate, time left and losses; without a terminal, lines.

    The first line is of the first step, then come one every 30 seconds and that of the last step.
    """

    name: str  # what is being trained
    start: int  # steps already done
    total: int  # steps in all
    _: KW_ONLY
    silent: bool = False  # show nothing
    unit: str = "steps"  # what is counted

    def __post_init__(self) -> None:
        self.terminal = sys.stderr.isatty() and not self.silent

    def __enter__(self) -> "Progress":
        self.began = time.perf_counter()
        self.shown = self.began if self.terminal else -math.inf
        if self.terminal:
            self.bar = _bar("rate", "losses")
            self.bar.start()
            self.task = self.bar.add_task(
                self.name, total=self.total, completed=self.start, rate="", losses=""
            )
        return self

    def __exit__(self, *rest: object) -> None:
        if self.terminal:
            self.bar.stop()

    def advance(self, step: int, result: Step | str) -> None:
        """Show that `step` steps are done, and what the last one gave, or words for it."""
        now = time.perf_counter()
        every = 0.2 if self.terminal else EVERY
        if self.silent or (now - self.shown < every and step != self.total):
            return
        self.shown = now
        if self.terminal:
            shown = {"rate": self._rate(step), "losses": _losses(result)}
            self.bar.update(self.task, completed=step, **shown)
            return
        left = (self.total - step) * (now - self.began) / max(1, step - self.start)
        done = f"{self.name}: {step}/{self.total}, {self._rate(step)}, {left:.0f} s left"
        print(f"{done}, {_losses(result)}", file=sys.stderr, flush=True)

    def _rate(self, step: int) -> str:
        took = max(time.perf_counter() - self.began, 1e-9)
        return f"{(step - self.start) / took:.1f} {self.unit}/s"


def watched(parts: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same parts; meanwhile a bar with rate and time left, or a line every 30 seconds."""
    if process_rank():
        yield from parts
        return
    began = shown = time.perf_counter()
    with _bar("rate", transient=True) if sys.stderr.isatty() else nullcontext() as bar:
        task = bar and bar.add_task(what, total=total, rate="")
        for done, part in enumerate(parts, start=1):
            yield part
            took = (now := time.perf_counter()) - began
            if bar is not None:
                bar.update(task, completed=done, rate=f"{done / took:.1f} batches/s")
            elif now - shown >= EVERY:
                shown, left = now, (total - done) * took / done
                print(f"{what}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)


def watched_batches(
    images: Images, batch_size: int, what: str, *, device: str | torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, as `in_order` gives them, watched."""
    batches = in_order(images, batch_size, device=device)
    return watched(batches, -(-len(images) // batch_size), what)


def _bar(*fields: str, transient: bool = False) -> Any:
    """rich's bar on stderr: what, how far, the first field, the time left, other fields."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    first, *others = [TextColumn(f"{{task.fields[{name}]}}") for name in fields]
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        first,
        TimeRemainingColumn(),
        *others,
        console=Console(stderr=True),
        transient=transient,
    )


def _losses(result: Step | str) -> str:
    if isinstance(result, str):
        return result
    return f"task {result.task.item():.2e} commitment {result.commitment.item():.2e}"

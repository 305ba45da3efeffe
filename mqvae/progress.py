"""Progress bars."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from mqvae.core.distributed import process_rank
from mqvae.core.rules import Step
from mqvae.data import Images, in_order

T = TypeVar("T")

EVERY = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """A bar with rate, time left and losses; without a terminal, lines.

    The first line is of the first step, then come one every 30 seconds and that of the last step.

    Args:
        name: What is being trained.
        start: Steps already done.
        total: Steps in all.
        silent: Show nothing.
        unit: What is counted.
    """

    def __init__(
        self, name: str, start: int, total: int, *, silent: bool = False, unit: str = "steps"
    ) -> None:
        self.name = name
        self.start = start
        self.total = total
        self.silent = silent
        self.unit = unit
        self.terminal = sys.stderr.isatty() and not silent

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
        """Show that `step` steps are done.

        Args:
            step: How many.
            result: What the last one gave, or words for it.
        """
        now = time.perf_counter()
        every = 0.2 if self.terminal else EVERY
        if self.silent or (now - self.shown < every and step != self.total):
            return
        self.shown = now
        if self.terminal:
            self.bar.update(
                self.task, completed=step, rate=self._rate(step), losses=_losses(result)
            )
            return
        left = (self.total - step) * (now - self.began) / max(1, step - self.start)
        print(
            f"{self.name}: {step}/{self.total}, {self._rate(step)}, {left:.0f} s left, "
            f"{_losses(result)}",
            file=sys.stderr,
            flush=True,
        )

    def _rate(self, step: int) -> str:
        took = max(time.perf_counter() - self.began, 1e-9)
        return f"{(step - self.start) / took:.1f} {self.unit}/s"


def watched(parts: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same parts; meanwhile a bar with rate and time left, or a line every 30 seconds.

    Args:
        parts: What is worked on, such as batches.
        total: How many there are.
        what: What is being done.
    """
    if process_rank():
        yield from parts
        return
    began = shown = time.perf_counter()
    if not sys.stderr.isatty():
        for done, part in enumerate(parts, start=1):
            yield part
            if (now := time.perf_counter()) - shown >= EVERY:
                shown, left = now, (total - done) * (now - began) / done
                print(f"{what}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
        return
    with _bar("rate", transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")
        for done, part in enumerate(parts, start=1):
            yield part
            rate = done / (time.perf_counter() - began)
            bar.update(task, completed=done, rate=f"{rate:.1f} batches/s")


def watched_batches(
    images: Images,
    batch_size: int,
    what: str,
    *,
    device: str | torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, as `in_order` gives them, watched."""
    batches = in_order(images, batch_size, device=device, rank=rank, world_size=world_size)
    return watched(batches, -(-len(images) // (batch_size * world_size)), what)


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

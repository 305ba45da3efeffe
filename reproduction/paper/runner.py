"""Work is done, what is missing of it: one piece after the other, or several in processes."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from reproduction.paper.results import Asked, Results, file_name
from reproduction.paper.work import Place


class Work(Asked, Protocol):
    """A piece of work."""

    @property
    def words(self) -> str:
        """What it is, for a person."""

    @property
    def amount(self) -> float:
        """How long it takes, beside others."""

    @property
    def alone(self) -> bool:
        """Whether nothing else may run beside it: it measures times."""

    def make(self, place: Place) -> dict[str, Any]:
        """Do it; returns the result."""


class WorkFailed(Exception):
    """A piece of work ended otherwise than in a result."""


Wants = Callable[[Results], Sequence[Work]]
"""All work that is wanted, as far as it can be told from the results that are there."""


def carry_out(wants: Wants, results: Results, place: Place, *, jobs: int = 1) -> None:
    """Do what is missing, until nothing more is wanted.

    Args:
        wants: What is wanted; asked again after each round, since choices follow from results.
        results: What is there, and where results go.
        place: Where the work is done.
        jobs: Pieces at a time, each on one thread; a single one has all of the machine.

    Raises:
        KeyboardInterrupt: after a signal, when what was going on has been saved.
        WorkFailed: if a piece fails; names the file that says why.
    """
    clock = _Clock()
    while lacking := missing(wants, results):
        clock.expect(lacking)
        together = [work for work in lacking if jobs > 1 and not work.alone]
        if together:
            _in_processes(together, results, place, jobs, clock)
        for work in lacking:
            if work not in together:
                clock.begin(work)
                results.put(work, work.make(place))
                clock.end(work)


def missing(wants: Wants, results: Results) -> list[Work]:
    """What is wanted, has no result, and can be done now.

    No two of it train the same run: what is made of one waits for it, or for what comes before.
    """
    found = unfinished(wants, results)
    for name, work in list(found.items()):
        needs = getattr(work, "needs", None)
        if needs is not None and results.get(needs) is None:
            del found[name]
    trains = {name: work for name, work in found.items() if _trained(work) == name}
    for work in found.values():
        trains.setdefault(_trained(work), work)
    return [work for work in found.values() if trains[_trained(work)] is work]


def unfinished(wants: Wants, results: Results) -> dict[str, Work]:
    """What is wanted and has no result, by name; of two wishes for one, that which wants more."""
    found: dict[str, Work] = {}
    for work in wants(results):
        name = file_name(work)
        if not results.complete(work) and (name not in found or getattr(work, "final", False)):
            found[name] = work
    return found


def _trained(work: Work) -> str:
    """The name of the run that a piece of work trains, if it trains one."""
    return file_name(getattr(work, "run", work))


def _in_processes(
    todo: Sequence[Work], results: Results, place: Place, jobs: int, clock: "_Clock"
) -> None:
    place.runs.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    waiting = list(todo)
    running: dict[Any, tuple[BaseProcess, Work]] = {}
    failed: Work | None = None
    stopping = False
    with _noting_signals() as asked, _one_thread():
        while waiting or running:
            if (asked or failed) and not stopping:
                stopping = True
                waiting.clear()
                for process, _ in running.values():
                    process.terminate()  # a training writes a checkpoint first
            while waiting and len(running) < jobs:
                work = waiting.pop(0)
                arguments = (work, place)
                process = context.Process(target=_process, args=arguments)
                process.start()
                running[process.sentinel] = (process, work)
                clock.begin(work)
            for sentinel in wait(list(running), timeout=1.0):
                process, work = running.pop(sentinel)
                process.join()
                if process.exitcode == 0:
                    results.reload()
                    clock.end(work)
                elif not stopping:
                    failed = work
    if failed is not None:
        log = place.runs / f"{file_name(failed)}.log"
        raise WorkFailed(f"{failed.words} failed; {log} says why. The same command goes on.")
    if asked:
        raise KeyboardInterrupt


def _process(work: Work, place: Place) -> None:
    """One piece of work in a process of its own, whose words go to a file."""
    os.setpgrp()  # Ctrl-C reaches the parent alone, which asks politely
    with (place.runs / f"{file_name(work)}.log").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from mqvae.training import Interrupted

    try:
        Results(place.results).put(work, work.make(place))
    except (Interrupted, KeyboardInterrupt):
        sys.exit(3)


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM are noted and nothing else."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, _: asked.append(number)) for n in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that are started inside work on one thread each."""
    before: Mapping[str, str] = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Clock:
    """Says which piece of how many, and how long all of them take."""

    def __init__(self) -> None:
        self.begun = self.done = 0
        self.left: list[Work] = []
        self.start = time.monotonic()
        self.amount = 0.0

    def expect(self, missing: Sequence[Work]) -> None:
        self.left = list(missing)

    def begin(self, work: Work) -> None:
        self.begun += 1
        _say(f"[{self.begun} of {self.done + len(self.left)}] {work.words}")

    def end(self, work: Work) -> None:
        self.left.remove(work)
        self.done += 1
        self.amount += work.amount
        per_amount = (time.monotonic() - self.start) / max(self.amount, 1e-9)
        left = _duration(per_amount * sum(each.amount for each in self.left))
        _say(f"      done: {work.words}" + (f"; about {left} left" if self.left else ""))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"

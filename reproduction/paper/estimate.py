"""How long the missing runs take: their training steps counted, a step of each task timed here."""

from collections.abc import Iterator, Sequence
from typing import Any

from reproduction.paper.further import MEASURE, Beginning, Cost
from reproduction.paper.reproduce import published
from reproduction.paper.results import Results
from reproduction.paper.runner import Wants, Work, unfinished
from reproduction.paper.scales import Scale, load_scale
from reproduction.paper.work import Place, Run

ROUNDS = 3  # steps that are timed


def estimate(wants: Wants, results: Results, scale: Scale, place: Place) -> Iterator[str]:
    """Lines for a person; trains nothing.

    A run's steps count as many times as a step of its method costs beside VQ-VAE's, measured at
    the scale `cpu`. What follows from results that are not there yet is not counted: matched
    learning rates, and rows at equal time.

    Args:
        wants: What is wanted.
        results: What is there.
        scale: At which.
        place: Where it would be trained.
    """
    todo = list(unfinished(wants, results).values())
    hours = 0.0
    for task in MEASURE:
        runs = [run for run in _runs(todo) if run.task == task and run.scale == scale.name]
        if not runs:
            continue
        steps = sum(run.steps for run in runs)
        weighted = sum(run.steps * cost for run, cost in zip(runs, _costs(runs), strict=True))
        seconds = _seconds(runs[0], task, place)
        hours += weighted * seconds / 3600
        yield (
            f"{task}: {len(runs):,} runs of {steps:,} steps, worth {weighted:,.0f} of "
            f"{MEASURE[task]}'s, which take {1000 * seconds:,.0f} ms here: "
            f"{weighted * seconds / 3600:,.1f} hours"
        )
    others = sum(not isinstance(work, Run | Beginning) for work in todo)
    yield (
        f"together {hours:,.1f} hours, without {others} other measurements, and without what "
        "follows from these results (matched learning rates, rows at equal time)"
    )


def _runs(todo: Sequence[Work]) -> Iterator[Run]:
    for work in todo:
        if isinstance(work, Run):
            yield work
        elif isinstance(work, Beginning):
            yield Run(**{**vars(work.run), "steps": work.steps})


def _costs(runs: Sequence[Run]) -> Iterator[float]:
    """What a step of each run costs; 1 where it was not measured."""
    known = Results(published("cpu"))
    for run in runs:
        found: dict[str, Any] = known.get(Cost("cpu", run.task, run.method)) or {}
        yield float(found.get("ratio", 1.0))


def _seconds(run: Run, task: str, place: Place) -> float:
    """A step of the task's measure on this device, the median of some."""
    from benchmarks.costs import settings_costs

    measure = MEASURE[task]
    steps = load_scale(run.scale).steps(task)
    settings = Run(run.scale, task, run.dataset, measure, None, steps, 0).settings()
    (row,) = settings_costs(
        "estimate", {measure: place.at(settings)}, rounds=ROUNDS, conditions={}
    ).rows
    return float(row["ms"] or 0) / 1000

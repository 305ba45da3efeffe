"""What one step of a run costs, relative to that of another: settings beside each other."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmarks.table import Cell, Table
from benchmarks.timing import in_turns
from mqvae.config import Settings
from mqvae.core.passes import RandomState
from mqvae.errors import MqvaeError
from mqvae.runs.images import Splits
from mqvae.training.assembly import assemble, initialize_codebook
from mqvae.training.images import load_splits
from mqvae.training.processes import Processes
from mqvae.training.start import set_training, start_from


def settings_costs(
    name: str, methods: Mapping[str, Settings], *, rounds: int, conditions: Mapping[str, Cell]
) -> Table:
    """Time one step of every run on its first batch, taking turns; the first is the measure.

    A step is what a batch changes: network, codebook, the task's own networks and the average of
    the weights. Schedules, logs and checkpoints are none of it, and no folder is written.

    All networks and optimizers are in memory at once, 12 to 16 bytes a parameter; the graph of one
    step at a time is. At the paper's sizes, the VQ-VAE's are 0.1 GB a method and the classifier's
    0.2. The global random state is what it was.

    Args:
        name: Of the table.
        methods: Settings by label, all of the same images and batch size on the same device.
        rounds: Turns.
        conditions: Sizes, for the table.

    Returns:
        A row for each method with the columns `step`, `ms`, `ratio` and its quartiles.

    Raises:
        ValueError: if their steps cannot be compared, or a run could not be begun.
    """
    measure, first = next(iter(methods.items()))
    for label, settings in methods.items():
        if settings.trainer.devices != 1:
            raise MqvaeError(
                f"{label}: steps are timed in one process, got trainer.devices "
                f"{settings.trainer.devices}; set it to 1."
            )
        for what, one, other in (
            ("data", settings.data, first.data),
            ("trainer.accelerator", settings.trainer.accelerator, first.trainer.accelerator),
        ):
            if one != other:
                raise MqvaeError(
                    f"steps on the same batch and device are compared: {what} of {label} is {one}, "
                    f"that of {measure} {other}; make them the same."
                )
    device = Processes(first.trainer).device
    with RandomState(device).replayed():
        splits, found = load_splits(first)
        steps = {
            label: first_step(replace(settings, data=found.data), splits)
            for label, settings in methods.items()
        }
        rows = in_turns(steps, rounds=rounds, device=device.type)
    title = f"One step of a run, relative to {measure} on the same images"
    return Table(name, title, {**conditions, "rounds": rounds}, rows)


def first_step(
    settings: Settings, splits: Splits, *, initialize: bool = True
) -> Callable[[], None]:
    """The step that a run begins with, to be made as often as wanted.

    Args:
        settings: Of the run.
        splits: Its images.
        initialize: Whether the codebook is that of k-means, or drawn at random.
    """
    processes = Processes(settings.trainer)
    parts, settings = assemble(settings, splits, processes)
    if settings.start is not None:
        start_from(settings.start, parts.network)
    if initialize:
        initialize_codebook(parts, splits.train, settings)
    set_training(parts.network, settings.freeze)
    parts.task.train()
    x, y = parts.batches.next()
    above = parts.next_above()

    def step() -> None:
        with processes.autocast():
            parts.train(x, y, above, in_parts=settings.trainer.micro_batches)

    return step

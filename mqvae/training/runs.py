"""Runs: begun, resumed, or tried."""

from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from mqvae.config import Settings, Trainer
from mqvae.core.distributed import agree, is_first
from mqvae.errors import MqvaeError
from mqvae.runs import Run
from mqvae.runs.images import Splits
from mqvae.runs.known import Changes, Known, check
from mqvae.training.assembly import assemble, initialize_codebook
from mqvae.training.images import load_splits
from mqvae.training.loggers import chosen
from mqvae.training.loop import Training
from mqvae.training.memory import noticing_shortage
from mqvae.training.processes import Processes
from mqvae.training.start import start_from

FAST_STEPS = 2  # of trainer.fast_dev_run


def begin(settings: Settings, out: str | Path, *, overwrite: bool = False) -> Training:
    """A run from its first step; `out` is made, with a first checkpoint in it.

    With `overwrite` it takes the place of a run at `out`.

    Raises:
        ValueError: if parts do not fit each other, the images or this machine, or `out` is in use.
        ExtraMissing: if a logger that is asked for is not installed.
    """
    chosen(settings.trainer)  # what is missing is said before anything is made
    if is_first():
        Run.require_free(out, overwrite=overwrite)
    if settings.trainer.fast_dev_run:
        settings = replace(settings, steps=min(settings.steps, FAST_STEPS))
    processes = Processes(settings.trainer)
    with processes.noticing_losses():
        splits, settings = load_splits(settings)
        parts, settings = assemble(settings, splits, processes)
        if settings.start is not None:
            start_from(settings.start, parts.network)
        # A network that does not follow the seed is another in each process.
        agree([parts.network, parts.task, parts.average])
        made = Run.create(out, settings.config(), overwrite=overwrite) if processes.first else None
        with made.unlocked_if_raised() if made else nullcontext():
            processes.wait()
            with noticing_shortage(settings, processes.count, lambda: "before the first step."):
                initialize_codebook(parts, splits.train, settings)
            if processes.rank:  # dropout and the like are each process's own
                torch.manual_seed(settings.seed + 2**32 * processes.rank)
            training = Training(made or Run(out), settings, splits, parts, processes)
            if processes.first:
                training.known = Known.of(splits.by_name(), splits.bounds)
                training.known.write(training.run)
            training.save("last")
    return training


def resume(
    run: Run,
    *,
    trainer: Trainer | None = None,
    steps: int | None = None,
    accept_changed_data: bool = False,
) -> Training:
    """A run from its last checkpoint, bit for bit as if it had never stopped.

    Args:
        run: The run.
        trainer: Other processes than those it was begun with.
        steps: Number of training steps in all (default: the run's own). With another number the
            learning rates follow warm-up and cosine over the new one from here on, and
            config.yaml says so; quantization sets in when it would have.
        accept_changed_data: Train on with the images that are there, though they are not those
            that the run had; the run then says so.

    Raises:
        ValueError: if its settings or its checkpoints are damaged or do not fit each other, more
            than `steps` steps are done, its images are others and not accepted, or another process
            trains it.
    """
    if is_first():
        run.lock()
    with run.unlocked_if_raised():
        settings = Settings.of_run(run)
        before = settings.steps
        if steps is not None:
            done = run.load(training=False).state["step"]
            if steps < max(done, 1):
                raise MqvaeError(
                    f"{run.folder} has made {done:,} training steps, and steps is the new number "
                    f"in all: expected {max(done, 1):,} or more, got {steps:,}."
                )
            settings = replace(settings, steps=steps)
        processes = Processes(trainer or settings.trainer)
        with processes.noticing_losses():
            known = Known.of_run(run)
            splits, settings = load_splits(settings, known)
            now, changes = _compared(run, known, splits, processes, accept=accept_changed_data)
            parts, settings = assemble(settings, splits, processes)
            if processes.rank:
                torch.manual_seed(settings.seed + 2**32 * processes.rank)
            training = Training(run, settings, splits, parts, processes)
            training.known, training.changes = known or now, changes
            others = accept_changed_data or known is None
            training.restore("last", other_images=others)
            if known is not None and changes:
                accepted = (*known.accepted, {"step": training.step, **changes})
                training.known = replace(now, accepted=accepted)
            training.unrecorded = known is None or bool(changes)
            if settings.steps != before:
                if processes.first:
                    run.write_config({**run.config, "steps": settings.steps})
                training.save("last")
    return training


def _compared(
    run: Run, known: Known | None, splits: Splits, processes: Processes, *, accept: bool
) -> tuple[Known, Changes]:
    """The images that are there now, and what is different.

    The first process looks; all refuse others that are not accepted.
    """
    now, changes, refused = Known(), dict[str, str](), None
    if processes.first:
        now = Known.of(splits.by_name(), splits.bounds)
        try:
            changes = dict(check(run.folder, known, now.splits, accept=accept))
        except MqvaeError as error:
            refused = error
    if processes.largest(int(refused is not None)):
        raise refused or MqvaeError("the images are not those that the run had.")
    return now, changes


def tried(settings: Iterable[Settings]) -> Iterator[Settings]:
    """Settings that `begin` takes, one after another: the parts are put together, nothing written.

    Of settings in succession with the same images these are read once.

    Raises:
        ValueError: if parts do not fit each other, the images or this machine.
        ExtraMissing: if a logger that is asked for is not installed.
    """
    of, splits, data = None, None, None
    for each in settings:
        chosen(each.trainer)
        processes = Processes(each.trainer)
        images = (each.data, each.seed, each.trainer.fast_dev_run)
        if splits is None or data is None or images != of:
            splits, resolved = load_splits(each)
            of, data = images, resolved.data
        parts, _ = assemble(replace(each, data=data), splits, processes)
        with closing(parts):
            if each.start is not None:
                start_from(each.start, parts.network)
        yield each

"""The loop: batches in, a run folder out."""

import errno
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mqvae.config import Settings, Trainer
from mqvae.core.distributed import agree, from_first_process, sum_across_processes
from mqvae.core.rules import Step
from mqvae.data import Batches, fitting, in_order
from mqvae.errors import MqvaeError, NotFiniteEmbeddings
from mqvae.metrics import evaluate, evaluating
from mqvae.provenance import code
from mqvae.runs import Run, read_json, write_json
from mqvae.training.assembly import Parts, assemble, initialize_codebook
from mqvae.training.checkpoints import Before, capture, restore
from mqvae.training.checkpoints import not_finite as of_checkpoint
from mqvae.training.finite import Finite
from mqvae.training.images import Splits, load_splits
from mqvae.training.known import Changes, Known, check
from mqvae.training.loggers import chosen
from mqvae.training.logs import Log
from mqvae.training.memory import noticing_shortage
from mqvae.training.processes import Processes, is_first
from mqvae.training.results import device_name, not_finite, write_evaluation
from mqvae.training.schedule import Onset
from mqvae.training.start import set_training, start_from
from mqvae.training.stopping import KEPT, Interrupted, NotFinite, Signals, TrainingFailed

VALIDATION_BATCH = 250
FAST_STEPS = 2  # of trainer.fast_dev_run
AGREE_EVERY = 1.0  # seconds between two looks of all processes at whether they are asked to stop
MOST_SKIPPED = 10  # steps in a row; more are no accident
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def begin(settings: Settings, out: str | Path, *, overwrite: bool = False) -> "Training":
    """A run from its first step; `out` is made, with a first checkpoint in it.

    Args:
        settings: What to train, and how.
        out: The run folder to make.
        overwrite: Replace a run at `out`.

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
) -> "Training":
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
            training.restore("last", steps_before=before, other_images=others)
            if known is not None and changes:
                training.known = known.accepting(now, changes, training.step)
            training.unrecorded = known is None or bool(changes)
            if settings.steps != before:
                if processes.first:
                    run.write_config({**run.config, "steps": settings.steps})
                training.save("last")
    return training


def _compared(
    run: Run, known: Known | None, splits: Splits, processes: Processes, *, accept: bool
) -> tuple[Known, Changes]:
    """The images that are there now, and what is different; the first process looks.

    Raises:
        ValueError: in all processes, if they are others and not accepted.
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


def _end_epoch(place: dict[str, int] | None, batches: Batches | None) -> None:
    """Move a place beyond the end of its epoch, of fewer images than before, to the next one."""
    if place is not None and batches is not None and place["position"] >= batches.batches_per_epoch:
        place.update(epoch=place["epoch"] + 1, position=0)


class Training:
    """A run in training. `begin` and `resume` make one.

    Attributes:
        run: The run's folder.
        settings: What is trained, and how; all of it resolved.
        splits: The images.
        parts: Network, task, update rule and what steps them.
        processes: The processes that train together.
        step: Updates made.
        seconds: Time they took.
        waited: What of it was spent waiting for data.
        best: The lowest validation loss of a checkpoint.
        known: Which images the run has; empty in all processes but the first.
        changes: What is different from the images that the run had, and was accepted.
        unrecorded: The run's files do not know its images as they are now yet; `fit` writes them.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        splits: Splits,
        parts: Parts,
        processes: Processes,
    ) -> None:
        self.run = run
        self.settings = settings
        self.splits = splits
        self.parts = parts
        self.processes = processes
        self.known = Known()
        code()  # asked now: the tree may be another when training ends
        self.changes: Changes = {}
        self.unrecorded = False
        options, steps = settings.trainer, settings.steps
        self.log_every = options.log_every or max(1, min(100, steps // 50))
        self.checkpoint_every = options.checkpoint_every or max(1, min(1000, steps // 5))
        self._finite = Finite(parts, processes)
        self._skips = options.on_nonfinite == "skip"
        self.log = Log(parts, processes, self.log_every, chosen(options), skips=self._skips)
        warm = settings.warm_start
        self._onset = Onset.of(steps, warm.unquantized, warm.gradual)
        self.step = 0
        self.seconds = 0.0
        self.waited = 0.0
        self._last_row = (0.0, 0.0)  # seconds and waited, then
        self.best = math.inf
        self._last_validation: float | None = None
        self._unsaid: float | None = None  # a validation loss that no row has yet
        self.step_seconds: deque[float] = deque(maxlen=10_000)
        self._agreed = (0, 0.0)  # the step, and the time, of the last agreement of all processes
        self._agrees_at = 1

    def fit(self, *, after_step: Callable[["Training"], None] | None = None) -> dict[str, Any]:
        """Train to the last step, evaluate, and write summary.json; returns its contents.

        What ends it otherwise, and at which step, is in failure.json until it resumes. Meanwhile no
        other process can train in the folder.

        Args:
            after_step: Called after every step, whose time it does not count for.

        Raises:
            Interrupted: after SIGINT or SIGTERM, when a checkpoint is written.
            NotFinite: if a loss is not finite; the last good checkpoint stays.
            OutOfMemory: if a step does not fit in memory; the last good checkpoint stays.
            ProcessLost: if another of the processes has ended.
            ValueError: if another process trains in the folder, or nothing can be written to it.
        """
        if self.processes.first:
            self.run.lock()
        set_training(self.parts.network, self.settings.freeze)
        self.parts.task.train()
        failed = self.run.folder / "failure.json"
        try:
            if self.processes.first:
                failed.unlink(missing_ok=True)
            with (
                self._noticing_full_disks(),
                self.processes.noticing_losses(),
                noticing_shortage(self.settings, self.processes.count, self._after_which),
            ):
                self._record_images()
                self._train(after_step)
                return self._finish()
        except TrainingFailed as failure:
            if self.processes.first:
                content = {"step": self.step, "cause": failure.cause, "reason": str(failure)}
                write_json(failed, content)
            raise
        finally:
            self.run.unlock()

    @contextmanager
    def _noticing_full_disks(self) -> Iterator[None]:
        """What the system says of the run's folder is said with what is kept, and what to do."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise MqvaeError(
                f"{self.run.folder} cannot be written to after step {self.step}: "
                f"{os.strerror(error.errno)}. {self._kept()} When there is room, and leave to "
                f"write, resume by `mqvae train --resume {self.run.folder}`."
            ) from error

    def _record_images(self) -> None:
        """The last checkpoint and images.npz are of the images that are trained on from here."""
        if self.processes.largest(int(self.unrecorded)):
            self.save("last")
            if self.processes.first:
                self.known.write(self.run)
        self.unrecorded = False

    def _train(self, after_step: Callable[["Training"], None] | None) -> None:
        from mqvae.progress import Progress

        with ExitStack() as inside:
            asked = inside.enter_context(Signals())
            self.log.open(self.run, self.step)
            inside.enter_context(closing(self.log))
            inside.enter_context(closing(self.parts))
            show = Progress(
                self.settings.name, self.step, self.settings.steps, silent=not self.processes.first
            )
            inside.enter_context(show)
            inside.enter_context(self.processes.autocast())
            while self.step < self.settings.steps:
                result = self._update()
                show.advance(self.step, result)
                if after_step is not None:
                    after_step(self)
                if self._stops_here(asked):
                    break
            number = self.processes.largest(asked.number or 0)
            if number:
                self.save("last")
                self.processes.wait()
                raise Interrupted(self.step, number)

    def _update(self) -> Step:
        """One batch, and all that is due after it."""
        parts, steps = self.parts, self.settings.steps
        cpu = self.processes.device.type == "cpu"
        began = time.perf_counter()
        x, y = parts.batches.next()
        above = parts.next_above()
        self.waited += time.perf_counter() - began
        parts.network.quantizer.unquantized = self._onset.unquantized(self.step)
        before = Before(parts) if self._skips else None
        options = self.settings.trainer
        how: dict[str, Any] = {
            "in_parts": options.parts,
            "quantized": self.step >= self._onset.first,
        }
        for _ in range(options.accumulate_grad_batches - 1):
            parts.accumulate(x, y, **how)
            asked = time.perf_counter()
            x, y = parts.batches.next()
            self.waited += time.perf_counter() - asked
        result, logged = parts.train(x, y, above, **how)
        self.step += 1
        if self.step == self._onset.first:
            with torch.autocast(self.processes.device.type, enabled=False):
                initialize_codebook(parts, self.splits.train, self.settings)
        at_checkpoint = self.step % self.checkpoint_every == 0 or self.step == steps
        at_log = self.step % self.log_every == 0 or self.step == steps
        self._finite.look(self.step, result, logged)
        skipped = False
        if before is not None:
            skipped = self._skipped(before)
        elif at_log or at_checkpoint or (cpu and self.processes.count == 1):
            # On a GPU every look at a value waits for it, and of several processes for all.
            self._require_finite()
        if not skipped:
            self.log.count(result)
        if at_log and not cpu:
            torch.accelerator.synchronize()
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self.step_seconds.append(elapsed)
        validation = None
        if at_checkpoint:
            self._share_statistics()
            validation = self._unsaid = self._last_validation = self.validation_loss()
        if at_log:
            took, waited = self.seconds - self._last_row[0], self.waited - self._last_row[1]
            self._last_row = (self.seconds, self.waited)
            losses = self.log.losses(result)
            self.log.row(
                self.step, self.seconds, took, waited, losses, result, logged, self._unsaid
            )
            self._unsaid = None
            self._note_skipped()
        for schedule in parts.schedules.values():
            schedule.step()
        if at_checkpoint:
            self.checkpoint(validation)
        return result

    def _stops_here(self, asked: Signals) -> bool:
        """Whether a signal has come; several processes agree on it every second or two."""
        if self.step < self._agrees_at:
            return False
        if self.processes.count > 1:
            now, (then, began) = time.monotonic(), self._agreed
            per_step = (now - began) / (self.step - then) if then else AGREE_EVERY
            milliseconds = self.processes.largest(1 + int(1000 * per_step))
            self._agreed = self.step, now
            steps = int(1000 * AGREE_EVERY) // milliseconds
            self._agrees_at = self.step + max(1, min(self.log_every, steps))
        return self.processes.largest(asked.number or 0) > 0

    # -- what must be finite ---------------------------------------------------------------------

    def _require_finite(self) -> None:
        if found := self._finite.found():
            raise self._not_finite(*found)

    def _skipped(self, before: Before) -> bool:
        """Take a step back in which a number was not finite."""
        found = self._finite.found()
        if found is None:
            self.log.skipped_in_a_row = 0
            return False
        what, step = found
        before.restore()
        self._finite.forget()
        self.log.note_skipped_step(what, step)
        if self.log.skipped_in_a_row >= MOST_SKIPPED:
            raise self._not_finite(f"{MOST_SKIPPED} steps in a row were skipped: {what}", step)
        return True

    def _not_finite(self, what: str, step: int | None = None) -> NotFinite:
        return NotFinite(
            f"{what} at step {step or self.step}. {self._kept()} Try a lower optimizer.network_lr "
            "or optimizer.codebook_lr, or a smaller update.xi."
        )

    def _after_which(self) -> str:
        return f"after step {self.step}. {self._kept()}"

    def _kept(self) -> str:
        return f"{KEPT} {self.run.folder / 'checkpoints' / 'last'}."

    # -- checkpoints -----------------------------------------------------------------------------

    def checkpoint(self, validation: float | None) -> None:
        """Save, and keep the weights apart if they are the best on the validation images."""
        better = validation is not None and validation < self.best
        if validation is not None and better:
            self.best = validation
        # The best first: killed between the two, the run finds it again.
        self.save(*["best"] * better, "last")

    def _note_skipped(self) -> None:
        """All processes know all images that cannot be read, where they are skipped."""
        if self.settings.data.skips:
            names = [*self.splits.train.skipped, *self.splits.test.skipped]
            self.log.note_skipped(names, self.step)

    def _share_statistics(self) -> None:
        """All processes measure what is saved: the first one's batch statistics."""
        if self.processes.count > 1:
            # Not a set: all processes must take them in the same order.
            for network in dict.fromkeys((self.parts.network, self.parts.measured)):
                for buffer in network.buffers():
                    buffer.copy_(from_first_process(buffer))

    def validation_loss(self) -> float | None:
        """The task loss on the images held out; None where there are none."""
        images, parts = self.splits.validation, self.parts
        if not len(images):
            return None
        sums = torch.zeros(2, dtype=torch.float64)
        network = parts.measured
        turns = {"rank": self.processes.rank, "world_size": self.processes.count}
        with evaluating(network, parts.task), torch.no_grad():
            size = fitting(VALIDATION_BATCH, images.shape)
            for x, y in in_order(images, size, device=self.processes.device, **turns):
                try:
                    loss = float(parts.task(network(x).output.float(), parts.task.target(x, y)))
                except NotFiniteEmbeddings:  # all processes are told, below
                    loss = math.nan
                sums += torch.tensor([loss * len(x), len(x)], dtype=torch.float64)
        total, number = sum_across_processes(sums).tolist()
        if not math.isfinite(total):
            raise self._not_finite(f"the validation loss is {total / number}")
        return total / number

    def save(self, *names: str) -> None:
        """Write checkpoints, of these names: "last", and "best", which is of weights alone.

        Raises:
            NotFinite: if a number in it is not finite; the ones before stay.
            ValueError: if it cannot be written; the ones before stay.
        """
        checkpoint = capture(
            self.parts,
            self.log,
            self.processes,
            {
                "step": self.step,
                "steps": self.settings.steps,
                "onset": [self._onset.first, self._onset.whole],
                "seconds": self.seconds,
                "waited": self.waited,
                "best": None if math.isinf(self.best) else self.best,
                "unsaid": self._unsaid,
                "validation": self._last_validation,
                **self.known.state(),
            },
        )
        if bad := of_checkpoint(checkpoint):
            raise self._not_finite(f"{bad} is not finite")
        if self.processes.first:
            for name in names:
                self.run.save(name, checkpoint if name == "last" else checkpoint.weights_alone)

    def restore(
        self, name: str, *, steps_before: int | None = None, other_images: bool = False
    ) -> None:
        """Go on from a checkpoint of the run.

        Args:
            name: Which.
            steps_before: Training steps in all by the run's config.yaml, for a checkpoint that
                does not say over how many it was trained (default: as many as now).
            other_images: The images may be fewer: an epoch that would be over by now is.

        Raises:
            ValueError: if it is missing, damaged, or does not fit.
        """
        checkpoint = self.run.load(name)
        before = checkpoint.state.get("steps", steps_before or self.settings.steps)
        if other_images:
            for batches in ("batches", "above"):
                _end_epoch(checkpoint.state.get(batches), getattr(self.parts, batches))
        stretched = before != self.settings.steps
        restore(checkpoint, self.run, self.parts, self.log, self.processes, stretched=stretched)
        warm = self.settings.warm_start
        onset = checkpoint.state.get("onset")
        self._onset = Onset(*onset) if onset else Onset.of(before, warm.unquantized, warm.gradual)
        self.step = checkpoint.state["step"]
        self.seconds = checkpoint.state["seconds"]
        self.waited = checkpoint.state.get("waited", 0.0)
        self._last_row = (self.seconds, self.waited)
        best = checkpoint.state["best"]
        self.best = math.inf if best is None else best
        self._unsaid = checkpoint.state.get("unsaid")
        self._last_validation = checkpoint.state.get("validation")

    # -- the end ---------------------------------------------------------------------------------

    def _finish(self) -> dict[str, Any]:
        parts, settings, device = self.parts, self.settings, self.processes.device
        result = evaluate(
            parts.measured, parts.task, self.splits.test, device=device, together=True
        )
        self._note_skipped()
        for sentence in not_finite(result):
            self.log.warn(sentence)
        further: dict[str, Any] = {
            "name": settings.name,
            "method": parts.update.rule.method,
            "rule": type(parts.update.rule).__name__,
            "dataset": self.splits.train.name,
            "source": self.splits.train.source,
            "steps": self.step,
            "wall_seconds": self.seconds,
            "seconds_per_step": statistics.median(self.step_seconds or [self.seconds / self.step]),
            "data_wait_share": self.waited / self.seconds,
            "skipped_images": len(self.log.skipped),
            "skipped_steps": self.log.skipped_steps,
            "validation": self._last_validation,
            "parameters": sum(p.numel() for p in parts.network.parameters()),
            "seed": settings.seed,
            "device": device_name(device, self.processes.count),
            "warnings": self.log.warnings,
            **self.known.summary(),
        }
        if not self.processes.first:
            return {**result.metrics, **further}
        path = write_evaluation(
            self.run,
            result,
            self.known.splits["test"],
            self.splits.test.source,
            checkpoint="last",
            step=self.step,
            weights=self.run.load("last", training=False, weights=False).digest,
            device=further["device"],
        )
        evaluation = read_json(path)
        content = {
            **result.metrics,
            **further,
            "evaluation": path.relative_to(self.run.folder).as_posix(),
            "figures": {key: evaluation["figures"][key] for key in result.metrics},
            **{key: evaluation[key] for key in ("protocol", "codes", "pictures", "versions")},
        }
        write_json(self.run.folder / "summary.json", content)
        return content

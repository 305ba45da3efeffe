"""The training loop."""

import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch

from mqvae.core.rules import Step
from mqvae.files import write_json
from mqvae.metrics import evaluate
from mqvae.progress import Progress
from mqvae.runs.images import Found
from mqvae.training.assembly import initialize_codebook
from mqvae.training.checkpoints import Before
from mqvae.training.memory import noticing_full_disks, noticing_shortage
from mqvae.training.results import device_name, not_finite, write_summary
from mqvae.training.start import set_training
from mqvae.training.state import TrainingState
from mqvae.training.stopping import Interrupted, Signals, TrainingFailed
from mqvae.training.validation import share_statistics, validation_loss

MOST_SKIPPED = 10  # steps in a row; more are no accident


class Training(TrainingState):
    """A run in training. `begin` and `resume` make one."""

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
                noticing_full_disks(self.run.folder, self._after_which),
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

    def _record_images(self) -> None:
        """The last checkpoint and images.npz are of the images that are trained on from here."""
        if self.processes.largest(int(self.unrecorded)):
            self.save("last")
            if self.processes.first:
                self.known.write(self.run)
        self.unrecorded = False

    def _train(self, after_step: Callable[["Training"], None] | None) -> None:
        settings, silent = self.settings, not self.processes.first
        self.log.open(self.run, self.step)
        with (
            Signals() as asked,
            closing(self.log),
            closing(self.parts),
            Progress(settings.name, self.step, settings.steps, silent=silent) as show,
            self.processes.autocast(),
        ):
            while self.step < self.settings.steps:
                result = self._update()
                show.advance(self.step, result)
                if after_step is not None:
                    after_step(self)
                if self._agreement.stops(self.step, asked):
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
        options, quantized = self.settings.trainer, self.step >= self._onset.first
        how: dict[str, Any] = {"in_parts": options.micro_batches, "quantized": quantized}
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
            self._finite.require()
        if not skipped:
            self.log.counts.add(result.codes)
        if at_log and not cpu:
            torch.accelerator.synchronize()
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self.step_seconds.append(elapsed)
        validation = None
        if at_checkpoint:
            share_statistics(parts, self.processes)
            validation = self.validation_loss()
            self._unsaid = self._last_validation = validation
        if at_log:
            took, waited = self.seconds - self._last_row[0], self.waited - self._last_row[1]
            self._last_row = (self.seconds, self.waited)
            self.log.row(self.step, self.seconds, took, waited, result, logged, self._unsaid)
            self._unsaid = None
            self._note_skipped()
        for schedule in parts.schedules.values():
            schedule.step()
        if at_checkpoint:
            self.checkpoint(validation)
        return result

    def validation_loss(self) -> float | None:
        """The task loss on the validation images; None where there are none."""
        loss = validation_loss(self.parts, self.splits.validation, self.processes)
        if loss is not None and not math.isfinite(loss):
            raise self._finite.error(f"the validation loss is {loss}", self.step)
        return loss

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
            raise self._finite.error(f"{MOST_SKIPPED} steps in a row were skipped: {what}", step)
        return True

    def _note_skipped(self) -> None:
        """All processes know all images that cannot be read, where they are skipped."""
        if self.settings.data.skips:
            names = [*self.splits.train.skipped, *self.splits.test.skipped]
            self.log.note_skipped(names, self.step)

    def _finish(self) -> dict[str, Any]:
        parts, settings, device = self.parts, self.settings, self.processes.device
        network, test = parts.measured, self.splits.test
        result = evaluate(network, parts.task, test, device=device, together=True)
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
        found = Found(test, self.known.splits["test"])
        return write_summary(self.run, result, found, self.step, further)

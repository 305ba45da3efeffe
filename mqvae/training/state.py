"""State of a run in training, and its checkpoints."""

import math
from collections import deque

from mqvae.config import Settings
from mqvae.data import Batches
from mqvae.provenance import code
from mqvae.runs import Run
from mqvae.runs.images import Splits
from mqvae.runs.known import Changes, Known
from mqvae.training.assembly import Parts
from mqvae.training.checkpoints import capture, restore
from mqvae.training.finite import Finite
from mqvae.training.loggers import chosen
from mqvae.training.logs import Log
from mqvae.training.processes import Agreement, Processes
from mqvae.training.schedule import Onset
from mqvae.training.stopping import KEPT


class TrainingState:
    """A run in training, without the loop."""

    def __init__(
        self, run: Run, settings: Settings, splits: Splits, parts: Parts, processes: Processes
    ) -> None:
        self.run = run
        self.settings = settings  # what is trained, and how; all of it resolved
        self.splits = splits
        self.parts = parts  # network, task, update rule and what steps them
        self.processes = processes  # the processes that train together
        self.known = Known()  # which images the run has; empty in all processes but the first
        code()  # asked now: the tree may be another when training ends
        # What is different from the images that the run had, and was accepted.
        self.changes: Changes = {}
        # The run's files do not know its images as they are now yet; `fit` writes them.
        self.unrecorded = False
        options, steps = settings.trainer, settings.steps
        self.log_every = options.log_every or max(1, min(100, steps // 50))
        self.checkpoint_every = options.checkpoint_every or max(1, min(1000, steps // 5))
        self._finite = Finite(parts, processes, self._kept)
        self._skips = options.on_nonfinite == "skip"
        self.log = Log(parts, processes, self.log_every, chosen(options), skips=self._skips)
        warm = settings.warm_start
        self._onset = Onset.of(steps, warm.unquantized, warm.gradual)
        self.step = 0  # training steps made
        self.seconds = 0.0  # time they took
        self.waited = 0.0  # what of it was spent waiting for data
        self._last_row = (0.0, 0.0)  # seconds and waited, then
        self.best = math.inf  # the lowest validation loss of a checkpoint
        self._last_validation: float | None = None
        self._unsaid: float | None = None  # a validation loss that no row has yet
        self.step_seconds: deque[float] = deque(maxlen=10_000)
        self._agreement = Agreement(processes, self.log_every)

    @property
    def _kept(self) -> str:
        return f"{KEPT} {self.run.folder / 'checkpoints' / 'last'}."

    def _after_which(self) -> str:
        return f"after step {self.step}. {self._kept}"

    def checkpoint(self, validation: float | None) -> None:
        """Save, and keep the weights apart if they are the best on the validation images."""
        better = validation is not None and validation < self.best
        if validation is not None and better:
            self.best = validation
        # The best first: killed between the two, the run finds it again.
        self.save(*["best"] * better, "last")

    def save(self, *names: str) -> None:
        """Write checkpoints, of these names: "last", and "best", which is of weights alone.

        If a number in it is not finite, or it cannot be written, the ones before stay.
        """
        progress = {
            "step": self.step,
            "steps": self.settings.steps,
            "onset": [self._onset.first, self._onset.whole],
            "seconds": self.seconds,
            "waited": self.waited,
            "best": None if math.isinf(self.best) else self.best,
            "unsaid": self._unsaid,
            "validation": self._last_validation,
            **self.known.state(),
        }
        checkpoint = capture(self.parts, self.log, self.processes, progress)
        if bad := checkpoint.not_finite():
            raise self._finite.error(f"{bad} is not finite", self.step)
        if self.processes.first:
            for name in names:
                self.run.save(name, checkpoint if name == "last" else checkpoint.weights_alone)

    def restore(self, name: str, *, other_images: bool = False) -> None:
        """Resume from a checkpoint of the run.

        Of other images there may be fewer: an epoch that would be over by now is.
        """
        checkpoint = self.run.load(name)
        state = checkpoint.state
        if other_images:
            for batches in ("batches", "above"):
                _end_epoch(state.get(batches), getattr(self.parts, batches))
        stretched = state.get("steps") != self.settings.steps  # none of imported weights
        restore(checkpoint, self.run, self.parts, self.log, self.processes, stretched=stretched)
        self._onset = Onset(*state["onset"])
        self.step, self.seconds, self.waited = (state[k] for k in ("step", "seconds", "waited"))
        self._last_row = (self.seconds, self.waited)
        self.best = math.inf if state["best"] is None else state["best"]
        self._unsaid, self._last_validation = state["unsaid"], state["validation"]


def _end_epoch(place: dict[str, int] | None, batches: Batches | None) -> None:
    """Move a place beyond the end of its epoch, of fewer images than before, to the next one."""
    if place is not None and batches is not None and place["position"] >= batches.batches_per_epoch:
        place.update(epoch=place["epoch"] + 1, position=0)

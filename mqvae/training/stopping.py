"""Errors that end training early, and signals."""

import signal
from types import FrameType

KEPT = "The last good checkpoint is kept in"  # what a message goes on with, after its cause


class Interrupted(Exception):
    """Training was asked to stop, and has written a checkpoint."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
        self.signal_number = signal_number


class TrainingFailed(Exception):
    """Training cannot go on; the last good checkpoint stays."""

    @property
    def cause(self) -> str:
        """Why, without where the checkpoint is and what to try."""
        return str(self).partition(f" {KEPT}")[0]


class NotFinite(TrainingFailed):
    """A loss or a weight is not finite."""


class ProcessLost(TrainingFailed):
    """Another of the processes that train together has ended."""


class OutOfMemory(TrainingFailed):
    """A step does not fit in memory."""


class Signals:
    """Remembers SIGINT and SIGTERM until the step is done; a second one acts at once."""

    number: int | None = None

    def __enter__(self) -> "Signals":
        try:
            signals = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._note) for number in signals}
        except ValueError:  # not the main thread, where signals do not arrive anyway
            self._before = {}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number

    def __exit__(self, *rest: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

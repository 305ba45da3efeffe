"""Where the rows of metrics.csv go as well: TensorBoard, Weights & Biases, trackio."""

import importlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mqvae.config import Trainer
from mqvae.files import write_whole
from mqvae.optional import EXTRAS, require
from mqvae.runs import Run

TENSORBOARD = "tensorboard"
PROJECT = "mqvae"


class Logger(Protocol):
    """Takes the metrics of a step."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def chosen(options: Trainer) -> Sequence[str]:
    """The loggers of a run (default: TensorBoard if installed); refuses any not installed."""
    if options.fast_dev_run:
        return []
    if options.loggers is None:
        return [] if EXTRAS[TENSORBOARD].missing else [TENSORBOARD]
    for name in options.loggers:
        require(name)
    return options.loggers


def opened(names: Sequence[str], run: Run, step: int) -> list[Logger]:
    """Loggers of a run that begins, or resumes after a step."""
    return [
        _TensorBoard(run, step) if name == TENSORBOARD else _Service(name, run, step)
        for name in names
    ]


class _TensorBoard:
    """Curves in the run's folder."""

    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run.folder / TENSORBOARD), purge_step=step + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, number in metrics.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        self._writer.close()


class _Service:
    """Curves that a service keeps: wandb's and trackio's functions have the same names.

    A run that resumes is found by the name it has there, which its folder holds.
    """

    def __init__(self, name: str, run: Run, step: int) -> None:
        file = run.folder / f"{name}.txt"
        if not (step and file.is_file()):
            write_whole(file, f"{run.folder.resolve().name}-{uuid.uuid4().hex[:8]}\n")
        called = file.read_text(encoding="utf-8").strip()
        # wandb knows runs by an id of their own, and has a folder for what it does not upload.
        more = {"id": called, "dir": str(run.folder)} if name == "wandb" else {}
        self._run: Any = importlib.import_module(name).init(
            project=PROJECT, name=called, config=run.config, resume="allow", **more
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()

"""The folder of a run, read and written."""

import csv
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mqvae.core.distributed import process_rank
from mqvae.errors import MqvaeError
from mqvae.files import read_json, read_yaml, write_whole
from mqvae.notebook import html_table
from mqvae.runs.checkpoint import Checkpoint, load_checkpoint, name_before, write_checkpoint
from mqvae.runs.lock import LOCK, Lock, lock

COLUMNS = (
    *("step", "seconds", "data_wait", "task", "commitment", "codebook", "auxiliary"),
    *("perplexity", "usage", "network_lr", "codebook_lr"),
    *("direct_norm", "indirect_norm", "cosine", "validation"),
)


class Run:
    """A run folder.

    Args:
        folder: A folder that `Run.create` made.

    Raises:
        ValueError: if the folder is not a run.
    """

    _lock: Lock | None = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._damaged: set[str] = set()  # checkpoints that were found so
        if not self.folder.is_dir():
            raise MqvaeError(
                f"{self.folder} is not a run: there is no such folder. Pass a folder that "
                "`mqvae train` wrote, or the name of a tokenizer that `mqvae pretrained` lists."
            )
        try:
            self.config: dict[str, Any] = read_yaml(self.folder / "config.yaml")
        except FileNotFoundError:
            raise MqvaeError(
                f"{self.folder} is not a run: it has no config.yaml. Pass a folder that "
                "`mqvae train` wrote."
            ) from None
        if not isinstance(self.config, dict):
            raise MqvaeError(f"{self.folder / 'config.yaml'} holds no settings: it is damaged.")

    def __repr__(self) -> str:
        items = self._described()
        what = ", ".join(f"{name} {text}" for name, text in items.items() if name != "folder")
        return f"Run({str(self.folder)!r}: {what})"

    def _repr_html_(self) -> str:
        return html_table("Run", self._described())

    def _described(self) -> dict[str, str]:
        """Name, steps and seed, and the metrics of a finished run."""
        found = {"folder": str(self.folder)}
        for name in ("name", "steps", "seed"):
            found[name] = str(self.config.get(name))
        try:
            summary = read_json(self.folder / "summary.json")
            metrics = {name: f"{summary[name]:.4g}" for name in summary["figures"]}
        except (OSError, ValueError, KeyError, TypeError):  # in training, or of another version
            metrics = {"metrics": "none (yet)"}
        return found | metrics

    @classmethod
    def create(
        cls, folder: str | Path, config: Mapping[str, Any], *, overwrite: bool = False
    ) -> "Run":
        """Make a run folder, locked; raises as `require_free`."""
        folder = Path(folder)
        cls.require_free(folder, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        own = lock(folder)
        cls.require_free(folder, overwrite=overwrite)  # nobody was faster
        # Whenever this is cut short, what is there can still be replaced.
        for path in folder.iterdir():
            if path.name not in (LOCK, "config.yaml", "checkpoints"):
                _remove(path)
        for name in ("checkpoints", "samples"):
            (folder / name).mkdir(exist_ok=True)
        for path in (folder / "checkpoints").iterdir():
            _remove(path)
        _write_config(folder, config)
        run = cls(folder)
        run._lock = own
        return run

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace config.yaml, whole or not at all."""
        _write_config(self.folder, config)
        self.config = dict(config)

    @staticmethod
    def require_free(folder: str | Path, *, overwrite: bool = False) -> None:
        """Refuse a folder that holds something which must or should not be replaced."""
        folder = Path(folder)
        if folder.is_file():
            raise MqvaeError(f"{folder} is a file: --out takes a folder for the run.")
        if not folder.exists() or _holds_nothing(folder):
            return
        if not overwrite:
            resumes = f", or resume it by `mqvae train --resume {folder}`"
            raise MqvaeError(
                f"{folder} exists already: choose another --out, or add --overwrite to replace it"
                f"{resumes if Run.resumable(folder) else ''}."
            )
        if not ((folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()):
            raise MqvaeError(
                f"{folder} is not a run, so --overwrite leaves it alone: choose another --out."
            )
        lock(folder)  # of a run in training nothing is replaced

    @staticmethod
    def resumable(folder: str | Path) -> bool:
        """Whether a folder is a run with a checkpoint to resume from; never raises."""
        there = Run.checkpoint_in(folder) is not None
        return there and (Path(folder) / "config.yaml").is_file()

    @staticmethod
    def checkpoint_in(folder: str | Path, name: str = "last") -> Path | None:
        """The folder of a checkpoint, or of the one before it where a kill left that alone."""
        names = (name, name_before(name))
        found = (Path(folder) / "checkpoints" / each for each in names)
        return next((path for path in found if path.is_dir()), None)

    def lock(self) -> None:
        """Let no other process train in the folder until `unlock`; refuse if one does."""
        self._lock = lock(self.folder)

    @contextmanager
    def unlocked_if_raised(self) -> Iterator[None]:
        """If the block raises, others may train in the folder."""
        try:
            yield
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Let others train in the folder."""
        if self._lock is not None:
            self._lock.release()

    # -- metrics.csv ---------------------------------------------------------------------------

    def start_metrics(
        self, *, after_step: int, further: Sequence[str] = (), columns: Sequence[str] = COLUMNS
    ) -> None:
        """Begin metrics.csv, keeping the rows up to a step; the first column is the step."""
        self.columns = (*columns, *further)
        path = self.folder / "metrics.csv"
        lines = [",".join(self.columns)]
        if path.exists():
            try:
                with path.open(newline="") as file:
                    for row in csv.DictReader(file):
                        # A row cut short, by a kill in the middle of writing it, lacks columns.
                        if None not in row.values() and int(row["step"]) <= after_step:
                            lines.append(",".join(row.get(c, "") for c in self.columns))
            except (ValueError, KeyError, csv.Error) as error:
                raise MqvaeError(
                    f"{path} is damaged ({error}): move it away, and the run resumes without its "
                    "earlier rows."
                ) from error
        write_whole(path, "\n".join(lines) + "\n")

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Append a row to metrics.csv."""
        with (self.folder / "metrics.csv").open("a", newline="") as file:
            values = (row.get(c) for c in self.columns)
            csv.writer(file, lineterminator="\n").writerow(
                "" if v is None else v if isinstance(v, int) else f"{v:.8g}" for v in values
            )

    # -- checkpoints ---------------------------------------------------------------------------

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole or not at all; the one before it of that name is kept."""
        target = self.folder / "checkpoints" / name
        partial = target.with_name(f"{name}.partial")
        previous = target.with_name(name_before(name))
        try:
            shutil.rmtree(partial, ignore_errors=True)
            write_checkpoint(partial, checkpoint)
            # At every moment one of `name` and the one before it is whole.
            if name in self._damaged:
                shutil.rmtree(target, ignore_errors=True)
            if target.exists():
                shutil.rmtree(previous, ignore_errors=True)
                target.rename(previous)
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise MqvaeError(
                f"the checkpoint {target} cannot be written: {error.strerror or error}. "
                + (
                    "The one before it is kept: when there is room, and leave to write, resume "
                    "with --resume."
                    if target.exists() or previous.exists()
                    else "There is none before it: make room, or choose another --out."
                )
            ) from error
        self._damaged.discard(name)

    def load(
        self, name: str = "last", *, training: bool = True, weights: bool = True
    ) -> Checkpoint:
        """Read "last" or "best"; the one before it, with a warning, if it is damaged.

        Args:
            name: "last" or "best".
            training: Read what only resuming needs, too.
            weights: Read the weights; without them the state is all there is.

        Raises:
            ValueError: if there is none, or files of it and of the one before are damaged.
        """
        folder = self.folder / "checkpoints" / name
        found, damage = load_checkpoint(folder, training=training, weights=weights)
        if damage and name not in self._damaged:
            self._damaged.add(name)
            if process_rank() == 0:
                print(
                    f"mqvae: warning: the checkpoint {folder} is damaged ({damage}): the one "
                    f"before it is taken, of step {found.state.get('step')}.",
                    file=sys.stderr,
                )
        return found


def _holds_nothing(folder: Path) -> bool:
    """Whether no file is in a folder or below, but for what a run killed in `create` leaves."""
    left = re.compile(rf"{re.escape(LOCK)}|config\.yaml\.\d+\.partial")
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return all(path.parent == folder and left.fullmatch(path.name) for path in files)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    write_whole(folder / "config.yaml", text)

"""A run folder as plain values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from mqvae.errors import MqvaeError
from mqvae.places import names_only
from mqvae.report.words import dataset_title
from mqvae.runs.results import Counts, damaged, read_counts, read_json, read_metrics, read_yaml

MAIN = "test-last"  # what of `evaluations` the page is about
KEPT = ("figures", "protocol", "pictures", "codes", "checkpoint", "step", "weights")


@dataclass(frozen=True)
class Figure:
    """What one figure is, as the run describes it: fields as in `mqvae.tasks.Figure`."""

    title: str
    better: str | None = None
    protocol: str = ""
    unit: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Picture:
    """A picture in a run folder: a strip of images, or a matrix of counts."""

    kind: str
    file: Path
    title: str
    reference: bool = False
    rows: str = "row"
    columns: str = "column"


@dataclass(frozen=True)
class Evaluation:
    """A file of `evaluations/`: what was measured of a checkpoint on some images.

    Attributes:
        content: The file.
        figures: Those measured, by keys of `content`.
    """

    content: dict[str, Any] = field(repr=False)
    figures: dict[str, Figure]

    @property
    def images(self) -> str:
        """How many images of which split, in words."""
        return images_of(self.content)

    @property
    def of(self) -> str:
        """The checkpoint, and at which step."""
        return checkpoint_of(self.content)


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    Attributes:
        path: The folder.
        name: What the page calls it.
        config: `config.yaml`.
        summary: `summary.json`; what was measured of the test split is that of
            `evaluations/test-last.json` where there is one.
        figures: What the run measured, in the order of the columns, by keys of `summary`.
        pictures: What of it can be shown; None where the run does not say so (yet).
        metrics: A column of `metrics.csv` to one float per logged step.
        counts: Of each codebook group, how often the images measured on chose its codes.
        others: What was measured of other splits, checkpoints and images.
        counted: The file of `counts`, whether it is there or not.
        diagnosis: `diagnosis.json`, what `mqvae diagnose` wrote; empty without it.
        finished: It has a summary.
        failure: `failure.json`, why training ended before its last step; empty if it has not.
        written: Date of its newest file.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    figures: dict[str, Figure]
    pictures: tuple[Picture, ...] | None
    metrics: dict[str, np.ndarray] = field(repr=False)
    counts: tuple[Counts, ...] = field(repr=False)
    finished: bool
    written: datetime
    counted: Path
    others: tuple[Evaluation, ...] = field(repr=False, default=())
    diagnosis: dict[str, Any] = field(repr=False, default_factory=dict)
    failure: dict[str, Any] = field(repr=False, default_factory=dict)

    def number(self, key: str) -> float | None:
        """A number of the summary, or None where the run does not have it (yet)."""
        value = self.summary.get(key)
        return float(value) if is_number(value) else None

    def column(self, key: str) -> np.ndarray:
        """A column of the metrics; all NaN where the run did not log it."""
        return self.metrics.get(key, np.full(len(self.metrics.get("step", ())), np.nan))

    @property
    def protocol(self) -> dict[str, Any]:
        return _mapping(self.summary.get("protocol"))

    @property
    def images(self) -> str:
        """What it was measured on, as in "297 test images"."""
        return images_of(self.summary)

    @property
    def checkpoint(self) -> str:
        """What of it was measured, as in "checkpoint last, step 500"; empty if that is unknown."""
        return checkpoint_of(self.summary)

    @property
    def data(self) -> dict[str, Any]:
        """Arguments of the data."""
        data = _mapping(self.config.get("data"))
        return _mapping(data.get("init_args", data))

    @property
    def dataset(self) -> str:
        """The dataset in words, as the page's title says it."""
        name = names_only(str(self.data.get("name") or ""))
        return dataset_title(name or self.summary.get("dataset"))

    @property
    def kind(self) -> tuple[str, str]:
        """What it learned from what: runs of one kind have figures that can be compared."""
        task = _class_name(_mapping(self.config.get("task")).get("class_path", ""))
        return self.dataset, task

    @property
    def rule(self) -> tuple[str, str]:
        """What the field calls the update rule, or else its class; then what further is known."""
        method = self.summary.get("method")
        update = _mapping(self.config.get("update"))
        if "class_path" not in update:
            return str(method or self.summary.get("rule") or "-"), ""
        arguments = _mapping(update.get("init_args"))
        estimator = arguments.get("hypergradient")
        if isinstance(estimator, dict):
            estimator = estimator.get("class_path")
        words = [str(method)] if method else []
        words += [_class_name(path) for path in (update["class_path"], estimator) if path]
        if is_number(arguments.get("xi")):
            words.append(f"ξ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{arguments['xi']:g}")
        return words[0], ", ".join(words[1:])

    @property
    def steps(self) -> int | None:
        """Training steps made so far."""
        done = self.number("steps") if self.finished else None
        if done is None and len(self.column("step")):
            done = float(self.column("step")[-1])
        return int(done) if done is not None and math.isfinite(done) else None

    @property
    def planned_steps(self) -> int | None:
        steps = self.config.get("steps")
        return int(steps) if is_number(steps) and math.isfinite(steps) else None

    @property
    def seconds(self) -> float | None:
        """Training time so far."""
        total = self.number("wall_seconds")
        if total is None and len(self.column("seconds")):
            total = float(self.column("seconds")[-1])
        return total

    @cached_property
    def has_dynamics(self) -> bool:
        """Whether any hypergradient was logged."""
        keys = ("direct_norm", "indirect_norm", "cosine")
        return any(bool(np.isfinite(self.column(key)).any()) for key in keys)

    @property
    def codes_used(self) -> tuple[int, int]:
        """Codes chosen at least once, and all codes, over all groups."""
        used = sum(len(group.codes) for group in self.counts)
        return used, sum(group.total for group in self.counts)

    @property
    def perplexity(self) -> float:
        """That of the counts, per group, then averaged."""
        groups = [each.counts / each.counts.sum() for each in self.counts if len(each.codes)]
        return float(np.mean([math.exp(-float((p * np.log(p)).sum())) for p in groups]))


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number and not a truth value, which Python counts as one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def images_of(content: Mapping[str, Any]) -> str:
    """How many images of which split a file is about, in words, and of what other data."""
    protocol = _mapping(content.get("protocol"))
    number, split = protocol.get("images"), protocol.get("split", "test")
    words = f"{split} images" if split != "files" else "images"
    if isinstance(number, int):
        words = f"{number:,} {words}"
    return f"{words} of {content['data']}" if content.get("data") else words


def checkpoint_of(content: Mapping[str, Any]) -> str:
    """Which checkpoint a file is about and how codes were refined; empty where neither is told."""
    if not content.get("checkpoint"):
        return ""
    step, refined = content.get("step"), content.get("refined")
    return (
        f"checkpoint {content['checkpoint']}"
        + (f", step {step:,}" if is_number(step) else "")
        + (f", codes {refined}" if refined else "")
    )


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders; runs of the same name get their folder's name behind it.

    Those of a sweep, whose folders say what differs, are called by that alone.

    Raises:
        ValueError: no paths, a path that is not a run, or a damaged file in one.
    """
    if not paths:
        raise MqvaeError("no runs: expected at least one folder that `mqvae train` wrote, got none")
    runs = [read_run(Path(path)) for path in paths]
    names = [run.name for run in runs]
    folders = [run.path.resolve().name for run in runs]
    short = [_short(folder) for folder in folders]
    if len(runs) > 1 and all(short) and len(set(names)) == 1 and len(set(short)) == len(short):
        return [replace(run, name=name) for run, name in zip(runs, short, strict=True)]
    return [
        replace(run, name=f"{run.name} ({folder})") if names.count(run.name) > 1 else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def _short(folder: str) -> str:
    """What the folder of a sweep's run says, each setting by the end of its name; else nothing.

    >>> _short("seed=0,optimizer.codebook_lr=1e-2"), _short("first")
    ('seed=0, codebook_lr=1e-2', '')
    """
    if not re.fullmatch(r"[\w.]+=[^,=]+(,[\w.]+=[^,=]+)*", folder):
        return ""
    return ", ".join(re.sub(r"^(\w+\.)*", "", part) for part in folder.split(","))


def read_run(path: Path) -> Run:
    """Read one run folder, finished or not.

    Raises:
        ValueError: `path` is not a run, or a file in it is damaged.
    """
    if not (path / "config.yaml").is_file():
        raise MqvaeError(
            f"{path} is not a run: expected config.yaml in it; "
            "pass a folder that `mqvae train` wrote"
        )
    config = read_yaml(path / "config.yaml")
    files = sorted((path / "evaluations").glob("*.json"))
    written = [path / "summary.json", path / "metrics.csv", *files]
    summary = read_json(path / "summary.json")
    finished = bool(summary)
    pictures: tuple[Picture, ...] | None = None
    figures: dict[str, Figure] = _read_figures(path / "summary.json", summary)
    others = []
    if isinstance(summary.get("pictures"), list):
        pictures = _read_pictures(path / "summary.json", path, summary)
    for file in files:
        found = read_json(file)
        if not found:  # it was there a moment ago
            continue
        described = _read_figures(file, found)
        if file.stem != MAIN:
            others.append(Evaluation(found, described))
        else:
            # The rest of the summary is about the training.
            kept = (*described, *KEPT)
            summary = {k: v for k, v in summary.items() if k not in figures}
            summary |= {key: found[key] for key in kept if key in found}
            figures = described
            pictures = _read_pictures(file, path, found)
    codes = _mapping(summary.get("codes"))
    counts = _inside(path / "summary.json", path, codes.get("file", "code_counts.csv"))
    number = codes.get("num_codes")
    return Run(
        path=path,
        name=str(config.get("name") or path.resolve().name),
        config=config,
        summary=summary,
        figures=figures,
        pictures=pictures,
        metrics=read_metrics(path / "metrics.csv", finished=finished),
        counts=read_counts(counts, int(number) if is_number(number) else None),
        finished=finished,
        # The newest file's date, not the clock's: the same runs give the same page.
        written=_date_of(written) or _date_of([path / "config.yaml"]) or datetime.now(UTC),
        counted=counts,
        others=tuple(others),
        diagnosis=read_json(path / "diagnosis.json"),
        failure=read_json(path / "failure.json"),
    )


def _date_of(files: Sequence[Path]) -> datetime | None:
    """That of the newest of the files there are."""
    dates = []
    for file in files:
        with suppress(FileNotFoundError):
            dates.append(file.stat().st_mtime)
    return datetime.fromtimestamp(max(dates), UTC) if dates else None


def _class_name(path: object) -> str:
    return str(path).rpartition(".")[2]


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_figures(file: Path, content: dict[str, Any]) -> dict[str, Figure]:
    described = _mapping(content.get("figures"))
    return {key: _read_figure(file, key, _mapping(each)) for key, each in described.items()}


def _read_figure(file: Path, key: str, fields: dict[str, Any]) -> Figure:
    better, scale = fields.get("better"), fields.get("scale", 1.0)
    if better not in ("lower", "higher", None):
        raise damaged(file, f"expected {key} better lower, higher or null, got {better!r}")
    if not is_number(scale) or not 0 < scale < math.inf:
        raise damaged(file, f"expected a positive scale of {key}, got {scale!r}")
    title, protocol, unit = (str(fields.get(name, "")) for name in ("title", "protocol", "unit"))
    return Figure(title or key, better, protocol.rstrip("."), unit, float(scale))


def _read_pictures(file: Path, folder: Path, content: dict[str, Any]) -> tuple[Picture, ...]:
    listed = content.get("pictures")
    given = listed if isinstance(listed, list) else []
    return tuple(_read_picture(file, folder, _mapping(each)) for each in given)


def _inside(file: Path, folder: Path, given: object) -> Path:
    """A file of the run that another one of it names."""
    path = Path(str(given))
    # A page is passed on: it must hold nothing but what lies in the run.
    if path.is_absolute() or ".." in path.parts:
        raise damaged(file, f"expected files in the run's folder, got {path}")
    return folder / path


def _read_picture(file: Path, folder: Path, fields: dict[str, Any]) -> Picture:
    path = _inside(file, folder, fields.get("file"))
    title, rows, columns = (str(fields.get(name, name)) for name in ("title", "rows", "columns"))
    reference = fields.get("reference") is True
    kind = str(fields.get("kind"))
    return Picture(kind, path, title, reference, rows, columns)

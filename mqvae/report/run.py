"""A run folder as plain values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from mqvae.report.words import dataset_title, scientific
from mqvae.runs.results import Counts


@dataclass(frozen=True)
class Figure:
    """What one figure is, as the run describes it: fields as in `mqvae.tasks.Metric`."""

    title: str
    better: str | None = None
    protocol: str = ""
    unit: str = ""
    scale: float = 1.0

    @property
    def shown_in(self) -> str:
        """Unit of the values as they are shown, or the power of ten that they are divided by."""
        return self.unit or ("" if self.scale == 1 else f"×{scientific(self.scale)}")


@dataclass(frozen=True)
class Picture:
    """A picture in a run folder: a strip of images, or a matrix of counts."""

    kind: str
    file: Path
    title: str
    reference: bool = False
    rows: str = "row"
    columns: str = "column"


class Evaluation(NamedTuple):
    """A file of `evaluations/`: what was measured of a checkpoint on some images."""

    content: dict[str, Any]
    figures: dict[str, Figure]  # by keys of the content


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
    others: tuple[Evaluation, ...] = field(repr=False, default=())
    diagnosis: dict[str, Any] = field(repr=False, default_factory=dict)
    failure: dict[str, Any] = field(repr=False, default_factory=dict)

    def number(self, key: str) -> float | None:
        """A number of the summary, or None where the run does not have it (yet)."""
        return number(self.summary.get(key))

    def column(self, key: str) -> np.ndarray:
        """A column of the metrics; all NaN where the run did not log it."""
        return self.metrics.get(key, np.full(len(self.metrics.get("step", ())), np.nan))

    @property
    def protocol(self) -> dict[str, Any]:
        return mapping(self.summary.get("protocol"))

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
        data = mapping(self.config.get("data"))
        return mapping(data.get("init_args", data))

    @property
    def dataset(self) -> str:
        """The dataset in words, as the page's title says it."""
        return dataset_title(self.data.get("name") or self.summary.get("dataset"))

    @property
    def kind(self) -> tuple[str, str]:
        """What it learned from what: runs of one kind have figures that can be compared."""
        task = _class_name(mapping(self.config.get("task")).get("class_path", ""))
        return self.dataset, task

    @property
    def rule(self) -> tuple[str, str]:
        """The update rule by its name in the literature, or its class; then its arguments."""
        method = self.summary.get("method")
        update = mapping(self.config.get("update"))
        if "class_path" not in update:
            return str(method or self.summary.get("rule") or "-"), ""
        arguments = mapping(update.get("init_args"))
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


def number(value: object) -> float | None:
    """A value that is a number; None for anything else."""
    return float(value) if is_number(value) else None


def images_of(content: Mapping[str, Any]) -> str:
    """How many images of which split a file is about, in words, and of what other data."""
    protocol = mapping(content.get("protocol"))
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


def _class_name(path: object) -> str:
    return str(path).rpartition(".")[2]


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

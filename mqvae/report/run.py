"""A run folder, read and checked, as plain values."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import yaml

from mqvae.report.words import dataset_title

REQUIRED_METRICS = ("step", "seconds", "task")
MOST_CODES = 2**24  # beyond it a code is a slip, and would need memory to match
KNOWN_METRICS = (*REQUIRED_METRICS, "perplexity", "direct_norm", "indirect_norm", "cosine")


@dataclass(frozen=True)
class Run:
    """What one run folder says.

    `figures` is `summary.json` with `evaluation.json`, which is newer, laid over it. `metrics` maps
    a column of `metrics.csv` to one float per logged step (NaN where blank). `counts` holds one
    array per codebook group: how often the test set chose each code.
    """

    path: Path
    name: str
    config: dict[str, Any]
    figures: dict[str, Any]
    metrics: dict[str, np.ndarray]
    counts: tuple[np.ndarray, ...]
    finished: bool
    written: datetime

    def figure(self, key: str) -> float | None:
        """A final figure, or None where the run does not have it (yet)."""
        value = self.figures.get(key)
        return float(value) if is_number(value) else None

    def column(self, key: str) -> np.ndarray:
        """A column of the metrics; all NaN where the run did not log it."""
        return self.metrics.get(key, np.full(len(self.metrics.get("step", ())), np.nan))

    @property
    def protocol(self) -> dict[str, Any]:
        protocol = self.figures.get("protocol")
        return protocol if isinstance(protocol, dict) else {}

    @property
    def dataset(self) -> str:
        """The dataset in words, as the page's title says it."""
        data = self.config.get("data")
        name = data.get("name") if isinstance(data, dict) else None
        return dataset_title(name or self.figures.get("dataset"))

    @property
    def rule(self) -> tuple[str, str]:
        """The update rule's class; then its estimator and ξ, where the configuration has them."""
        update = self.config.get("update")
        if not isinstance(update, dict) or "class_path" not in update:
            return str(self.figures.get("rule") or "-"), ""
        arguments = update.get("init_args")
        arguments = arguments if isinstance(arguments, dict) else {}
        estimator = arguments.get("hypergradient")
        if isinstance(estimator, dict):
            estimator = estimator.get("class_path")
        details = [] if estimator is None else [_class_name(estimator)]
        if is_number(arguments.get("xi")):
            details.append(f"ξ\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{arguments['xi']:g}")
        return _class_name(update["class_path"]), ", ".join(details)

    @property
    def steps(self) -> int | None:
        """Updates made so far."""
        done = self.figure("steps") if self.finished else None
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
        total = self.figure("wall_seconds")
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
        used = sum(int((group > 0).sum()) for group in self.counts)
        return used, sum(len(group) for group in self.counts)

    @property
    def perplexity(self) -> float | None:
        """The reported perplexity; without one, that of the counts (per group, then averaged)."""
        reported = self.figure("perplexity")
        groups = [group[group > 0] / group.sum() for group in self.counts if group.sum() > 0]
        if reported is not None or not groups:
            return reported
        return float(np.mean([math.exp(-float((p * np.log(p)).sum())) for p in groups]))


def _class_name(path: object) -> str:
    return str(path).rpartition(".")[2]


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number and not a truth value, which Python counts as one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders; runs of the same name get their folder's name behind it.

    Raises:
        ValueError: no paths, a path that is not a run, or a damaged file in one.
    """
    if not paths:
        raise ValueError("no runs: expected at least one folder that `mqvae train` wrote, got none")
    runs = [read_run(Path(path)) for path in paths]
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({run.path.resolve().name})")
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def read_run(path: Path) -> Run:
    """Read one run folder, finished or not.

    Raises:
        ValueError: `path` is not a run, or a file in it is damaged.
    """
    if not (path / "config.yaml").is_file():
        raise ValueError(
            f"{path} is not a run: expected config.yaml in it; "
            "pass a folder that `mqvae train` wrote"
        )
    config = _read_config(path / "config.yaml")
    finished = (path / "summary.json").is_file()
    figures = _read_json(path / "summary.json") | _read_json(path / "evaluation.json")
    final = [path / name for name in ("summary.json", "evaluation.json", "metrics.csv")]
    dated = [file for file in final if file.is_file()] or [path / "config.yaml"]
    return Run(
        path=path,
        name=str(config.get("name") or path.resolve().name),
        config=config,
        figures=figures,
        metrics=_read_metrics(path / "metrics.csv", finished=finished),
        counts=_read_counts(path / "code_counts.csv"),
        finished=finished,
        # The newest file's date, not the clock's: the same runs give the same page.
        written=datetime.fromtimestamp(max(file.stat().st_mtime for file in dated), UTC),
    )


def _damaged(file: Path, what: str) -> ValueError:
    return ValueError(f"{file} is damaged: {what}; restore it or run `mqvae` again to write it")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(file, f"expected UTF-8 text, got {error}") from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(_read_text(file))
    except yaml.YAMLError as error:
        raise _damaged(file, f"not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise _damaged(file, f"expected a mapping of settings, got {type(config).__name__}")
    return config


def _read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; an absent file is an empty one."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise _damaged(file, f"not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _damaged(file, f"expected an object, got {type(content).__name__}")
    return content


def _read_rows(file: Path, required: Sequence[str], lines: list[str]) -> list[dict[str, str]]:
    reader = csv.reader(lines, strict=True)
    rows: list[dict[str, str]] = []
    try:
        head = next(reader, [])
        if missing := [name for name in required if name not in head]:
            named = ", ".join(head) or "none"
            raise _damaged(file, f"expected a column {missing[0]!r}, got {named}")
        for row in filter(None, reader):
            if len(row) != len(head):
                place = f"line {reader.line_num}"
                raise _damaged(file, f"{place} has {len(row)} values, expected {len(head)}")
            rows.append(dict(zip(head, row, strict=True)))
    except csv.Error as error:
        raise _damaged(file, f"not CSV ({error})") from error
    return rows


def _read_metrics(file: Path, *, finished: bool) -> dict[str, np.ndarray]:
    lines = _read_text(file).splitlines(keepends=True) if file.is_file() else []
    if not finished and lines and not lines[-1].endswith("\n"):
        lines.pop()  # the trainer is in the middle of writing it
    if not lines and not (finished and file.is_file()):
        return {}
    rows = _read_rows(file, REQUIRED_METRICS, lines)
    columns: dict[str, np.ndarray] = {}
    for key in rows[0] if rows else ():
        try:
            values = [float(row[key]) if row[key].strip() else math.nan for row in rows]
        except ValueError as error:
            if key in KNOWN_METRICS:
                raise _damaged(file, f"expected numbers in column {key!r}, got {error}") from error
            continue
        columns[key] = np.array(values)
    return columns


def _read_counts(file: Path) -> tuple[np.ndarray, ...]:
    if not file.is_file():
        return ()
    required = ("group", "code", "count")
    groups: dict[str, dict[int, int]] = {}
    for row in _read_rows(file, required, _read_text(file).splitlines(keepends=True)):
        try:
            code, count = int(row["code"]), int(row["count"])
        except ValueError as error:
            raise _damaged(file, f"expected whole numbers, got {error}") from error
        if not 0 <= code < MOST_CODES or count < 0:
            raise _damaged(file, f"no codebook has code {code} chosen {count} times")
        groups.setdefault(row["group"], {})[code] = count
    arrays = []
    for codes in groups.values():
        array = np.zeros(max(codes) + 1, dtype=np.int64)
        array[list(codes)] = list(codes.values())
        arrays.append(array)
    return tuple(arrays)

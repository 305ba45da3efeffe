"""The files of a run folder, read and checked."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mqvae.errors import MqvaeError

REQUIRED_METRICS = ("step", "seconds", "task")
METRICS = (
    *REQUIRED_METRICS,
    "validation",
    "perplexity",
    "direct_norm",
    "indirect_norm",
    "cosine",
)
MOST_CODES = 2**24  # beyond it a code is a slip, and would need memory to match


def damaged(file: Path, what: str) -> MqvaeError:
    """What to raise about a file that is there and cannot be used."""
    return MqvaeError(f"{file} is damaged: {what}; restore it or run `mqvae` again to write it")


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`."""
    try:
        content = yaml.safe_load(_read_text(file))
    except yaml.YAMLError as error:
        raise damaged(file, f"not YAML ({' '.join(str(error).split())})") from error
    return _mapping(file, content, "a mapping of settings")


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; an absent file is an empty one."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise damaged(file, f"not JSON ({error})") from error
    return _mapping(file, content, "an object")


def read_metrics(file: Path, *, finished: bool) -> dict[str, np.ndarray]:
    """The columns that a page shows, one float per logged step, NaN where blank."""
    lines = _read_text(file).splitlines(keepends=True) if file.is_file() else []
    if not finished and lines and not lines[-1].endswith("\n"):
        lines.pop()  # the trainer is in the middle of writing it
    if not lines and not (finished and file.is_file()):
        return {}
    rows = _read_table(file, REQUIRED_METRICS, lines)
    columns: dict[str, np.ndarray] = {}
    for key in METRICS:
        if rows and key in rows[0]:
            try:
                values = [float(row[key]) if row[key].strip() else math.nan for row in rows]
            except ValueError as error:
                raise damaged(file, f"expected numbers in column {key!r}, got {error}") from error
            columns[key] = np.array(values)
    return columns


def read_counts(file: Path) -> tuple[np.ndarray, ...]:
    """One array per codebook group: how often the test set chose each code."""
    if not file.is_file():
        return ()
    lines = _read_text(file).splitlines(keepends=True)
    groups: dict[str, dict[int, int]] = {}
    for row in _read_table(file, ("group", "code", "count"), lines):
        code, count = _whole(file, row["code"]), _whole(file, row["count"])
        if not 0 <= code < MOST_CODES or count < 0:
            raise damaged(file, f"no codebook has code {code} chosen {count} times")
        groups.setdefault(row["group"], {})[code] = count
    arrays = []
    for codes in groups.values():
        array = np.zeros(max(codes) + 1, dtype=np.int64)
        array[list(codes)] = list(codes.values())
        arrays.append(array)
    return tuple(arrays)


def read_matrix(file: Path) -> np.ndarray | None:
    """Counts (rows, columns); None when there is no such file."""
    if not file.is_file():
        return None
    lines = [row for row in _read_csv(file, _read_text(file).splitlines(keepends=True)) if row]
    matrix = [[_whole(file, value) for value in row] for row in lines]
    if len({len(row) for row in matrix}) != 1:
        raise damaged(file, "expected rows of counts, equally long")
    counts = np.array(matrix, dtype=np.int64)
    if counts.min() < 0:
        raise damaged(file, f"expected counts, got {counts.min()}")
    return counts


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(file, f"expected UTF-8 text, got {error}") from error


def _mapping(file: Path, content: object, expected: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise damaged(file, f"expected {expected}, got {type(content).__name__}")
    return dict(content)


def _read_csv(file: Path, lines: list[str]) -> list[list[str]]:
    try:
        return list(csv.reader(lines, strict=True))
    except csv.Error as error:
        raise damaged(file, f"not CSV ({error})") from error


def _read_table(file: Path, required: Sequence[str], lines: list[str]) -> list[dict[str, str]]:
    head, *rows = _read_csv(file, lines) or [[]]
    if missing := [name for name in required if name not in head]:
        got = ", ".join(head) or "none"
        raise damaged(file, f"expected a column {missing[0]!r}, got {got}")
    for line, row in enumerate(rows, start=2):
        if row and len(row) != len(head):
            raise damaged(file, f"line {line} has {len(row)} values, expected {len(head)}")
    return [dict(zip(head, row, strict=True)) for row in rows if row]


def _whole(file: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise damaged(file, f"expected whole numbers, got {error}") from error

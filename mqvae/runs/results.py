"""What a run measured, read from its folder and checked."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mqvae import files
from mqvae.errors import MqvaeError

REQUIRED_METRICS = ("step", "seconds", "task")
METRICS = (
    *REQUIRED_METRICS,
    *("validation", "auxiliary", "commitment", "network_lr", "perplexity"),
    *("direct_norm", "indirect_norm", "cosine"),
)


def damaged(file: Path, what: str) -> MqvaeError:
    """What to raise about a file that is there and cannot be used."""
    return MqvaeError(f"{file} is damaged: {what}; restore it or run `mqvae` again to write it")


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`."""
    return _mapping(file, files.read_yaml(file), "a mapping of settings")


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; an absent file is an empty one."""
    try:
        return _mapping(file, files.read_json(file), "an object")
    except FileNotFoundError:
        return {}


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


@dataclass(frozen=True)
class Counts:
    """How often the codes of a group were chosen."""

    codes: np.ndarray  # those chosen, ascending
    counts: np.ndarray  # how often, 1 or more
    total: int  # K, with those never chosen

    def __getitem__(self, code: int) -> int:
        return int(self.of(np.array([code]))[0])

    def of(self, codes: np.ndarray) -> np.ndarray:
        """How often each of some codes was chosen, in their shape."""
        if not len(self.codes):
            return np.zeros_like(codes)
        place = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        return np.where(self.codes[place] == codes, self.counts[place], 0)

    def first(self, number: int) -> np.ndarray:
        """So many codes, the most used first, equally used ones by their numbers."""
        order = np.argsort(-self.counts, kind="stable")[:number]
        # Among the first numbers so many are left, whatever K is.
        left = np.setdiff1d(np.arange(min(self.total, len(self.codes) + number)), self.codes)
        return np.concatenate([self.codes[order], left])[:number]


def read_counts(file: Path, num_codes: int | None = None) -> tuple[Counts, ...]:
    """How often the codes of each group were chosen; codes without a row were not.

    `num_codes` is K (default: one more than the last code in the file).
    """
    if not file.is_file():
        return ()
    lines = _read_text(file).splitlines(keepends=True)
    groups: dict[str, dict[int, int]] = {}
    for row in _read_table(file, ("group", "code", "count"), lines):
        code, count = _whole(file, row["code"]), _whole(file, row["count"])
        if not 0 <= code < (num_codes or 2**63) or not 0 <= count < 2**63:
            raise damaged(file, f"no codebook has code {code} chosen {count} times")
        groups.setdefault(row["group"], {})[code] = count
    found = []
    for of_codes in groups.values():
        rows = sorted((code, count) for code, count in of_codes.items() if count)
        codes, counts = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        found.append(Counts(codes, counts, num_codes or max(of_codes) + 1))
    return tuple(found)


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

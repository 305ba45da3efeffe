"""What a page says of results: numbers, tables and the text around ratios."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

SCALE = {"mse": 1e3, "lpips": 10.0, "usage": 100.0, "accuracy": 100.0, "f1": 100.0}
DIGITS = {"mse": 2, "lpips": 3, "usage": 0, "entropy": 1, "prior_bits": 2, "perplexity": 0}
DIGITS |= {"accuracy": 2, "f1": 2, "frechet_vgg16": 3, "frechet_vgg16_reconstructions": 3}


@dataclass(frozen=True)
class Results:
    """Results of a study by row, data set and seed.

    Args:
        lines: Lines of its files; of two of the same run the later one counts, and one that has
            bits of a prior before one without.
        rows: Rows of the study.
    """

    lines: Sequence[Mapping[str, Any]]
    rows: Mapping[str, Mapping[str, Any]]

    @cached_property
    def by_run(self) -> dict[tuple[str, str, int], Mapping[str, Any]]:
        """The line of each run, by row, data set and seed."""
        found: dict[tuple[str, str, int], Mapping[str, Any]] = {}
        for line in self.lines:
            key = (line["row"], line["asked"]["data"], line["asked"]["seed"])
            before = found.get(key, {"figures": {}})
            if "prior_bits" in line["figures"] or "prior_bits" not in before["figures"]:
                found[key] = line
        return found

    def value(self, row: str, name: str, data: str, seed: int = 0) -> float | None:
        """A metric of a run; None where it was not measured."""
        line = self.by_run.get((row, data, seed))
        return None if line is None else line["figures"].get(name)

    def seeds(self, row: str, name: str, data: str) -> list[int]:
        """Seeds of which a row has a metric."""
        return sorted(
            seed
            for of, at, seed in self.by_run
            if (of, at) == (row, data) and self.value(of, name, at, seed) is not None
        )

    def shown(self, row: str, name: str, data: str, seed: int = 0) -> str:
        """A metric in its usual scale."""
        return _shown(name, self.value(row, name, data, seed))

    def change(
        self, row: str, to: str, name: str, data: str, seeds: Sequence[int] | None = None
    ) -> str:
        """How much lower or higher a metric is than another row's, in words, seed by seed.

        Args:
            row: The row.
            to: The other one.
            name: The metric.
            data: The data set.
            seeds: Those that count; None for all that both rows have.
        """
        both = {*self.seeds(row, name, data)} & {*self.seeds(to, name, data)}
        ratios = [
            (self.value(row, name, data, seed) or 0) / (self.value(to, name, data, seed) or 1)
            for seed in sorted(both if seeds is None else both & {*seeds})
        ]
        return _in_words(ratios)

    def beside_line(self, row: str, ends: tuple[str, str], x: str, y: str, data: str) -> str:
        """How far a row lies from the line between two others at its own `x`, in words.

        Args:
            row: The row.
            ends: The two others.
            x: A metric, of bits.
            y: Another, of error.
            data: The data set.
        """
        ratios = []
        for seed in self.seeds(row, x, data):
            points = [
                (self.value(of, x, data, seed), self.value(of, y, data, seed))
                for of in (*ends, row)
            ]
            (x0, y0), (x1, y1), (at, found) = (
                (a, b) if a is not None and b is not None else (math.nan, math.nan)
                for a, b in points
            )
            ratio = found / (y0 + (y1 - y0) * (at - x0) / (x1 - x0))
            ratios += [ratio] if math.isfinite(ratio) else []
        return _in_words(ratios)

    def points(self, family: str, x: str, y: str, data: str) -> list[tuple[float, float]]:
        """Both metrics of a family's rows, seed 0, by `x`."""
        found = []
        for row in self.of_family(family):
            pair = self.value(row, x, data), self.value(row, y, data)
            if pair[0] is not None and pair[1] is not None:
                found.append((pair[0], pair[1]))
        return sorted(found)

    def of_family(self, family: str) -> list[str]:
        """Rows of a family."""
        return [name for name, row in self.rows.items() if row["family"] == family]

    def columns(self, rows: Iterable[str], data: str, titles: Mapping[str, str]) -> str:
        """Rows beside each other in some metrics, seed 0; those that have the first one.

        Args:
            rows: The rows.
            data: The data set.
            titles: Titles of the metrics, by their names.
        """
        lines = [
            f"| Quantizer | {' | '.join(titles.values())} |",
            f"|:--|{'--:|' * len(titles)}",
        ]
        first = next(iter(titles))
        for row in rows:
            if self.value(row, first, data) is not None:
                cells = [self.shown(row, name, data) for name in titles]
                lines.append(f"| {self.rows[row]['label']} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def table(self, rows: Iterable[str], data: str, *, to: str) -> str:
        """Rows beside each other: seed 0, and the error of all seeds over that of row `to`."""
        lines = [
            "| Quantizer | MSE, e-3 ↓ | LPIPS, e-1 ↓ | Entropy | PixelCNN | Codes in use "
            f"| MSE against {self.rows[to]['label']} | Seeds |",
            "|:--|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in rows:
            if self.value(row, "mse", data) is None:
                continue
            figures = ("mse", "lpips", "entropy", "prior_bits", "usage")
            cells = [self.shown(row, name, data) for name in figures]
            cells[-1] += "%" if cells[-1] != "–" else ""
            star = "†" if "from" in self.by_run[row, data, 0] else ""
            against = "" if row == to else self.change(row, to, "mse", data)
            lines.append(
                f"| {self.rows[row]['label']}{star} | {' | '.join(cells)} | "
                f"{against.replace(' over 3 seeds', '').replace(' over 2 seeds', '')} | "
                f"{len(self.seeds(row, 'mse', data))} |"
            )
        return "\n".join(lines)


def _in_words(ratios: Sequence[float]) -> str:
    """The mean of ratios, and from where to where they go."""
    if not ratios:
        return "not measured"
    mean = _percent(statistics.fmean(ratios))
    if len(ratios) == 1:
        return f"{mean} (one seed)"
    low, high = min(ratios), max(ratios)
    return f"{mean} ({_percent(low)} to {_percent(high)} over {len(ratios)} seeds)"


def _shown(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value * SCALE.get(name, 1):,.{DIGITS.get(name, 2)}f}"


def _percent(ratio: float) -> str:
    change = round(100 * (ratio - 1), 1)
    return f"{'+' if change > 0 else '−' if change < 0 else '±'}{abs(change):.1f}%"

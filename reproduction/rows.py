"""What a study trains: rows of a YAML file, and the runs they stand for."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Task:
    """A run: a network that is trained and measured.

    Attributes:
        row: The name of its row.
        preset: Of `mqvae train`.
        options: Of `mqvae train`, by their names without dashes.
        data: Name of the data set.
        seed: Of everything.
        prior: Options of `mqvae prior`; None of a run that gets none.
        codes: Whether it has codes.
    """

    row: str
    preset: str
    options: Mapping[str, Any]
    data: str
    seed: int
    prior: Mapping[str, Any] | None
    codes: bool = True

    @property
    def asked(self) -> dict[str, Any]:
        """All that its metrics depend on, as a line of the results has it."""
        return {
            "preset": self.preset,
            "options": dict(self.options),
            "data": self.data,
            "seed": self.seed,
            "prior": None if self.prior is None else dict(self.prior),
        }

    @property
    def key(self) -> str:
        """A short name for `asked`."""
        return _short(self.asked)

    @cached_property
    def folder(self) -> str:
        """The name of its run folder, which does not depend on the prior."""
        trained = _short({**self.asked, "prior": None})
        return f"{self.row}-{self.data}-seed{self.seed}-{trained}"

    def train_arguments(self) -> list[str]:
        """What is typed after `mqvae train`, without --out."""
        given = {"data.name": self.data, **self.options, "seed": self.seed}
        words = {n: v if isinstance(v, str) else json.dumps(v) for n, v in given.items()}
        return [self.preset, *(f"--{name}={value}" for name, value in words.items())]


def _short(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Study:
    """A file of rows.

    Attributes:
        content: What the file holds.
        scale: Name of the sizes that are laid under every row.
    """

    content: Mapping[str, Any]
    scale: str = "cpu"

    @classmethod
    def load(cls, name: str = "rate_distortion", scale: str = "cpu") -> "Study":
        """Read a study's file, in this package."""
        return cls(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), scale)

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """Rows by their names."""
        return self.content["rows"]

    def tasks(self) -> Iterator[Task]:
        """The runs, those that matter most first: `order` of the file, then seeds."""
        sizes = self.content["scales"][self.scale]
        seen = set()
        for wave in self.content["order"]:
            data = wave["data"] if self.scale == "cpu" else sizes["data"]
            for seed in wave["seeds"]:
                for row in wave["rows"]:
                    prior = {**sizes["prior"], **(sizes["samples"] if wave.get("samples") else {})}
                    wanted = prior if wave.get("prior", True) else None
                    task = self._task(row, data, seed, sizes, prior=wanted)
                    if task.key not in seen:
                        seen.add(task.key)
                        yield task

    def _task(
        self,
        row: str,
        data: str,
        seed: int,
        sizes: Mapping[str, Any],
        *,
        prior: Mapping[str, Any] | None,
    ) -> Task:
        asked = self.rows[row]
        options = {**sizes["options"], **self.content["data"].get(data, {})}
        options |= asked.get("options", {})
        options = {name: value for name, value in options.items() if value is not None}
        codes = asked.get("codes", True)
        return Task(
            row,
            asked["preset"],
            options,
            data,
            seed,
            prior if codes else None,
            codes,
        )

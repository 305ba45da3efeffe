"""Runs are trained and measured, by the program `mqvae`."""

import csv
import datetime
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from mqvae import weights
from mqvae.core.usage import CodeCounts
from reproduction.rows import Task

OF_SUMMARY = ("mse", "psnr", "accuracy", "f1", "perplexity", "usage")


class Failed(Exception):
    """A command of `mqvae` failed."""


def make(task: Task, runs: Path) -> dict[str, Any]:
    """Train what is missing of a run, measure it, and return its line of the results.

    Args:
        task: The run.
        runs: Folder of run folders.

    Raises:
        Failed: if a command fails, or the folder is of other settings.
    """
    folder = runs / task.folder
    if not (folder / "summary.json").is_file():
        if (folder / "checkpoints" / "last").exists():
            mqvae("train", "--resume", folder)
        else:
            mqvae("train", *task.train_arguments(), "--out", folder, "--overwrite")
    evaluation = folder / "evaluations" / "test-last.json"
    check(task, folder)
    if weights.find("alexnet") and "mse" in (found := _json(evaluation)) and "lpips" not in found:
        mqvae("evaluate", folder, "--metrics", "lpips")
    summary, measured = _json(folder / "summary.json"), _json(evaluation)
    figures = {name: measured[name] for name in (*OF_SUMMARY, "lpips") if name in measured}
    seconds = {"train": summary["wall_seconds"]}
    if task.codes:
        with (folder / summary["codes"]["file"]).open(newline="") as file:
            figures["entropy"] = entropy(file)
    if task.prior is not None:
        there = folder / "prior" / "summary.json"
        draws = "samples" in task.prior
        if not there.is_file() or (draws and "samples" not in _json(there)):
            options = [f"--{name.replace('_', '-')}={value}" for name, value in task.prior.items()]
            mqvae("prior", folder, *options, "--overwrite")
        prior = _json(there)
        groups = summary["codes"]["groups"]
        figures["prior_bits"] = prior["bits_per_code"] * groups
        figures["independent_bits"] = prior["independent_bits_per_code"] * groups
        if draws:
            name = prior["samples"]["distance"]
            figures[name] = prior[name]
            figures[f"{name}_reconstructions"] = prior[f"{name}_reconstructions"]
        seconds["prior"] = prior["wall_seconds"]
    return {
        "row": task.row,
        "asked": task.asked,
        "figures": {name: float(f"{value:.6g}") for name, value in figures.items()},
        "steps": summary["steps"],
        "parameters": summary["parameters"],
        "seconds": {name: round(value) for name, value in seconds.items()},
        "images": {split: each["count"] for split, each in summary["images"].items()},
        "device": summary["device"],
        "versions": summary["versions"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def entropy(counts: Iterator[str]) -> float:
    """Bits of a position's codes, Σ over groups and stages of −Σ p log₂ p.

    Args:
        counts: Lines of a run's code_counts.csv: how often each code was chosen, of each group.
    """
    columns = ("group", "code", "count")
    rows = torch.tensor([[int(row[name]) for name in columns] for row in csv.DictReader(counts)])
    codes, groups = (int(rows[:, i].max()) + 1 for i in (1, 0))
    counted = CodeCounts(codes, groups)
    counted.add_table(rows)
    return counted.entropy()


def check(task: Task, folder: Path) -> None:
    """Refuse a run folder that was trained with other settings, as one put there by hand may be.

    Raises:
        Failed: says which setting differs.
    """
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    given = {"data.name": task.data, **task.options, "seed": task.seed}
    for name, value in given.items():
        found: Any = config
        for part in name.split("."):
            if "init_args" in found:
                found = found["init_args"]
            found = found[int(part)] if isinstance(found, list) else found[part]
        if isinstance(found, Mapping) and isinstance(value, str):
            found = found["class_path"].removeprefix("mqvae.")
        if isinstance(value, str | int | float) and str(found) != str(value):
            raise Failed(f"{folder} has {name} {found}, expected {value}")


@contextmanager
def claimed(task: Task, runs: Path) -> Iterator[bool]:
    """Whether this process alone works at a run, inside."""
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f".{task.folder}.claim").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def mqvae(*arguments: object) -> None:
    """A command of the program.

    Raises:
        Failed: if its exit code is not 0.
    """
    typed = list(map(str, arguments))
    done = subprocess.run([sys.executable, "-m", "mqvae", *typed], stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Failed(f"mqvae {' '.join(typed)}: exit code {done.returncode}")


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))

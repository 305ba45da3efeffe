"""Run folders, read for the page."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mqvae.errors import MqvaeError
from mqvae.report.run import Evaluation, Figure, Picture, Run, is_number, mapping
from mqvae.runs.results import damaged, read_counts, read_json, read_metrics, read_yaml

MAIN = "test-last"  # what of `evaluations` the page is about
ENDS = ("summary.json", "failure.json")  # one of them is there when training has ended
FILES = ("metrics.csv", *ENDS, "diagnosis.json", "prior/summary.json")
KEPT = ("figures", "protocol", "pictures", "codes", "checkpoint", "step", "weights")


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


def state_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a file that the page of a run is made of does."""
    found = []
    for file in (*(folder / name for name in FILES), *sorted(folder.glob("evaluations/*"))):
        with suppress(FileNotFoundError):
            found.append((str(file), file.stat().st_mtime_ns, file.stat().st_size))
    return tuple(found)


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
    codes = mapping(summary.get("codes"))
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


def _read_figures(file: Path, content: dict[str, Any]) -> dict[str, Figure]:
    found = {}
    for key, each in mapping(content.get("figures")).items():
        fields = mapping(each)
        better, scale = fields.get("better"), fields.get("scale", 1.0)
        if better not in ("lower", "higher", None):
            raise damaged(file, f"expected {key} better lower, higher or null, got {better!r}")
        if not is_number(scale) or not 0 < scale < math.inf:
            raise damaged(file, f"expected a positive scale of {key}, got {scale!r}")
        title, protocol, unit = (str(fields.get(k, "")) for k in ("title", "protocol", "unit"))
        found[key] = Figure(title or key, better, protocol.rstrip("."), unit, float(scale))
    return found


def _read_pictures(file: Path, folder: Path, content: dict[str, Any]) -> tuple[Picture, ...]:
    found, listed = [], content.get("pictures")
    for each in listed if isinstance(listed, list) else []:
        fields = mapping(each)
        path = _inside(file, folder, fields.get("file"))
        title, rows, columns = (str(fields.get(k, k)) for k in ("title", "rows", "columns"))
        reference = fields.get("reference") is True
        found.append(Picture(str(fields.get("kind")), path, title, reference, rows, columns))
    return tuple(found)


def _inside(file: Path, folder: Path, given: object) -> Path:
    """A file of the run that another one of it names."""
    path = Path(str(given))
    # A page is passed on: it must hold nothing but what lies in the run.
    if path.is_absolute() or ".." in path.parts:
        raise damaged(file, f"expected files in the run's folder, got {path}")
    return folder / path

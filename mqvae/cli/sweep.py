"""`mqvae train PRESET --sweep NAME=VALUE,VALUE …`: plain runs side by side, and one report."""

import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mqvae.errors import MqvaeError

STOPPED = (130, 143)  # exit codes of Ctrl-C and of SIGTERM
FILE = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """A parsed command line with --sweep.

    Attributes:
        out: Folder of the runs.
        overwrite: Replace runs that are there.
        fixed: The arguments that all runs share.
        swept: Settings and the values that they take.
    """

    out: Path
    overwrite: bool
    fixed: list[str]
    swept: Mapping[str, list[str]]

    def runs(self) -> dict[Path, list[str]]:
        """The runs' folders and their own arguments, every combination of values."""
        found = {}
        for values in itertools.product(*self.swept.values()):
            chosen = dict(zip(self.swept, values, strict=True))
            name = ",".join(f"{key}={value}" for key, value in chosen.items())
            own = [part for key, value in chosen.items() for part in (f"--{key}", value)]
            found[self.out / re.sub(r"[^\w.,=+-]+", "-", name)] = own
        return found


def sweep(arguments: list[str], train: Callable[[list[str]], int]) -> int:
    """Train every combination, one after the other; what is finished is not trained again.

    Args:
        arguments: What is typed after `mqvae train`.
        train: The command that trains one.

    Returns:
        Exit code: 1 where a run failed, though the others are trained.
    """
    asked = taken_apart(arguments)
    _check(asked)
    from mqvae.runs import Run
    from mqvae.training import TrainingFailed

    failed = False
    runs = asked.runs()
    for number, (folder, own) in enumerate(runs.items(), start=1):
        print(f"run {number} of {len(runs)}: {folder.name}", file=sys.stderr)
        there = Run.resumable(folder) and not asked.overwrite
        plain = [*asked.fixed, *own, "--out", str(folder)]
        try:
            # What was stopped before its first checkpoint begins anew.
            code = train(["--resume", str(folder)] if there else [*plain, "--overwrite"])
        except TrainingFailed as failure:
            print(f"mqvae: {failure}", file=sys.stderr)
            failed = True
            continue
        if code in STOPPED:
            command = shlex.join(["mqvae", "train", *arguments])
            print(f"the same command resumes the sweep\n  {command}", file=sys.stderr)
            return code
    _conclude(asked.out, list(runs))
    return int(failed)


def taken_apart(arguments: list[str]) -> Sweep:
    """Parse what follows `mqvae train`, --sweep among it.

    Raises:
        ValueError: if what is swept is not as NAME=VALUE,VALUE.
    """
    fixed, swept, out, overwrite = [], dict[str, list[str]](), None, False
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--sweep":
            while rest and re.match(r"\w[\w.-]*=", rest[0]):
                name, _, values = rest.pop(0).partition("=")
                # Commas within brackets belong to a value.
                swept[name] = re.split(r",(?![^\[({]*[\])}])", values)
        elif argument.partition("=")[0] == "--out":
            out = argument.partition("=")[2] or (rest.pop(0) if rest else None)
        elif argument == "--overwrite":
            overwrite = True
        else:
            fixed.append(argument)
    if not swept or not all(value for values in swept.values() for value in values):
        raise MqvaeError(
            "--sweep takes settings and their values, as in --sweep "
            "optimizer.codebook_lr=3e-3,1e-2 seed=0,1,2."
        )
    name = re.sub(r"\W+", "-", Path(fixed[0]).stem if fixed else "")
    return Sweep(Path(out or f"runs/sweep-{name}"), overwrite, fixed, swept)


def _check(asked: Sweep) -> None:
    """Refuse what cannot be trained before the first run, and another sweep's folder.

    Raises:
        ValueError: says what is wrong.
    """
    from mqvae.config import from_arguments
    from mqvae.files import read_json, write_whole
    from mqvae.training import tried

    every = []
    for folder, own in asked.runs().items():
        with _named(folder):
            settings, _, _ = from_arguments([*asked.fixed, *own])
        if settings.trainer.devices > 1:
            raise MqvaeError("--sweep trains in one process: leave trainer.devices out.")
        every.append(settings)
    checked = tried(every)
    for folder in asked.runs():
        with _named(folder):  # the parts of each are put together, and taken apart again
            next(checked)
    file = asked.out / FILE
    if file.is_file() and not asked.overwrite:
        before = read_json(file)["arguments"]
        if before != asked.fixed:
            raise MqvaeError(
                f"{asked.out} holds the runs of `{shlex.join(['mqvae', 'train', *before])}` with "
                "other settings: choose another --out, or add --overwrite."
            )
    asked.out.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps({"arguments": asked.fixed}) + "\n")


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Inside, an error names the combination of the sweep that it is about."""
    try:
        yield
    except MqvaeError as error:
        raise MqvaeError(f"{folder.name}: {error}") from error


def _conclude(out: Path, folders: list[Path]) -> None:
    """A line of metrics for each run that is finished, and the report of all."""
    from mqvae.files import read_json
    from mqvae.optional import ExtraMissing
    from mqvae.report import write_report

    width = max(len(folder.name) for folder in folders)
    finished = [folder for folder in folders if (folder / "summary.json").is_file()]
    for folder in finished:
        summary = read_json(folder / "summary.json")
        metrics = "  ".join(f"{name} {summary[name]:.4g}" for name in summary["figures"])
        print(f"{folder.name:<{width}}  {metrics}")
    if not finished:
        return
    try:
        print(f"report: {write_report(finished, out / 'report.html')}")
    except ExtraMissing as missing:
        print(f"no report: {missing}", file=sys.stderr)

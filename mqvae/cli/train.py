"""`mqvae train`."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mqvae.cli.parser import AcceptChanged, parser_of
from mqvae.cli.sweep import sweep
from mqvae.cli.terminal import print_metrics, quiet, to_the_end
from mqvae.errors import MqvaeError
from mqvae.optional import EXTRAS

if TYPE_CHECKING:
    from mqvae.config import Settings
    from mqvae.training import Training


def train(arguments: list[str]) -> int:
    from mqvae.config.choosing import completed

    arguments, why = completed(arguments)
    if why and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(why, file=sys.stderr)
    if "--sweep" in arguments:
        return sweep(arguments, train)
    quiet()
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise MqvaeError(
                f"{argument!a} is no text in this locale, so no file of settings can hold it: "
                "give it a name in UTF-8, or set LC_ALL=C.UTF-8."
            ) from None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    training = _training(arguments)
    first, folder = training.processes.first, training.run.folder
    go_on = f"mqvae train --resume {shlex.quote(str(folder))}"
    if training.step == training.settings.steps and _is_measured(folder, training.step):
        if first:
            print(
                f"{folder} is complete: all {training.step:,} steps are done and measured in "
                f"{folder / 'summary.json'}"
            )
        return 0
    if first:
        processes = training.processes.count
        print(
            f"{training.settings.name}: {training.splits.train.name}, "
            f"{len(training.splits.train):,} images, {training.settings.steps:,} steps → {folder}"
            + (f" (from step {training.step:,})" if training.step else "")
            + (f", in {processes} processes" if processes > 1 else ""),
            file=sys.stderr,
        )
    summary, code = to_the_end(training.fit, training.settings.steps, go_on, speaks=first)
    if first and summary is not None:
        print_metrics(summary, summary["figures"])
        if training.settings.trainer.fast_dev_run:
            print("fast_dev_run: everything works; these metrics mean nothing")
            return code
        again = shlex.join(["mqvae", "train", f"{folder}/config.yaml", "--out", f"{folder}-again"])
        then = f"mqvae report {shlex.quote(str(folder))} --out report.html"
        if EXTRAS["report"].missing:
            then += "    # takes pip install 'mqvae[report]'"
        print(f"run: {folder}\nagain: {again}\nnext: {then}")
    return code


def _training(arguments: list[str]) -> "Training":
    """The training that the arguments ask for: of a new run, or of one to resume."""
    helping = any(a in ("-h", "--help", "--help-all") for a in arguments)
    if any(a.partition("=")[0] == "--resume" for a in arguments) and not helping:
        return _resumed(arguments)
    from mqvae.config import from_arguments
    from mqvae.runs import Run
    from mqvae.training import begin, restarted, resume

    settings, out, overwrite = from_arguments(arguments)
    if settings.trainer.fast_dev_run and out is None:
        out, overwrite = Path("runs") / "fast_dev_run", True
    out = out or Path("runs") / _run_name(settings)
    if restarted():
        if Run.resumable(out):
            return resume(Run(out))
        # Begun by those before, and lost before its first checkpoint.
        overwrite = overwrite or not (out / "metrics.csv").exists()
    return begin(settings, out, overwrite=overwrite)


def _resumed(arguments: list[str]) -> "Training":
    spelled = [re.sub(r"^--trainer\.(?=devices|accelerator)", "--", each) for each in arguments]
    options, others = parser_of("train", _resume).parse_known_args(spelled)
    if others:
        raise MqvaeError(
            f"--resume takes the run's own settings: leave out {' '.join(others)}. Only "
            "--steps, --devices and --accelerator may change."
        )
    return _resume(**vars(options))


def _resume(
    *,
    resume: Annotated[str, "RUN"],
    steps: Annotated[int | None, "N"] = None,
    devices: int | None = None,
    accelerator: str | None = None,
    accept_changed_data: AcceptChanged = False,
) -> Any:
    """Resume a run where it stopped.

    Args:
        resume: The run's folder.
        steps: Train on to this number of steps in all; learning rates follow warm-up and cosine
            over it (default: the run's own).
        devices: Processes on this machine (default: the run's own).
        accelerator: What it runs on (default: the run's own).
    """
    from mqvae.config import Settings
    from mqvae.runs import Run
    from mqvae.training import resume as resumed

    run = Run(resume)
    settings = Settings.of_run(run).config()
    changed = {"devices": devices, "accelerator": accelerator}
    settings["trainer"] |= {name: value for name, value in changed.items() if value is not None}
    before = settings["steps"]
    training = resumed(
        run,
        trainer=Settings.of(settings).trainer,
        steps=steps,
        accept_changed_data=accept_changed_data,
    )
    if training.settings.steps != before and training.processes.first:
        print(_stretched(training, before), file=sys.stderr)
    return training


def _stretched(training: "Training", before: int) -> str:
    """A sentence on the learning rates under another number of steps."""
    rates = ", ".join(
        f"{name} {training.parts.levels[level].param_groups[0]['lr']:.3g}"
        for level, name in (("lower", "network_lr"), ("upper", "codebook_lr"))
        if level in training.parts.levels
    )
    return (
        f"trains on to {training.settings.steps:,} steps in all instead of {before:,}; "
        f"{training.step:,} are done. Learning rates follow the schedule over "
        f"{training.settings.steps:,} steps: now {rates}. Metrics are measured at the end."
    )


def _is_measured(folder: Path, step: int) -> bool:
    """Whether summary.json is of this step: a run that trains on has an older one."""
    from mqvae.files import read_json

    file = folder / "summary.json"
    summary = read_json(file) if file.is_file() else None
    return isinstance(summary, dict) and summary.get("steps") == step


def _run_name(settings: "Settings") -> str:
    rule = str(settings.update["class_path"]).rpartition(".")[2].lower()
    name = re.sub(r"[^\w.-]+", "-", settings.data.title)
    return f"{name}-{rule}-seed{settings.seed}"

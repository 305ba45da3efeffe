"""`mqvae train`."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from mqvae.cli.parser import explained, parser_of


def train(arguments: list[str]) -> int:
    import os

    resuming = any(a.partition("=")[0] == "--resume" for a in arguments)
    if not resuming or any(a in ("-h", "--help") for a in arguments):
        settings, out, overwrite = train_settings(arguments)
        resume = None
    else:
        parser = parser_of("train", "Go on with a run where it stopped.")
        parser.add_argument("--resume", metavar="RUN", required=True, help="the run's folder")
        options, others = parser.parse_known_args(arguments)
        if others:
            raise ValueError(
                f"--resume goes on with the run's own settings: leave out {' '.join(others)}."
            )
        from mqvae.runs import Run
        from mqvae.trainer import Settings

        resume, out, overwrite = Run(options.resume), None, False
        settings = Settings.of_run(resume)

    from mqvae.trainer import Interrupted, Training

    quiet()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    training = Training(settings, out, resume=resume, overwrite=overwrite)
    folder = training.run.folder
    go_on = f"mqvae train --resume {shlex.quote(str(folder))}"
    if training.step == training.settings.steps and (folder / "summary.json").is_file():
        print(
            f"{folder} is complete: all {training.step:,} steps are done and measured in "
            f"{folder / 'summary.json'}"
        )
        return 0
    print(
        f"{training.settings.name}: {training.train_images.name}, "
        f"{len(training.train_images):,} images, {training.settings.steps:,} steps → {folder}"
        + (f" (from step {training.step:,})" if resume else ""),
        file=sys.stderr,
    )
    try:
        summary = training.fit()
    except Interrupted as stop:
        print(
            f"stopped after step {stop.step:,} of {training.settings.steps:,}; go on with\n"
            f"  {go_on}",
            file=sys.stderr,
        )
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print(f"stopped at once; go on from the last checkpoint with\n  {go_on}", file=sys.stderr)
        return 130
    print_figures(summary)
    print(f"run: {folder}\nnext: mqvae report {shlex.quote(str(folder))} --out report.html")
    return 0


def train_settings(arguments: list[str]) -> tuple[Any, Path, bool]:
    """The settings that a preset and options of the command line make."""
    import yaml

    from mqvae.config import load_preset, plain, presets_in_words

    helping = any(a in ("-h", "--help") or ".help" in a for a in arguments)
    names = [a for a in arguments[:1] if not a.startswith("-")]
    if not names and not helping:
        raise ValueError(
            "train needs a preset or a YAML file, as in `mqvae train digits-tiny`. "
            f"{presets_in_words()}"
        )
    preset = load_preset(names[0]) if names else load_preset("paper")
    parser = _settings_parser()
    config = f"--config={yaml.safe_dump(preset)}"
    try:
        found = parser.parse_args([config, *arguments[len(names) :]])
    except Exception as error:
        text = explained(str(error), parser)
        if names and _fails(parser, [config], str(error)):
            text = f"{names[0]}: {text.removeprefix('--')}"
        raise ValueError(text) from error
    values = found.as_dict()
    from mqvae.trainer import Settings, method_name

    out = values.pop("out", None) or Path("runs") / _run_name(values)
    overwrite = values.pop("overwrite", False)
    values.pop("config", None)
    settings = Settings.of(
        {
            **values,
            "name": values["name"] or method_name(values["update"]["class_path"]),
            "data": plain(_options("data", values)),
            "network": plain(_options("network", values)),
            "optimizer": plain(_options("optimizer", values)),
            "trainer": plain(_options("trainer", values)),
        }
    )
    return settings, Path(out), overwrite


def _options(group: str, values: dict[str, Any]) -> Any:
    from mqvae import config

    kind, given = getattr(config, f"{group.capitalize()}Options"), values.get(group)
    if not isinstance(given, dict | None):
        raise ValueError(f"{group} must hold settings as 'name: value', got {given!r}.")
    return kind(**(given or {}))


def _fails(parser: Any, arguments: list[str], message: str) -> bool:
    """Whether these arguments alone fail with this message."""
    try:
        parser.parse_args(arguments)
    except Exception as error:
        return str(error) == message
    return False


def _run_name(values: dict[str, Any]) -> str:
    rule = str(values["update"]["class_path"]).rpartition(".")[2].lower()
    name = re.sub(r"[^\w.-]+", "-", Path(str(values["data"]["name"])).name)
    return f"{name}-{rule}-seed{values['seed']}"


def _settings_parser() -> Any:
    import textwrap

    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    import mqvae
    import mqvae.core.gumbel
    import mqvae.core.updates  # classes answer to their names once they are known
    from mqvae.config import (
        DataOptions,
        NetworkOptions,
        OptimizerOptions,
        TrainerOptions,
        preset_names,
    )

    class Help(DefaultHelpFormatter):
        def _fill_text(self, text: str, width: int, indent: str) -> str:
            # Names of presets are not broken at their hyphens.
            return textwrap.fill(text, width, break_on_hyphens=False)

    parser = ArgumentParser(
        prog="mqvae train PRESET_OR_YAML",
        formatter_class=Help,
        description="Train a network. Options change what the preset says; "
        "`--update NAME` takes a rule and `--update.OPTION` its arguments. "
        "`mqvae train --resume RUN` goes on where RUN stopped. "
        f"Presets: {', '.join(preset_names())}.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file over the preset")
    parser.add_argument("--out", type=str, help="the run's folder (default: runs/DATA-RULE-SEED)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run at --out")
    parser.add_argument("--name", type=str, help="label in tables and plots (default: the method)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, k-means and order")
    parser.add_argument("--steps", type=int, default=1000, help="number of updates")
    parser.add_argument("--data", type=DataOptions, default=DataOptions())
    parser.add_argument("--network", type=NetworkOptions, default=NetworkOptions())
    parser.add_subclass_arguments(mqvae.Quantizer, "quantizer", instantiate=False, required=True)
    parser.add_subclass_arguments(
        mqvae.Update,
        "update",
        skip={"network", "loss", "lower", "upper"},
        instantiate=False,
        required=True,
    )
    parser.add_argument("--optimizer", type=OptimizerOptions, default=OptimizerOptions())
    parser.add_argument("--trainer", type=TrainerOptions, default=TrainerOptions())
    return parser


def print_figures(figures: Any) -> None:
    for name in ("mse", "psnr", "perplexity", "usage", "gradient_gap"):
        print(f"{name:<13} {figures[name]:.6g}")


def quiet() -> None:
    """Keep libraries' advice to developers off the user's terminal."""
    import logging
    import warnings

    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)

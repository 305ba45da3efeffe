"""Functions become commands."""

import argparse
import difflib
import importlib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = {
    "train": "train a network, or go on with a run that stopped",
    "evaluate": "measure a run on its test images",
    "encode": "images to codes",
    "decode": "codes back to images",
    "report": "runs to one HTML page",
    "bench": "what steps, the quantizer and whole runs cost on this machine",
}

USAGE = """usage: mqvae COMMAND …

Trains vector-quantized networks whose codebook is learned by hypergradient.

commands:
{commands}

`mqvae COMMAND --help` tells more of each. Every command takes --debug, which shows
the traceback of an error.

first steps:
  mqvae train digits-tiny --out runs/first      seconds, on data that is already there
  mqvae train fashion-mnist-demo --update Joint --optimizer.codebook_lr 3e-4
  mqvae report runs/* --out report.html
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `mqvae`; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(lines)), end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        print(f"mqvae {_version()}")
        return 0
    if name not in COMMANDS:
        return _fail(
            f"there is no command '{name}'.{_nearest(name, COMMANDS)} Commands: "
            f"{', '.join(COMMANDS)}."
        )
    debug = "--debug" in rest
    rest = [a for a in rest if a != "--debug"]
    command: Callable[[list[str]], int | None] = globals()[f"_{name}"]
    try:
        return command(rest) or 0
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        return _fail(_text(error))
    except KeyboardInterrupt:
        print("mqvae: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ == "NotFinite":
            if debug:
                traceback.print_exc()
            print(f"mqvae: {error}", file=sys.stderr)
            return 1
        if debug:
            traceback.print_exc()
            return 1
        print(
            f"mqvae: unexpected {type(error).__name__}: {error}\n"
            "This looks like a fault of mqvae; --debug shows where it happened.",
            file=sys.stderr,
        )
        return 1


# -- commands ------------------------------------------------------------------------------------


def _train(arguments: list[str]) -> int:
    import os

    resuming = any(a.partition("=")[0] == "--resume" for a in arguments)
    if not resuming or any(a in ("-h", "--help") for a in arguments):
        settings, out, overwrite = _train_settings(arguments)
        resume = None
    else:
        parser = _parser("train", "Go on with a run where it stopped.")
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

    _quiet()
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
    _print_figures(summary)
    print(f"run: {folder}\nnext: mqvae report {shlex.quote(str(folder))} --out report.html")
    return 0


def _train_settings(arguments: list[str]) -> tuple[Any, Path, bool]:
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
        text = _explain(str(error), parser)
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


def _evaluate(arguments: list[str]) -> int:
    parser = _parser("evaluate", "Measure a run on its test images; writes evaluation.json.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    options = parser.parse_args(arguments)
    from mqvae.metrics import evaluate
    from mqvae.tokenizer import Tokenizer
    from mqvae.trainer import device_name, load_split, versions, write_evaluation_files

    tokenizer = Tokenizer.from_run(options.run, checkpoint=options.checkpoint)
    images = load_split(tokenizer.settings.data, options.split)
    result = evaluate(tokenizer.network, images, device=tokenizer.device)
    write_evaluation_files(tokenizer.run, tokenizer.network, images, result)
    tokenizer.run.write_json(
        "evaluation.json",
        {
            **result.figures,
            "checkpoint": options.checkpoint,
            "step": tokenizer.step,
            "protocol": result.protocol,
            "device": device_name(tokenizer.device),
            "versions": versions(),
        },
    )
    _print_figures(result.figures)
    print(f"written: {tokenizer.run.folder / 'evaluation.json'}")
    return 0


def _encode(arguments: list[str]) -> int:
    parser = _parser("encode", "Images to codes.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="an image file, a folder of images, or a split of the run's dataset (train, test)",
    )
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="where the codes go")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.npz")
    parser.add_argument(
        "--fit",
        action="store_true",
        help="resize, crop and convert images to what the run was trained on",
    )
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    options = parser.parse_args(arguments)
    from mqvae.tokenizer import Tokenizer

    out = _free(options.out, overwrite=options.overwrite)
    tokenizer = Tokenizer.from_run(options.run, checkpoint=options.checkpoint)
    codes = tokenizer.encode_images(tokenizer.find_images(options.images, fit=options.fit))
    codes.save(out)
    shape = " × ".join(map(str, codes.codes.shape[1:]))
    print(
        f"{len(codes.codes):,} images, {shape} codes each, of {codes.num_codes:,}: {out}\n"
        f"back: mqvae decode {shlex.quote(options.run)} {shlex.quote(str(out))} --out DIR"
    )
    return 0


def _decode(arguments: list[str]) -> int:
    parser = _parser("decode", "Codes back to images, as PNG files.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("codes", metavar="CODES.npz")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the images")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder in use")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    options = parser.parse_args(arguments)
    from mqvae.tokenizer import Codes, Tokenizer

    out = Path(options.out)
    if out.is_file():
        raise ValueError(f"{out} is a file: --out takes a folder for the images.")
    if out.is_dir() and any(out.iterdir()) and not options.overwrite:
        raise ValueError(f"{out} exists already: choose another --out, or add --overwrite.")
    tokenizer = Tokenizer.from_run(options.run, checkpoint=options.checkpoint)
    codes = Codes.load(options.codes)
    written = tokenizer.decode_to_files(codes, out)
    print(f"{written:,} images: {out}")
    return 0


def _report(arguments: list[str]) -> int:
    parser = _parser("report", "Runs to one self-contained HTML page.")
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--out", default="report.html", metavar="FILE.html")
    parser.add_argument("--title")
    options = parser.parse_args(arguments)
    from mqvae.report import write_report

    print(write_report([Path(r) for r in options.runs], Path(options.out), title=options.title))
    return 0


def _bench(arguments: list[str]) -> int:
    from mqvae.bench import SECTIONS, USUAL, measure

    parser = _parser(
        "bench",
        "Measures on this machine; prints tables and writes them, with plots, to "
        "OUT/performance.md and OUT/performance/.",
    )
    parser.add_argument(
        "sections",
        metavar="SECTION",
        nargs="*",
        help=f"of {', '.join(SECTIONS)}; without any: {', '.join(USUAL)}",
    )
    parser.add_argument("--out", default="bench", metavar="DIR")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this")
    options = parser.parse_args(arguments)
    if unknown := [s for s in options.sections if s not in SECTIONS]:
        raise ValueError(
            f"there is no section '{unknown[0]}'.{_nearest(unknown[0], SECTIONS)} Sections: "
            f"{', '.join(SECTIONS)}."
        )
    if options.rounds is not None and options.rounds < 2:
        raise ValueError(f"--rounds must be 2 or more, got {options.rounds}: one has no spread.")
    out = Path(options.out)
    if out.is_file():
        raise ValueError(f"{out} is a file: --out takes a folder.")
    _quiet()
    for section in options.sections or USUAL:
        for table in measure(
            section, out, device=options.device, rounds=options.rounds, only=options.only
        ):
            print(table.text(), end="\n\n", flush=True)
    print(out / "performance.md")
    return 0


# -- helpers -------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Unknown options are answered with the nearest name."""

    def error(self, message: str) -> NoReturn:
        known = [o for action in self._actions for o in action.option_strings]
        raise ValueError(_with_nearest_option(message, known))


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"mqvae {command}", description=description, allow_abbrev=False)


def _with_nearest_option(message: str, known: Sequence[str]) -> str:
    unknown = re.search(r"[Uu]nrecognized arguments: ([^\s=]+)", message)
    if not unknown:
        return f"{message}."
    if not unknown[1].startswith("-"):
        return f"there is an argument too many: '{unknown[1]}'."
    return f"there is no option {unknown[1]}.{_nearest(unknown[1], known)} --help lists them."


def _explain(message: str, parser: Any) -> str:
    """jsonargparse's message, in the words of somebody who typed an option."""
    from mqvae.config import nearest_name

    known = [o for action in parser._actions for o in action.option_strings]
    if "nrecognized arguments" in message:
        return _with_nearest_option(message, known)
    # From the outside in: where it is, and what was being made there.
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    classes = re.findall(r"Problem with given class_path '([\w.]+)'", message)
    key = ".".join(keys)

    if file := re.search(r"File does not exist: '(.+)'", message):
        return f"there is no file {file[1]}."
    if "Unable to load config" in message:
        example = next((o for o in known if o.startswith(f"--{keys[0]}.")), "")
        return f"--{keys[0]} takes a YAML file; a single setting goes as in {example}."
    if required := re.search(r"arguments are required: (.+)", message):
        return f"{required[1]} must be set: `base: paper` in the file is a beginning."
    if refused := re.search(
        r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", message
    ):
        name = ".".join(filter(None, refused.groups()))
        if not classes:
            settings = [o.lstrip("-") for o in known]
            return f"there is no setting '{name}'.{nearest_name(name, settings)}"
        accepted = _arguments_of(classes[-1])
        return (
            f"there is no option --{key}.{name} of {classes[-1].rpartition('.')[2]}."
            f"{nearest_name(name, accepted)} Options: {', '.join(accepted) or 'none'}."
        )
    missing = re.search(r"(?:has no attribute|No module named) '", message)
    unknown = re.search(r"(?:dot import path string:|Import path) (\S+)", message)
    if unknown or (missing and classes):
        name = (unknown[1] if unknown else classes[-1]).removeprefix("mqvae.")
        choices = _known_classes(key)
        return (
            f"--{key} has no choice '{name}'.{nearest_name(name, choices)} "
            f"Choices: {', '.join(choices)}."
        )
    kinds = [k for k in re.findall(r"Expected an? <class '(\w+)'>", message) if k != "NoneType"]
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if kinds and value:
        return f"--{key} expects {kinds[0]}, got '{value[1].strip()}'."
    if "Not a valid subclass" in message and value:
        return f"--{key} expects one of {', '.join(_known_classes(key))}, got '{value[1]}'."
    # A range that a class checks by itself says so in its own words.
    return re.sub(r"\s*\n\s*(- )?", " ", message).strip()


def _arguments_of(class_path: str) -> list[str]:
    import inspect

    module, _, name = class_path.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), name))
    return [p for p in signature.parameters if p not in ("network", "loss", "lower", "upper")]


def _known_classes(key: str) -> list[str]:
    import inspect

    import mqvae

    base: type = {
        "update": mqvae.Update,
        "quantizer": mqvae.Quantizer,
        "stages": mqvae.VectorQuantizer,
        "codebook": mqvae.CodebookMap,
        "distance": mqvae.Distance,
        "estimator": mqvae.Estimator,
        "replacement": mqvae.Replacement,
        "hypergradient": mqvae.HypergradientRule,
        "look_ahead": mqvae.LookAhead,
    }.get(key.rpartition(".")[2], mqvae.Derivative)
    public = [getattr(mqvae, name) for name in mqvae.__all__]
    return [
        kind.__name__
        for kind in public
        if isinstance(kind, type)
        and issubclass(kind, base)
        and not inspect.isabstract(kind)
        and kind is not mqvae.LookAhead
    ]


def _nearest(name: str, known: Sequence[str] | dict[str, str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def _free(path: str, *, overwrite: bool) -> Path:
    out = Path(path)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: --out takes a file name, as in codes.npz.")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists already: choose another --out, or add --overwrite.")
    return out


def _print_figures(figures: Any) -> None:
    for name in ("mse", "psnr", "perplexity", "usage", "gradient_gap"):
        print(f"{name:<13} {figures[name]:.6g}")


def _quiet() -> None:
    """Keep libraries' advice to developers off the user's terminal."""
    import logging
    import warnings

    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error) or type(error).__name__


def _fail(message: str) -> int:
    print(f"mqvae: error: {message}", file=sys.stderr)
    return 2


def _version() -> str:
    from importlib.metadata import version

    return version("mqvae")

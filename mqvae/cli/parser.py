"""Options, and what is said of those that do not fit."""

import argparse
import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mqvae.errors import MqvaeError, did_you_mean

if TYPE_CHECKING:
    from mqvae.refine.refinement import Refinement
    from mqvae.tokenizer import Tokenizer
    from mqvae.training import Processes

ADVICE = {
    errno.EACCES: " Take another path, or ask for the right to use this one.",
    errno.ENOENT: " Check the path.",
    errno.ENOSPC: " Make room, or take a path on another disk.",
    errno.EROFS: " Take a path that can be written to.",
}


class _Parser(argparse.ArgumentParser):
    """Unknown options are answered with the nearest name."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        options, others = self.parse_known_args(args, namespace)
        if others:
            name = others[0].partition("=")[0]
            if not name.startswith("-"):
                raise MqvaeError(f"there is an argument too many: '{name}'.")
            known = [o for action in self._actions for o in action.option_strings]
            raise MqvaeError(
                f"there is no option {name}.{did_you_mean(name, known)} --help lists them."
            )
        return options

    def error(self, message: str) -> NoReturn:
        raise MqvaeError(f"{message}.")


def parser_of(command: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"mqvae {command}", description=description, allow_abbrev=False)


def also(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    """Read an option's older spelling for one version more; no help lists it."""
    parser._option_string_actions[old] = parser._option_string_actions[new]


def add_run(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """RUN, or several: the folder of a run, or the name of a tokenizer.

    Args:
        parser: Takes the argument.
        many: Take one or more, as `runs`.
    """
    parser.add_argument(
        "runs" if many else "run",
        metavar="RUN",
        nargs="+" if many else None,
        action=_AsRun,
        help="a run's folder, or a tokenizer of `mqvae pretrained` by its name",
    )


class _AsRun(argparse.Action):
    """Keeps folders of runs; not a type, whose errors argparse words anew."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        many = isinstance(values, list)
        setattr(namespace, self.dest, [_run(v) for v in values] if many else _run(values))


def _run(name: str) -> str:
    if os.path.isfile(name) or os.path.isfile(os.path.join(name, "config.yaml")):
        return name  # without importing anything
    from mqvae.tokenizer.pretrained import run_folder

    return run_folder(name)


def add_machine(
    parser: argparse.ArgumentParser, shared: str = "", *, default: str | None = "auto"
) -> None:
    """--accelerator and, where processes share something, --devices; as a run's `trainer`.

    Args:
        parser: Takes the options.
        shared: What processes share; empty where there is one.
        default: Accelerator if none is given; None for the run's own.
    """
    parser.add_argument(
        "--accelerator",
        default=default,
        choices=("auto", "cpu", "cuda", "mps"),
        help="what it runs on; " + ("a GPU if there is one" if default else "the run's own"),
    )
    if shared:
        parser.add_argument(
            "--devices", type=int, default=1, metavar="N", help=f"processes that share {shared}"
        )


def add_accept(parser: argparse.ArgumentParser) -> None:
    """--accept-changed-data, of all commands that use a run's own images."""
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="use the images that are there now, though they are not those that the run had; what "
        "is written says so",
    )


def add_refinement(parser: argparse.ArgumentParser) -> None:
    """--refine, and what belongs to it."""
    parser.add_argument(
        "--refine",
        type=int,
        metavar="PASSES",
        help="look for better codes than the nearest by so many passes through the decoder and "
        "back (default: nearest codes)",
    )
    parser.add_argument(
        "--bits-weight",
        type=float,
        metavar="X",
        help="with --refine: what a bit of an image's codes may cost in its loss; try 1e-5 "
        "(default: 0)",
    )
    parser.add_argument(
        "--bits-of",
        choices=("codebook", "prior"),
        help="with --bits-weight: what counts the bits, a codebook that was trained with a rate or "
        "the run's prior (default: codebook)",
    )


def refinement_of(options: argparse.Namespace) -> "Refinement | None":
    """The refinement that `add_refinement`'s options ask for, without the prior.

    Raises:
        ValueError: if a number is out of range, or an option is missing that others belong to.
    """
    if options.bits_of is not None and options.bits_weight is None:
        raise MqvaeError("--bits-of says what counts bits, which weigh nothing: add --bits-weight.")
    if options.refine is None:
        if options.bits_weight is not None:
            raise MqvaeError("--bits-weight is of refined codes: add --refine 10.")
        return None
    from mqvae.refine.refinement import Refinement

    return Refinement(options.refine, bits_weight=options.bits_weight or 0.0)


def with_prior(
    refine: "Refinement | None", options: argparse.Namespace, tokenizer: "Tokenizer"
) -> "Refinement | None":
    """The refinement with the run's prior, where that counts the bits.

    Raises:
        ValueError: if the run has none.
    """
    if refine is None or options.bits_of != "prior":
        return refine
    from mqvae.prior import load_prior

    return replace(refine, prior=load_prior(tokenizer))


def processes_of(options: argparse.Namespace) -> "Processes":
    """The processes that `add_machine`'s options ask for, met and ready.

    Raises:
        ValueError: if this machine has no such accelerator, or not as many.
    """
    from mqvae.config import Trainer
    from mqvae.training import Processes

    return Processes(
        Trainer(accelerator=options.accelerator, devices=getattr(options, "devices", 1))
    )


def folder_for(path: str, *, overwrite: bool) -> Path:
    """The folder that --out names.

    Raises:
        ValueError: if it is a file, or is in use and should not be written into.
    """
    out = Path(path)
    if out.is_file():
        raise MqvaeError(f"{out} is a file: --out takes a folder.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise MqvaeError(f"{out} exists already: choose another --out, or add --overwrite.")
    return out


def file_for(path: str, *, overwrite: bool) -> Path:
    """The file that --out names.

    Raises:
        ValueError: if it is a folder, or is there and should not be replaced.
    """
    out = Path(path)
    if out.is_dir():
        raise MqvaeError(f"{out} is a folder: --out takes a file name, as in codes.npz.")
    if out.exists() and not overwrite:
        raise MqvaeError(f"{out} exists already: choose another --out, or add --overwrite.")
    return out


def text_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        # A file is written beside its place and moved there: that is the place to speak of.
        name = re.sub(r"(?:\.\d+)?\.partial$", "", str(error.filename))
        return f"{name}: {error.strerror}.{ADVICE.get(error.errno or 0, '')}"
    return str(error) or type(error).__name__

"""A command's options, from its function; and errors for those that do not fit."""

import argparse
import errno
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    get_args,
    get_origin,
    get_type_hints,
)

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

# Parameters of several commands: type, placeholder in the help, and meaning.
RunName = Annotated[str, "RUN", "A run's folder, or a tokenizer of `mqvae pretrained` by its name"]
Checkpoint = Annotated[Literal["last", "best"], "", "Which of the run's checkpoints"]
Accelerator = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], "", "What it runs on; auto is a GPU if there is one"
]
AcceptChanged = Annotated[
    bool,
    "",
    "Use the images that are there now, though they are not those that the run had; what is "
    "written says so",
]
Refine = Annotated[
    int | None,
    "PASSES",
    "Look for better codes than the nearest by so many passes through the decoder and back "
    "(default: nearest codes)",
]
BitsWeight = Annotated[
    float | None,
    "X",
    "With --refine: what a bit of an image's codes may cost in its loss; try 1e-5 (default: 0)",
]
BitsOf = Annotated[
    Literal["codebook", "prior"] | None,
    "",
    "With --bits-weight: what counts the bits, a codebook that was trained with a rate or the "
    "run's prior (default: codebook)",
]


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


def parser_of(command: str, function: Callable[..., Any]) -> argparse.ArgumentParser:
    """The parser of a command.

    Positional parameters of its function are arguments, keyword-only ones options. A hint may be
    `Annotated` with placeholder and meaning; other meanings are in the docstring. `**settings` are
    the fields of the dataclass that it is annotated with, as far as they are given.
    """
    from docstring_parser import parse

    page = parse(function.__doc__ or "")
    words = " ".join(filter(None, (page.short_description, page.long_description)))
    parser = _Parser(prog=f"mqvae {command}", description=words, allow_abbrev=False)
    hints = get_type_hints(function, include_extras=True)
    meanings = {each.arg_name: each.description or "" for each in page.params}
    for name, parameter in signature(function).parameters.items():
        hint = hints.get(name, str)
        if parameter.kind is Parameter.VAR_KEYWORD:
            fields = get_args(hint)[1]
            types, told = get_type_hints(fields), parse(fields.__doc__ or "").params
            for each in told:
                own = signature(fields).parameters[each.arg_name]
                meant = {each.arg_name: each.description or ""}
                _add(parser, own, types[each.arg_name], meant, default=argparse.SUPPRESS)
        else:
            _add(parser, parameter, hint, meanings, default=parameter.default)
    return parser


def _add(
    parser: argparse.ArgumentParser,
    parameter: Parameter,
    hint: Any,
    meanings: Mapping[str, str],
    *,
    default: Any,
) -> None:
    """Add the argument or option of a parameter."""
    name, metavar, words = parameter.name, "", " ".join(meanings.get(parameter.name, "").split())
    if get_origin(hint) is Annotated:
        hint, metavar, *shared = get_args(hint)
        words = words or "".join(shared)
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    how: dict[str, Any] = {}
    if get_origin(hint) is list:
        how["nargs"] = "+" if default is Parameter.empty else "*"
    elif get_origin(hint) is not Literal and kinds:  # or None
        (hint,) = kinds
    if get_origin(hint) is Literal:
        how["choices"] = get_args(hint)
    elif hint is bool:
        how["action"] = "store_true"
    elif hint in (int, float):
        how |= {"type": hint, "metavar": metavar or ("N" if hint is int else "X")}
    elif metavar or parameter.kind is not Parameter.KEYWORD_ONLY:
        how["metavar"] = metavar or name.upper()
    words = re.sub(r"^[A-Z](?=[a-z]*\b)", lambda first: first[0].lower(), words.removesuffix("."))
    shown = parameter.default
    said = shown in (Parameter.empty, None, "", ()) or shown is False or "(default" in words
    if not said:
        words = f"{words} (default: {shown})".strip()
    how["help"] = words.replace("%", "%%")
    if parameter.kind is not Parameter.KEYWORD_ONLY and default is not argparse.SUPPRESS:
        if default not in (Parameter.empty, ()):
            how |= {"nargs": "?", "default": default}
        parser.add_argument(name, **how)
        return
    if default is Parameter.empty:
        how["required"] = True
    else:
        how["default"] = default
    parser.add_argument(f"--{name.strip('_').replace('_', '-')}", dest=name, **how)


def options_of(command: str, function: Callable[..., Any], arguments: list[str]) -> dict[str, Any]:
    """What a command's function is called with; tokenizers by their names are folders of runs."""
    options = vars(parser_of(command, function).parse_args(arguments))
    for name in {"run", "runs"} & options.keys():
        given = options[name]
        options[name] = _run(given) if isinstance(given, str) else [_run(each) for each in given]
    return options


def _run(name: str) -> str:
    if os.path.isfile(name) or os.path.isfile(os.path.join(name, "config.yaml")):
        return name  # without importing anything
    from mqvae.tokenizer.pretrained import run_folder

    return run_folder(name)


def refinement_of(
    refine: int | None, bits_weight: float | None, bits_of: str | None
) -> "Refinement | None":
    """The refinement that options ask for, without the prior.

    Raises:
        ValueError: if a number is out of range, or an option is missing that others belong to.
    """
    if bits_of is not None and bits_weight is None:
        raise MqvaeError("--bits-of says what counts bits, which weigh nothing: add --bits-weight.")
    if refine is None:
        if bits_weight is not None:
            raise MqvaeError("--bits-weight is of refined codes: add --refine 10.")
        return None
    from mqvae.refine.refinement import Refinement

    return Refinement(refine, bits_weight=bits_weight or 0.0)


def with_prior(
    how: "Refinement | None", bits_of: str | None, tokenizer: "Tokenizer"
) -> "Refinement | None":
    """The refinement with the run's prior, where that counts the bits.

    Raises:
        ValueError: if the run has none.
    """
    if how is None or bits_of != "prior":
        return how
    from mqvae.prior import load_prior

    return replace(how, prior=load_prior(tokenizer))


def processes_of(accelerator: Any, devices: int = 1) -> "Processes":
    """The processes that options ask for, met and ready.

    Raises:
        ValueError: if this machine has no such accelerator, or not as many.
    """
    from mqvae.config import Trainer
    from mqvae.training import Processes

    return Processes(Trainer(accelerator=accelerator, devices=devices))


def tokenizer_of(run: str, checkpoint: str, accelerator: Any) -> "Tokenizer":
    """A run as a tokenizer, where `accelerator` says.

    Raises:
        ValueError: as `processes_of` and `Tokenizer.from_run`.
    """
    from mqvae.tokenizer import Tokenizer

    device = processes_of(accelerator).device
    return Tokenizer.from_run(run, checkpoint=checkpoint, device=device)


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

"""Functions become commands: their signatures make the options, their docstrings the help."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from keyword import iskeyword
from pathlib import Path

from mqvae.cli.own_modules import OWN_MODULES, imported
from mqvae.cli.parser import options_of, text_of
from mqvae.errors import MqvaeError, brief, did_you_mean
from mqvae.optional import ExtraMissing

USAGE = Path(__file__).with_name("usage.txt").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r"^  (\w+)  +(.+)$", USAGE, re.MULTILINE))
# Where those are that have no module of their own name.
ELSEWHERE = {
    "encode": "codes",
    "decode": "codes",
    "decompress": "compress",
    "import": "importing",
    "methods": "presets",
    "sample": "prior",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `mqvae`; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _forgiving()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from mqvae.provenance import code

        print(f"mqvae {code().version}")
        return 0
    if name not in COMMANDS:
        return _fail(
            f"there is no command '{name}'.{did_you_mean(name, COMMANDS)} Commands: "
            f"{', '.join(COMMANDS)}."
        )
    debug = "--debug" in rest
    rest = [a for a in rest if a != "--debug"]
    try:
        command, rest = _command(name), imported(rest)
        if name == "train":  # whose options are a run's settings
            return command(rest)
        return command(**options_of(name, command, rest))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BrokenPipeError:  # as of `mqvae doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MqvaeError, OSError, ExtraMissing) as error:
        if debug:
            traceback.print_exc()
        # What does not fit does not fit in any process of a machine: the first one says it.
        return _fail(text_of(error)) if os.environ.get("LOCAL_RANK", "0") == "0" else 2
    except KeyboardInterrupt:
        print("mqvae: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        if _is_a_failed_training(error):
            print(f"mqvae: {error}", file=sys.stderr)
        else:
            print(_owned_up(error), file=sys.stderr)
        return 1


def _forgiving() -> None:
    """A terminal that knows no × gets a question mark, and the command its end."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _owned_up(error: Exception) -> str:
    """Message of an unexpected exception, with the line of mqvae that raised it."""
    package = os.path.dirname(os.path.dirname(__file__))
    place, own = "", False
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(package + os.sep):
            inside = os.path.relpath(frame.filename, os.path.dirname(package))
            place, own = f"{inside}:{frame.lineno}", False
        elif frame.filename in OWN_MODULES:
            place, own = f"{frame.filename}:{frame.lineno}", True
    said = f"mqvae: unexpected {type(error).__name__} at {place}: {brief(error)}\n"
    if own:
        return f"{said}It was raised in a module of your own; --debug shows the traceback."
    return (
        f"{said}This is a fault of mqvae: please report the command and this line; --debug shows "
        "the traceback."
    )


def _command(name: str) -> Callable[..., int]:
    # Imported when it runs, so that `mqvae --help` answers at once.
    module = import_module(f"mqvae.cli.{ELSEWHERE.get(name, name)}")
    return getattr(module, name + "_" * iskeyword(name))


def _is_a_failed_training(error: Exception) -> bool:
    # Asked without an import: most commands never load the trainer.
    return any(kind.__name__ == "TrainingFailed" for kind in type(error).__mro__)


def _fail(message: str) -> int:
    print(f"mqvae: error: {message}", file=sys.stderr)
    return 2

"""`mqvae completion`."""

import contextlib
import io
import re
from collections.abc import Iterable
from pathlib import Path

# zsh runs bash's completions. What is no option is a file or a folder: runs, images, YAML.
SCRIPT = Path(__file__).with_name("completion.bash")


def completion() -> int:
    """Print a script for bash or zsh that completes commands, presets and options.

    Put `eval "$(mqvae completion)"` into ~/.bashrc or ~/.zshrc, or, for a shell that starts at
    once, its output into a file that they read.
    """
    from mqvae.cli import COMMANDS
    from mqvae.config import preset_names
    from mqvae.config.presets import RECOMMENDED

    cases = [_case(f"{name}:-*", options_of(name)) for name in COMMANDS]
    cases.append(_case("train:*", [*preset_names(), RECOMMENDED]))
    text = SCRIPT.read_text(encoding="utf-8").replace("@commands@", " ".join(COMMANDS))
    print(text.replace("@cases@", "\n".join(cases)), end="")
    return 0


def options_of(command: str) -> list[str]:
    """The options of a command, as its help has them."""
    from mqvae.cli import main

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        main([command, "--help-all" if command == "train" else "--help"])
    heads = re.findall(r"^  (-.*?)(?:  |$)", shown.getvalue(), re.MULTILINE)
    found = [option for head in heads for option in re.findall(r"--[\w.-]+", head)]
    return [*dict.fromkeys([*found, "--debug", "--import"])]


def _case(pattern: str, words: Iterable[str]) -> str:
    return f'      {pattern}) words="{" ".join(words)}" ;;'

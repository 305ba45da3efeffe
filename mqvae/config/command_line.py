"""Arguments of `mqvae train` to settings."""

import re
from collections import deque
from collections.abc import Callable
from typing import Any

from mqvae.config.merging import put
from mqvae.config.options import FLAGS, SLOTS, settings_parser
from mqvae.config.sources import source_of
from mqvae.errors import MqvaeError, did_you_mean
from mqvae.files import parsed_yaml

SHORT = {
    "--data": "data.name",
    "--root": "data.root",
    "--size": "data.side",
    "--batch-size": "data.batch_size",
    "--lr": "optimizer.network_lr",
    "--devices": "trainer.devices",
    "--accelerator": "trainer.accelerator",
    "--from": "from.run",
}
"""Everyday options, and the settings that they are."""
LISTS = ("freeze", "from.parts", "trainer.loggers")
"""Settings that are lists of words, as in encoder,codebook."""


def typed(arguments: list[str]) -> tuple[dict[str, Any], list[str], str | None]:
    """Options as one layer of settings, the files of --config, and what --method names.

    Args:
        arguments: What is typed after the preset.

    Raises:
        MqvaeError: if an option is not known, or a value is missing or too many.
    """
    known = [o for action in settings_parser()._actions for o in action.option_strings]
    more = (*SHORT, "--method", "--config", "--from.run", "--from.parts")
    known = [o for o in (*known, *more) if not o.endswith("+")]
    options: dict[str, Any] = {}
    files, method = [], None
    rest = deque(arguments)
    while rest:
        argument = rest.popleft()
        option, given, value = argument.partition("=")
        if not option.startswith("-"):
            raise MqvaeError(f"there is an argument too many: '{argument}'.")
        name = SHORT.get(option, option[2:])
        if option not in known and not any(option.startswith(f"--{slot}.") for slot in SLOTS):
            raise MqvaeError(
                f"there is no option {option}.{did_you_mean(option, known)} --help lists them."
            )
        alone = not given and not (rest and rest[0] in ("true", "false"))
        if alone and option in ("--overwrite", *FLAGS):
            put(options, name, True)
        else:
            if not given:
                if not rest or rest[0].startswith("--"):
                    raise MqvaeError(f"{option}: expected one argument.")
                value = rest.popleft()
            if option == "--config":
                files.append(value)
            elif option == "--method":
                method = value
            elif option == "--data":
                source = source_of(value)
                put(options, "data", source["class_path"])
                for key, said in source.get("init_args", {}).items():
                    put(options, f"data.{key}", said)
            else:
                put(options, name, _value(name, value))
    return options, files, method


def spelling(arguments: list[str]) -> Callable[[str], str]:
    """Settings to options as they were typed: --size, and not the --data.side that it is."""
    used = {argument.partition("=")[0] for argument in arguments} & SHORT.keys()
    short = {SHORT[option]: option for option in used}
    return lambda name: short.get(name, f"--{name}")


def _value(name: str, text: str) -> Any:
    """A value as the parser takes it: text, but null and what is written in brackets."""
    if name in LISTS:
        return [word for word in re.split(r"[,\s]+", text.strip("[] ")) if word]
    if text == "null":
        return None
    if text[:1] in ("{", "["):
        try:
            return parsed_yaml(text)
        except ValueError:
            return text
    return text

"""Settings through jsonargparse: checked, completed, made plain."""

import json
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from jsonargparse import Namespace
from torch.optim import Optimizer as TorchOptimizer

from mqvae.config.classes import UNFIT, find, is_ours, only_ours
from mqvae.config.messages import choices, explained
from mqvae.config.options import LEVELS, SLOTS, settings_parser
from mqvae.errors import MqvaeError


def parsed(config: Mapping[str, Any], dashes: str = "") -> Namespace:
    """Parse settings, without defaults.

    Args:
        config: From files and options together.
        dashes: What the writer put before a name.

    Raises:
        ValueError: in plain words.
    """
    parser = settings_parser()
    with _in_plain_words(dashes), only_ours(config):
        text = yaml.safe_dump(dict(config), allow_unicode=True)
        given = parser.parse_args([f"--config={text}"], defaults=False)
    for action in parser._actions:
        if action.default is not None and given.get(action.dest, action.default) is None:
            raise MqvaeError(f"{dashes}{action.dest} expects a value, got none.")
    for slot in (f"optimizer.{level}" for level in LEVELS):
        name = str(given.get(f"{slot}.class_path")).rpartition(".")[2]
        if name in UNFIT:
            raise MqvaeError(
                f"{dashes}{slot} cannot be {name}, which {UNFIT[name]}. Choices: "
                f"{', '.join(choices(TorchOptimizer))}."
            )
    return given


def with_defaults(given: Namespace, dashes: str = "") -> Namespace:
    """Complete parsed settings with defaults.

    Raises:
        ValueError: in plain words.
    """
    # Another class than a slot's usual one would take that one's defaults where both have them.
    emptied = Namespace({slot: None for slot in SLOTS if slot in given})
    with _in_plain_words(dashes), only_ours(given.as_dict()):
        return settings_parser().parse_object(given.clone(), namespace=emptied)


@contextmanager
def _in_plain_words(dashes: str) -> Iterator[None]:
    try:
        yield
    except ArgumentError as error:
        known = [o for action in settings_parser()._actions for o in action.option_strings]
        raise MqvaeError(explained(str(error), known, dashes)) from error


def plain(found: Namespace) -> dict[str, Any]:
    """Parsed settings in plain types, their components checked."""
    with only_ours(found.as_dict()):
        text = settings_parser().dump(found, "json", skip_unset=False, skip_validation=True)
    return json.loads(text, object_hook=component)


def component(value: dict[str, Any]) -> dict[str, Any]:
    """A component in full: of mqvae's, torch's optimizers or losses, or a class derived from one.

    Nothing else is ever called, whatever a config.yaml from elsewhere says.
    """
    if "class_path" not in value:
        return value
    path = str(value["class_path"])
    if not is_ours(find(path)):
        raise MqvaeError(f"class_path '{path}' is no part of mqvae, nor derived from one.")
    return {"class_path": path, "init_args": value.get("init_args") or {}}


def namespace(value: Any) -> Any:
    if isinstance(value, list):
        return [namespace(item) for item in value]
    if isinstance(value, dict):
        return Namespace(**{key: namespace(item) for key, item in value.items()})
    return value

"""Settings through jsonargparse: checked, completed, made plain."""

import json
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonargparse import Namespace
from torch.optim import Optimizer as TorchOptimizer

from mqvae.config.classes import UNFIT, choices, find, is_ours, only_ours
from mqvae.config.faults import Spelled, fault_in, shortened
from mqvae.config.options import LEVELS, SLOTS, checked_before, settings_parser
from mqvae.errors import MqvaeError


def parsed(config: Mapping[str, Any], spelled: Spelled = str) -> Namespace:
    """Parse settings, without defaults.

    Args:
        config: From files and options together.
        spelled: How their writer spells the name of a setting.

    Raises:
        MqvaeError: in plain words.
    """
    parser = settings_parser()
    with _in_plain_words(config, spelled):
        given = parser.parse_object(dict(config), defaults=False)
    for action in parser._actions:
        if action.default is not None and given.get(action.dest, action.default) is None:
            raise MqvaeError(f"{spelled(action.dest)} expects a value, got none.")
    for slot in (f"optimizer.{level}" for level in LEVELS):
        name = str(given.get(f"{slot}.class_path")).rpartition(".")[2]
        if name in UNFIT:
            raise MqvaeError(
                f"{spelled(slot)} cannot be {name}, which {UNFIT[name]}. Choices: "
                f"{', '.join(choices(TorchOptimizer))}."
            )
    return given


def with_defaults(given: Namespace, spelled: Spelled = str) -> Namespace:
    """Complete settings that `parsed` has read and checked with defaults.

    Raises:
        MqvaeError: in plain words.
    """
    # Another class than a slot's usual one would take that one's defaults where both have them.
    emptied = Namespace({slot: None for slot in SLOTS if slot in given})
    with _in_plain_words(given.as_dict(), spelled), checked_before():
        return settings_parser().parse_object(given.clone(), namespace=emptied)


@contextmanager
def _in_plain_words(config: Mapping[str, Any], spelled: Spelled) -> Iterator[None]:
    try:
        with only_ours(config):
            yield
    except ArgumentError as error:
        raise MqvaeError(fault_in(config, spelled) or shortened(str(error))) from error


def plain(found: Namespace) -> dict[str, Any]:
    """Parsed settings in plain types, their components checked."""
    # Not the parser's dump, which reads the arguments of a component back: "1e-3" comes out as a
    # number.
    return json.loads(json.dumps(found.as_dict()), object_hook=component)


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

"""Settings of a run: read, written, and made into objects."""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import lru_cache, partial, reduce
from inspect import signature
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch.optim import Optimizer as TorchOptimizer

from mqvae.config.choosing import completed
from mqvae.config.classes import find, only_ours, path_of
from mqvae.config.command_line import spelling, typed
from mqvae.config.faults import fault_in
from mqvae.config.help import show_help
from mqvae.config.merging import merged
from mqvae.config.options import (
    GROUPS,
    LEVELS,
    SLOTS,
    Optimizer,
    Part,
    Spec,
    Start,
    Trainer,
    WarmStart,
    settings_parser,
    with_arguments,
)
from mqvae.config.parsing import component, namespace, parsed, plain, with_defaults
from mqvae.config.presets import delta_of, layers, presets_in_words
from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import Quantizer
from mqvae.core.rules import Rule
from mqvae.data import Data
from mqvae.errors import MqvaeError, refused
from mqvae.networks.architecture import Architecture, Inputs
from mqvae.runs import Run
from mqvae.tasks import Task


@dataclass(frozen=True)
class Components:
    """The objects that settings describe.

    Attributes:
        network: What the network is.
        quantizer: With a codebook drawn at random.
        task: What it is trained for.
        rule: The update rule.
        network_optimizer: To be called with the parameters of encoder and decoder.
        codebook_optimizer: To be called with those of the codebook.
    """

    network: Architecture
    quantizer: Quantizer
    task: Task
    rule: Rule
    network_optimizer: "partial[TorchOptimizer]"
    codebook_optimizer: "partial[TorchOptimizer]"


@dataclass(frozen=True)
class Settings:
    """Everything a run is made of; what config.yaml says. `options.py` has what each means."""

    name: str
    seed: int
    steps: int
    data: Data
    network: Spec
    quantizer: Spec
    task: Spec
    update: Spec
    optimizer: Optimizer
    start: Start | None
    freeze: tuple[Part, ...]
    warm_start: WarmStart
    trainer: Trainer

    @classmethod
    def of(cls, *configs: Mapping[str, Any]) -> "Settings":
        """From the contents of a config.yaml; of several, the later over the earlier.

        Raises:
            ValueError: says what is wrong with a setting.
        """
        return cls._read(_layered(configs))

    @classmethod
    def _read(cls, config: Mapping[str, Any]) -> "Settings":
        given = parsed(config)
        return cls._of(given, with_defaults(given))

    @classmethod
    def _of(cls, given: Namespace, complete: Namespace) -> "Settings":
        values = plain(complete)
        for level in LEVELS:  # that of both holds where a level names none
            if f"optimizer.{level}.init_args.weight_decay" not in given:
                values["optimizer"][level]["init_args"].pop("weight_decay", None)
        start, rule = values["from"], find(values["update"]["class_path"])
        return cls(
            name=values["name"] or getattr(rule, "method", getattr(rule, "__name__", "")),
            start=start and Start(start["run"], tuple(start["parts"])),
            freeze=tuple(values["freeze"]),
            data=_data(values["data"]),
            **{name: group(**values[name]) for name, group in GROUPS.items()},
            **{k: values[k] for k in ("seed", "steps", "network", "quantizer", "task", "update")},
        )

    @classmethod
    def of_run(cls, run: Run) -> "Settings":
        """From a run's config.yaml.

        Raises:
            ValueError: names the file and what is wrong in it.
        """
        try:
            return deepcopy(_checked(json.dumps(_layered([run.config]))))
        except ValueError as error:
            raise MqvaeError(f"{run.folder / 'config.yaml'}: {error}") from error

    def config(self) -> dict[str, Any]:
        """The contents of config.yaml."""
        config = {"from" if k == "start" else k: v for k, v in asdict(self).items()}
        config["data"] = {"class_path": path_of(type(self.data)), "init_args": config["data"]}
        return json.loads(json.dumps(config))  # lists for tuples

    def components(self) -> Components:
        """The objects, each made once."""
        made = self._made(*(slot for slot in SLOTS if slot != "data"))
        optimizers = []
        for level in LEVELS:
            rates, optimizer = asdict(self.optimizer), made[f"optimizer.{level}"]
            changed = {"lr": rates[f"{level}_lr"]}
            own = rates[level]["init_args"]
            if "weight_decay" in signature(optimizer.func).parameters and "weight_decay" not in own:
                changed["weight_decay"] = rates["weight_decay"]
            optimizers.append(partial(optimizer, **changed))
        parts = (made[slot] for slot in SLOTS if slot != "data" and "." not in slot)
        return Components(*parts, *optimizers)

    def _made(self, *slots: str) -> Namespace:
        """The objects of these slots; partial ones where there is more to be handed over."""
        config = json.loads(json.dumps(self.config()), object_hook=component)
        wanted = Namespace()
        for slot in slots:
            wanted[slot] = namespace(reduce(getitem, slot.split("."), config))
        later = [(_later, TorchOptimizer, True)]
        parser = settings_parser()
        with refused(", ".join(slots)), only_ours(config):
            return parser.instantiate(wanted, instantiate_groups=False, instantiators=later)

    def resolved(self, network: VQNetwork, rule: Rule, **data: Any) -> "Settings":
        """With what quantizer and rule chose by themselves written out, and these of the data."""
        return replace(
            self,
            data=replace(self.data, **data),
            quantizer=_with_chosen(self.quantizer, network.quantizer),
            update=_with_chosen(self.update, rule),
        )


def inputs_of(data: Data) -> Inputs:
    """The inputs that a network for these images takes.

    Raises:
        ValueError: if they have not been looked at yet.
    """
    if data.shape is None:
        raise MqvaeError("data.channels and data.side must be known to build a network.")
    size, *sides = data.shape
    return Inputs(size, sides[-1] if sides else 0, data.classes or 1)


@lru_cache(maxsize=32)
def _checked(config: str) -> Settings:
    """From an argument, when it describes a network; a run is opened many times."""
    settings = Settings._read(json.loads(config))
    # Not on "meta": numbers that are not there, torch reckons with by importing its compiler.
    with torch.device("cpu"), torch.random.fork_rng(devices=()):
        settings._made("network", "quantizer")
    return settings


def load_preset(name: str, *deltas: Mapping[str, Any], method: str | None = None) -> dict[str, Any]:
    """The settings of a preset, or of a YAML file by its path, with deltas over them.

    Args:
        name: The preset or file.
        deltas: Settings over it, the later over the earlier.
        method: The method, if not the preset's own.

    Raises:
        ValueError: says what is wrong with a setting, or that there is no such preset, method or
            file.
    """
    return plain(parsed(_layered([*layers(name, method), *deltas])))


def from_arguments(arguments: list[str]) -> tuple[Settings, Path | None, bool]:
    """Settings, --out and --overwrite from what is typed after `mqvae train`.

    The preset with its method is the lowest layer, then come the files of --config as they are
    typed, then the options together.

    Raises:
        ValueError: says what is wrong with a preset, a file or an option.
    """
    show_help(arguments)
    arguments, _ = completed(arguments)
    names = [a for a in arguments[:1] if not a.startswith("-")]
    if not names:
        raise MqvaeError(
            "train needs a preset, images or a YAML file, as in `mqvae train digits-tiny` or "
            f"`mqvae train photos/`. {presets_in_words()}"
        )
    options, files, method = typed(arguments[len(names) :])
    configs = [*layers(names[0], method), *map(delta_of, files)]
    try:
        below = _layered(configs)
    except MqvaeError as error:
        raise MqvaeError(f"{(files or names)[-1]}: {error}") from error
    config = _layered([below, options])
    try:
        given = parsed(config, spelled := spelling(arguments))
        complete = with_defaults(given, spelled)
    except MqvaeError as error:
        own = fault_in(below)
        if own is not None and own == fault_in(config):  # the file's own mistake is told as such
            raise MqvaeError(f"{(files or names)[-1]}: {own}") from error
        raise
    out = Path(complete.out) if complete.out else None
    return Settings._of(given, complete), out, complete.overwrite


def _layered(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings, each over those before."""
    return reduce(merged, configs, {})


def _data(spec: Spec) -> Data:
    """The data of a spec; it looks at none of them."""
    kind: Any = find(spec["class_path"])
    with refused("data"):
        return kind(**spec["init_args"])


def _later(kind: type, **arguments: Any) -> Any:
    return partial(kind, **arguments)


def _with_chosen(spec: Spec, built: Any) -> Spec:
    """A spec with the parts that its class chose by itself written out."""
    names = [name for name in signature(type(built)).parameters if hasattr(built, name)]
    chosen = {name: _spec(getattr(built, name)) for name in names}
    parts = {name: part for name, part in chosen.items() if isinstance(part, dict)}
    return with_arguments(spec, parts)


def _spec(value: Any) -> Any:
    """The {class_path, init_args} of a dataclass; other values as they are."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    fields = {name: _spec(getattr(value, name)) for name in signature(type(value)).parameters}
    return {"class_path": path_of(type(value)), "init_args": fields}

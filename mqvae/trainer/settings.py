"""Everything a run is made of, and its network and images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mqvae.config import (
    DataOptions,
    NetworkOptions,
    OptimizerOptions,
    TrainerOptions,
    check_types,
    instantiate,
    plain,
)
from mqvae.core.network import VQNetwork
from mqvae.core.quantizer import Quantizer
from mqvae.data import DATASETS, Images, load
from mqvae.networks.vqvae import VQVAEDecoder, VQVAEEncoder
from mqvae.runs import (
    Run,
)


@dataclass(frozen=True)
class Settings:
    """Everything a run is made of; what config.yaml says."""

    name: str
    seed: int
    steps: int
    data: DataOptions
    network: NetworkOptions
    quantizer: Mapping[str, Any]
    update: Mapping[str, Any]
    optimizer: OptimizerOptions
    trainer: TrainerOptions

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("quantizer", "update"):
            if not isinstance(getattr(self, name).get("class_path"), str):
                raise ValueError(f"{name} needs a class_path, as in mqvae.Meta.")
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0 … {2**32 - 1}, got {self.seed}.")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Settings":
        """From the contents of a config.yaml."""
        try:
            return cls(
                name=config["name"],
                seed=config["seed"],
                steps=config["steps"],
                data=DataOptions(**config["data"]),
                network=NetworkOptions(**config["network"]),
                quantizer=config["quantizer"],
                update=config["update"],
                optimizer=OptimizerOptions(**config["optimizer"]),
                trainer=TrainerOptions(**config["trainer"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"these are not the settings of a run ({error}): they were written by another "
                "version or changed by hand."
            ) from error

    @classmethod
    def of_run(cls, run: Run) -> "Settings":
        """From a run's config.yaml.

        Raises:
            ValueError: names the file and what is wrong in it.
        """
        try:
            settings = cls.of(run.config)
            with torch.device("meta"):  # no memory: whether it describes a network
                build_network(settings)
            return settings
        except ValueError as error:
            raise ValueError(f"{run.folder / 'config.yaml'}: {error}") from error

    def config(self) -> dict[str, Any]:
        """The contents of config.yaml."""
        return {
            "name": self.name,
            "seed": self.seed,
            "steps": self.steps,
            "data": plain(self.data),
            "network": plain(self.network),
            "quantizer": dict(self.quantizer),
            "update": dict(self.update),
            "optimizer": plain(self.optimizer),
            "trainer": plain(self.trainer),
        }


def method_name(class_path: str) -> str:
    """What the field calls an update rule."""
    rule = class_path.rpartition(".")[2]
    return {
        "Joint": "VQ-VAE",
        "Ema": "VQ-VAE + EMA",
        "Alternated": "VQ-VAE + alt",
        "Synchronous": "VQ-VAE + sync",
        "Meta": "MQ-VAE",
        "MetaNetwork": "MQ-VAE†",
        "MetaBoth": "MQ-VAE‡",
    }.get(rule, rule)


def build_network(settings: Settings) -> VQNetwork:
    """The network of a run, freshly initialized."""
    quantizer = instantiate(settings.quantizer)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(f"{settings.quantizer['class_path']} is no quantizer.")
    channels = settings.data.channels
    if channels is None:
        raise ValueError("data.channels must be known to build a network.")
    sizes = plain(settings.network)
    return VQNetwork(
        VQVAEEncoder(channels, quantizer.dim, **sizes),
        quantizer,
        VQVAEDecoder(channels, quantizer.dim, **sizes),
    )


def load_split(options: DataOptions, split: str) -> Images:
    """A split of a run's dataset."""
    return load(
        options.name, split, root=options.root, side=options.side, channels=options.channels
    )


def absolute(options: DataOptions) -> DataOptions:
    """The same images, whatever folder the run is gone on with or used from."""
    root, name = options.root, options.name
    if root is not None:
        root = str(Path(root).expanduser().absolute())
    folder = Path(root or "", Path(name).expanduser()).absolute()
    if name not in DATASETS and folder.is_dir():
        name = str(folder)
    return replace(options, root=root, name=name)

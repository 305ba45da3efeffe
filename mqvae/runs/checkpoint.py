"""A checkpoint: written whole, read with its damage named."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mqvae.errors import MqvaeError
from mqvae.files import flush, packed, unpacked


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run resumes, and the weights that its network is used with."""

    model: dict[str, Tensor]  # the network's `state_dict`
    training: dict[str, Tensor]  # every other tensor: optimizer moments, random state
    state: dict[str, Any]  # everything else, as JSON
    # The `state_dict` of the EMA of the weights; None without one.
    average: dict[str, Tensor] | None = None
    digest: str = ""  # fingerprint of the file of `weights`; empty before it is written

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that are measured and used: the EMA where there is one."""
        return self.model if self.average is None else self.average

    @property
    def weights_alone(self) -> "Checkpoint":
        """The weights that the network is used with, and the state but for what resuming needs."""
        resumes = ("batches", "above", "optimizers", "schedules")
        state = {k: v for k, v in self.state.items() if k not in resumes}
        return Checkpoint(self.weights, {}, state)

    def not_finite(self) -> str | None:
        """The name of a tensor that holds a number that is not finite."""
        for tensors in (self.model, self.training, self.average or {}):
            for name, tensor in tensors.items():
                if not torch.isfinite(tensor).all():
                    return name
        return None

    def give_weights(self, network: nn.Module, folder: str | Path) -> None:
        """Load `weights` into a network; a ValueError that names the run if they do not fit."""
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            raise MqvaeError(
                f"the checkpoint of {folder} does not fit its config.yaml: {error}\n"
                "Has config.yaml been changed? A run keeps the sizes it was trained with."
            ) from error


def name_before(name: str) -> str:
    """The folder of the checkpoint before the one of a name."""
    return f"{name}.previous"


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """All files of a checkpoint, on the disk when this returns."""
    folder.mkdir(parents=True)
    digests = {}
    for file, tensors in (
        ("average.safetensors", checkpoint.average),
        ("model.safetensors", checkpoint.model),
        ("training.safetensors", checkpoint.training or None),
    ):
        if tensors is None:
            continue
        content = packed(tensors)  # not safetensors' `save_file`, whose files nobody else may read
        (folder / file).write_bytes(content)
        digests[file] = _sha256(content)
    digests["state"] = _sha256(json.dumps(checkpoint.state).encode())
    written = {**checkpoint.state, "sha256": digests}
    (folder / "state.json").write_text(json.dumps(written, indent=2))
    for path in folder.iterdir():
        flush(path)


def _read(folder: Path, *, training: bool, weights: bool) -> Checkpoint:
    """A checkpoint; raises whatever comes of damage to it."""
    text = (folder / "state.json").read_text(encoding="utf-8")
    state = json.loads(text)
    same = text == json.dumps(state, indent=2)
    digests = state.pop("sha256")
    if not same or _sha256(json.dumps(state).encode()) != digests["state"]:
        raise MqvaeError("state.json is not what was written")
    tensors: dict[str, dict[str, Tensor]] = {}
    for file, digest in digests.items():
        if file == "state" or not (training if file == "training.safetensors" else weights):
            continue
        content = (folder / file).read_bytes()
        if _sha256(content) != digest:
            raise MqvaeError(f"{file} is not what was written")
        tensors[file] = unpacked(content)
    average = tensors.get("average.safetensors")
    used = next(f for f in ("average.safetensors", "model.safetensors") if f in digests)
    further = tensors.get("training.safetensors", {})
    model = tensors["model.safetensors"] if weights else {}
    return Checkpoint(model, further, state, average, digests[used])


def load_checkpoint(folder: Path, *, training: bool, weights: bool) -> tuple[Checkpoint, str]:
    """A checkpoint, or the one before it if it is damaged; and the damage, empty without any.

    Arguments and errors are those of `Run.load`.
    """
    while True:
        there = _identity(folder)
        found, damage = _newest_whole(folder, training=training, weights=weights)
        # One that is replaced while it is read looks damaged, or is not there.
        if _identity(folder) == there or (found is not None and damage is None):
            break
    if found is not None:
        return found, "" if damage is None else _reason(damage)
    if damage is None:
        raise MqvaeError(
            f"{folder.parent.parent} has no checkpoint '{folder.name}' (yet): train it, or train "
            "it again with --overwrite."
            + " The best is chosen on validation images: it needs data.validation above 0."
            * (folder.name == "best")
        )
    other = "best" if folder.name == "last" else "last"
    raise MqvaeError(
        f"the checkpoint {folder} is damaged ({_reason(damage)}), and no whole one is before it. "
        "Train the run again with --overwrite"
        + (
            f"; to use it as it is, the other one may be whole: --checkpoint {other}."
            if folder.with_name(other).is_dir()
            else "."
        )
    ) from damage


def _newest_whole(
    folder: Path, *, training: bool, weights: bool
) -> tuple[Checkpoint | None, Exception | None]:
    """A checkpoint, or the one before it if it is damaged or missing; and what damage was met."""
    damage: Exception | None = None
    for each in (folder, folder.with_name(name_before(folder.name))):
        if not each.is_dir():
            continue
        try:
            return _read(each, training=training, weights=weights), damage
        except (MemoryError, PermissionError):
            raise  # they say nothing of what is in the file
        except Exception as error:
            damage = damage or error
    return None, damage


def _identity(folder: Path) -> tuple[int, int] | None:
    """Identity of a folder, by which a replacement is noticed; None where there is none."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    return str(error) or type(error).__name__


def beginning_with(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def optimizer_state(
    name: str, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state for a checkpoint: its tensors, by names of their own, and the rest."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    state = optimizer.state_dict()
    for index, entry in state["state"].items():
        for key, value in entry.items():
            if torch.is_tensor(value):
                tensors[f"{name}.{index}.{key}"] = value
            elif isinstance(value, bool | int | float | None):
                numbers[f"{index}.{key}"] = value
            else:
                raise MqvaeError(
                    f"{type(optimizer).__name__} remembers a {type(value).__name__}, '{key}', "
                    "which a checkpoint cannot hold: an optimizer's state must be tensors and "
                    "numbers."
                )
    groups = [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]]
    return tensors, {"groups": groups, "numbers": numbers}


def restore_optimizer(
    name: str,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
) -> None:
    """Put an optimizer's state back from a checkpoint: what `optimizer_state` gave."""
    mine = beginning_with(f"{name}.", tensors)
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**mine, **rest["numbers"]}.items():
        index, _, field = key.partition(".")
        state.setdefault(int(index), {})[field] = value
    current = optimizer.state_dict()["param_groups"]
    merged = [{**now, **then} for now, then in zip(current, rest["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""The folder a run leaves behind."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

COLUMNS = (
    "step",
    "seconds",
    "task",
    "commitment",
    "codebook",
    "perplexity",
    "usage",
    "network_lr",
    "codebook_lr",
    "direct_norm",
    "indirect_norm",
    "cosine",
)


@dataclass(frozen=True)
class Checkpoint:
    """What it takes to go on, or to use the network.

    Attributes:
        model: The network's `state_dict`.
        training: Every other tensor: optimizer moments, random state.
        state: Everything else, as JSON.
        digest: Fingerprint of the weights' file; empty before it is written.
    """

    model: dict[str, Tensor]
    training: dict[str, Tensor]
    state: dict[str, Any]
    digest: str = ""


class Run:
    """A run folder.

    Args:
        folder: A folder that `Run.create` made.

    Raises:
        ValueError: if the folder is not a run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder} is not a run: there is no such folder. Pass a folder that "
                "`mqvae train` wrote."
            )
        try:
            text = (self.folder / "config.yaml").read_text(encoding="utf-8")
            self.config: dict[str, Any] = yaml.safe_load(text)
        except FileNotFoundError:
            raise ValueError(
                f"{self.folder} is not a run: it has no config.yaml. Pass a folder that "
                "`mqvae train` wrote."
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.folder / 'config.yaml'} is not valid YAML: {error}") from None
        if not isinstance(self.config, dict):
            raise ValueError(f"{self.folder / 'config.yaml'} holds no settings: it is damaged.")

    @classmethod
    def create(
        cls, folder: str | Path, config: Mapping[str, Any], *, overwrite: bool = False
    ) -> "Run":
        """Make a run folder; an old one is replaced only if `overwrite`.

        Raises:
            ValueError: if the folder exists, holds something, and must or should not be replaced.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not overwrite:
                raise ValueError(
                    f"{folder} exists already: choose another --out, add --overwrite to replace "
                    f"it, or go on with it by `mqvae train --resume {folder}`."
                )
            if not ((folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()):
                raise ValueError(
                    f"{folder} is not a run, so --overwrite leaves it alone: choose another --out."
                )
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "samples").mkdir()
        write_whole(
            folder / "config.yaml",
            yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        )
        return cls(folder)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run whole or not at all."""
        write_whole(self.folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    # -- metrics.csv ---------------------------------------------------------------------------

    def start_metrics(self, *, after_step: int) -> None:
        """Begin metrics.csv, keeping the rows up to a step."""
        path = self.folder / "metrics.csv"
        rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        lines = [",".join(COLUMNS)]
        for row in rows:
            # A row cut short, by a kill in the middle of writing it, lacks columns.
            if None not in row.values() and int(row["step"]) <= after_step:
                lines.append(",".join(row.get(c, "") for c in COLUMNS))
        write_whole(path, "\n".join(lines) + "\n")

    def log(self, row: Mapping[str, float | int | None]) -> None:
        """Append a row to metrics.csv."""
        with (self.folder / "metrics.csv").open("a", newline="") as file:
            values = (row.get(c) for c in COLUMNS)
            csv.writer(file, lineterminator="\n").writerow(
                "" if v is None else v if isinstance(v, int) else f"{v:.8g}" for v in values
            )

    # -- checkpoints ---------------------------------------------------------------------------

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole or not at all; the one of that name is replaced."""
        from safetensors.torch import save

        target = self.folder / "checkpoints" / name
        partial = target.with_name(f"{name}.partial")
        previous = target.with_name(f"{name}.previous")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for file, tensors in (
            ("model.safetensors", checkpoint.model),
            ("training.safetensors", checkpoint.training),
        ):
            # Not `save_file`, whose files nobody else may read.
            content = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()})
            (partial / file).write_bytes(content)
        digests = {p.name: _sha256(p.read_bytes()) for p in sorted(partial.iterdir())}
        digests["state"] = _sha256(json.dumps(checkpoint.state).encode())
        write_whole(
            partial / "state.json", json.dumps({**checkpoint.state, "sha256": digests}, indent=2)
        )
        for path in partial.iterdir():
            _flush(path)
        # At every moment one of `name` and `name.previous` is whole.
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
            target.rename(previous)
        partial.rename(target)
        shutil.rmtree(previous, ignore_errors=True)

    def load(self, name: str = "last", *, training: bool = True) -> Checkpoint:
        """Read a checkpoint.

        Args:
            name: "last" or "best".
            training: Read what only going on needs, too.

        Raises:
            ValueError: if there is none, or a file of it is damaged.
        """
        from safetensors.torch import load

        folder = self.folder / "checkpoints" / name
        if not folder.exists() and folder.with_name(f"{name}.previous").exists():
            folder = folder.with_name(f"{name}.previous")
        if not folder.is_dir():
            raise ValueError(
                f"{self.folder} has no checkpoint '{name}' (yet): train it, or train it again with "
                "--overwrite."
            )
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            digests = state.pop("sha256")
            if _sha256(json.dumps(state).encode()) != digests["state"]:
                raise ValueError("state.json is not what was written")
            tensors = []
            for file in ["model.safetensors"] + ["training.safetensors"] * training:
                content = (folder / file).read_bytes()
                if _sha256(content) != digests[file]:
                    raise ValueError(f"{file} is not what was written")
                tensors.append(load(content))
        except Exception as error:
            other = "best" if name == "last" else "last"
            raise ValueError(
                f"the checkpoint {folder} is damaged ({_reason(error)}). Train the run again with "
                "--overwrite"
                + (
                    f"; to use it as it is, the other one may be whole: --checkpoint {other}."
                    if folder.with_name(other).is_dir()
                    else "."
                )
            ) from error
        digest = digests["model.safetensors"]
        return Checkpoint(tensors[0], tensors[1] if training else {}, state, digest)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state by the names they have in a checkpoint."""
    return {
        f"{name}.{index}.{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def restore_optimizer(
    name: str,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    groups: list[dict[str, Any]],
) -> None:
    """Put an optimizer's state back from a checkpoint."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, _, rest = key.partition(".")
        if owner == name:
            index, _, field = rest.partition(".")
            state.setdefault(int(index), {})[field] = value
    current = optimizer.state_dict()["param_groups"]
    merged = [{**now, **then} for now, then in zip(current, groups, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": merged})


def optimizer_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """An optimizer's settings, without its parameters, as JSON."""
    return [
        {k: v for k, v in group.items() if k != "params"}
        for group in optimizer.state_dict()["param_groups"]
    ]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    return str(error) or type(error).__name__


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())

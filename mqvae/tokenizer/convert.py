"""Tokenizers of other projects, made into runs."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mqvae.config import Settings, load_preset
from mqvae.core.distance import Cosine, Distance, Euclidean
from mqvae.errors import MqvaeError
from mqvae.files import read_yaml
from mqvae.networks.vqgan.keys import Imported, imported
from mqvae.provenance import code
from mqvae.runs import Checkpoint, Run
from mqvae.weights.pickled import read_torch

# Where a checkpoint has the weights, those that are to be used first.
PLACES = ("ema", "model", "state_dict")
# What wrappers put before all names.
WRAPPERS = ("module.", "_orig_mod.")

DISTANCES: Mapping[str, type[Distance]] = {"euclidean": Euclidean, "cosine": Cosine}


class _Inert:
    """Stands in a checkpoint for objects of any class, which are neither imported nor made."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint: .safetensors, or what `torch.save` wrote.

    Nothing is unpickled but tensors and plain containers. Of two sets of weights in a file the
    average, `ema`, is taken.

    Args:
        path: The file.

    Raises:
        ValueError: if there is no such file, or no weights can be read from it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MqvaeError(f"there is no file {path}.")
    try:
        found = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    # What is damaged or something else fails in too many ways to list.
    except Exception as error:
        text = str(error).partition("\n")[0] or type(error).__name__
        raise MqvaeError(
            f"{path} cannot be read ({text}): expected a .safetensors file, or a checkpoint that "
            "torch.save wrote."
        ) from error
    for place in PLACES:
        if isinstance(found, Mapping) and isinstance(found.get(place), Mapping):
            found = found[place]
            break
    if not isinstance(found, Mapping):
        raise MqvaeError(f"{path} holds no weights by names, but a {type(found).__name__}.")
    tensors = {str(key): value for key, value in found.items() if torch.is_tensor(value)}
    for wrapper in WRAPPERS:
        if tensors and all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _torch(path: Path) -> Any:
    # Trainers leave objects of their own beside the weights, which the safe reading refuses.
    unknown = []
    if zipfile.is_zipfile(path):
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
        try:
            return read_torch(path)
        except pickle.UnpicklingError as error:
            raise MqvaeError(
                "it holds objects that are not read; where you trust it, save its state dict alone"
            ) from error


def import_run(
    file: str | Path, out: str | Path, *, overwrite: bool = False, **how: Any
) -> tuple[Run, Imported]:
    """Make a run of a tokenizer of taming-transformers or LlamaGen.

    The run is at step 0 of a training that was not begun, with the settings that its weights
    need; they are used, measured and fine-tuned as those of any run.

    Args:
        file: The checkpoint.
        out: The run folder to make.
        overwrite: Replace a run at `out`.
        how: As of `converted`.

    Raises:
        ValueError: if the file is not such a tokenizer, or `out` is in use.
    """
    Run.require_free(out, overwrite=overwrite)
    settings, checkpoint, found = converted(file, **how)
    run = Run.create(out, settings.config(), overwrite=overwrite)
    run.save("last", checkpoint)
    return run, found


def converted(
    file: str | Path,
    *,
    data: str = "imagenet",
    root: str | None = None,
    side: int = 256,
    distance: Literal["euclidean", "cosine"] | None = None,
) -> tuple[Settings, Checkpoint, Imported]:
    """Settings and weights of a tokenizer of taming-transformers or LlamaGen.

    Args:
        file: The checkpoint.
        data: The images that it is measured on: a data set or a folder, as `data.name`.
        root: Folder of their files, as `data.root`.
        side: Pixels a side of the images that it was trained on.
        distance: What is near, if it is not what the project usually takes.

    Raises:
        ValueError: if the file is not such a tokenizer.
    """
    try:
        found = imported(read_tensors(file), side=side)
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise MqvaeError(f"{file}: {error}") from error
    near = type(found.form.distance) if distance is None else DISTANCES[distance]
    usual = read_yaml(Path(__file__).with_name("converted.yaml"))
    settings = Settings.of(load_preset("paper", usual, _delta(found, near, data=data, root=root)))
    checkpoint = Checkpoint(
        model=found.weights,
        training={},
        state={"step": 0, "imported": found.form.name, "version": code().version},
    )
    if bad := checkpoint.not_finite():
        raise MqvaeError(f"{file}: {bad} holds a number that is not finite.")
    return settings, checkpoint, found


def _delta(found: Imported, near: type[Distance], *, data: str, root: str | None) -> dict[str, Any]:
    """Settings of the tokenizer."""
    folder = Path(data).expanduser()
    return {
        "name": found.form.name,
        "data": {
            "name": str(folder.absolute()) if root is None and folder.is_dir() else data,
            "root": None if root is None else str(Path(root).expanduser().absolute()),
            "side": found.inputs.side,
            "channels": found.inputs.channels,
        },
        # Lists for tuples.
        "network": {"init_args": json.loads(json.dumps(asdict(found.network)))},
        "quantizer": {
            "init_args": {
                "num_codes": found.num_codes,
                "dim": found.dim,
                "distance": {"class_path": f"mqvae.{near.__name__}"},
            }
        },
    }

"""Arrays in files: vectors, or images as bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mqvae.data.images import MAX_BYTES, Images, InMemory
from mqvae.data.source import Data
from mqvae.data.splits import by_number
from mqvae.errors import MqvaeError

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt")
_EXPECTED = "expected vectors (N, D) as floats, or images (N, H, W), (N, H, W, C) or (N, C, H, W) \
as bytes"


@dataclass(frozen=True)
class ArrayData(Data):
    """An array in a file: vectors (N, D) of floats, or images (N, H, W[, C]) of bytes.

    The file is .npy, .npz, .safetensors or .pt. One of several arrays has them named `train` and
    `test`, and may have `train_labels` and `test_labels`; of one array a tenth is for test, by a
    hash of the row's number: rows that are added at the end move no other.

    Args:
        name: The file.
        unit_length: Divide each vector by its length.
        shape: Of a row, as found.
    """

    unit_length: bool = False
    shape: tuple[int, ...] | None = None

    places = ("name",)

    @classmethod
    def takes(cls, name: str) -> bool:
        return Path(name).suffix in SUFFIXES

    def load(self, split: str) -> Images:
        if split not in ("train", "test"):
            raise MqvaeError(f"{self.name} has no {split} split: expected train or test.")
        arrays = arrays_in(Path(self.name).expanduser())
        if len(arrays) == 1:
            [rows] = arrays.values()
            return self._images(split, rows[by_number(len(rows), self.name)[split]], None)
        if not {"train", "test"} <= arrays.keys():
            raise MqvaeError(
                f"{self.name} holds {', '.join(arrays)}: expected one array, or train and test."
            )
        return self._images(split, arrays[split], arrays.get(f"{split}_labels"))

    def everything(self) -> Images:
        arrays = arrays_in(Path(self.name).expanduser())
        rows = [each for name, each in arrays.items() if not name.endswith("_labels")]
        return self._images("files", np.concatenate(rows), None)

    def seen(self, images: Images) -> Self:
        return replace(self, shape=images.shape)

    def absolute(self) -> Self:
        return replace(self, name=str(Path(self.name).expanduser().absolute()))

    def moved(self, root: str) -> Self:
        path = Path(root).expanduser()
        path = path / Path(self.name).name if path.is_dir() else path
        return replace(self, name=str(path.absolute()))

    def prepared(self, rows: Tensor) -> Tensor:
        """Vectors (N, D) as the network takes them, float32.

        Raises:
            ValueError: if a number is not finite, a vector to be divided is 0, or D is another.
        """
        rows = rows.to(torch.float32)
        lengths = rows.norm(dim=1, keepdim=True)
        wrong = ~lengths.isfinite() | (lengths == 0 if self.unit_length else False)
        if wrong.any():
            row = int(wrong[:, 0].nonzero()[0, 0])
            raise MqvaeError(
                f"row {row} of {self.name} has length {float(lengths[row]):.4g}: expected finite "
                f"numbers{', not all 0, to divide by it' * self.unit_length}; take it out."
            )
        if self.shape is not None and self.shape != rows.shape[1:]:
            raise MqvaeError(
                f"{self.name} has vectors of {rows.shape[1]} numbers: expected {self.shape[0]}, as "
                "the run was trained on."
            )
        return rows / lengths if self.unit_length else rows

    def _images(self, split: str, rows: np.ndarray, labels: np.ndarray | None) -> InMemory:
        values = torch.from_numpy(np.ascontiguousarray(rows))
        if values.ndim == 2 and values.is_floating_point():
            values = self.prepared(values)
        else:
            values = _channels_first(values, self.name)
        given = np.zeros(len(rows)) if labels is None or self.classes == 1 else labels
        whole = torch.from_numpy(given.astype(np.int64))
        return InMemory(self.name, split, values, whole, f"{len(rows):,} rows of {self.name}")


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by their names; one alone has the name "".

    Raises:
        ValueError: if it is of another kind, damaged or too large.
        FileNotFoundError: if it is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: expected {', '.join(SUFFIXES)}")
    if path.stat().st_size > MAX_BYTES:
        raise MqvaeError(
            f"{path} has {path.stat().st_size:,} bytes: expected {MAX_BYTES:,} at most, as arrays "
            "are held in memory."
        )
    try:
        found = _read(path)
        arrays = found if isinstance(found, Mapping) else {"": found}
        return {name: np.asarray(each) for name, each in arrays.items()}
    # Each library meets damaged files with errors of its own.
    except Exception as error:
        raise MqvaeError(f"{path} cannot be read: {_EXPECTED}, got: {error}") from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    with path.open("rb") as file:
        found = np.load(file, allow_pickle=False)
        return dict(found) if path.suffix == ".npz" else found


def _channels_first(values: Tensor, name: str) -> Tensor:
    """Images as (N, C, S, S) bytes."""
    if values.ndim == 3:
        values = values.unsqueeze(1)
    elif values.ndim == 4 and values.shape[1] not in (1, 3):
        values = values.movedim(-1, 1).contiguous()
    square = values.ndim == 4 and values.shape[1] in (1, 3) and values.shape[2] == values.shape[3]
    if values.dtype != torch.uint8 or not square:
        raise MqvaeError(
            f"{name} holds {tuple(values.shape)} {values.dtype}: {_EXPECTED} with square sides and "
            "1 or 3 channels."
        )
    return values

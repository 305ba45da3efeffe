"""Datasets of PyTorch and of the Hugging Face Hub."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pydoc import locate
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mqvae.data.decoding import numbers, squared, upright
from mqvae.data.images import Images, Indices, InMemory, Part
from mqvae.data.source import Data
from mqvae.data.splits import by_number
from mqvae.errors import MqvaeError, refused
from mqvae.optional import require
from mqvae.ranges import Number

if TYPE_CHECKING:
    DatasetSpec = dict[str, Any]
else:
    from torch.utils.data import Dataset as DatasetSpec

PICTURES = ("image", "img", "pixel_values", "x", "vector", "embedding", 0)
LABELS = ("label", "labels", "fine_label", "y", "target", 1)
HUB = "hf:"


class OfDataset(Images):
    """Samples of anything with a length and numbered samples, read as they are asked for.

    A sample is an image or a vector, or has one by a name or at its beginning. Images are PIL
    images, and arrays or tensors of bytes or of floats in [0, 1], (H, W), (H, W, C) or (C, H, W).

    Args:
        samples: The dataset.
        name: What it is called.
        split: Which split it is.
        side: Pixels a side; of the first sample if None.
        channels: 1 or 3; as of the first sample if None.
        image: What an image is called in a sample; found if None.
        labels: (N,); zeros if None.
    """

    ahead = 2
    names = ()

    def __init__(
        self,
        samples: Any,
        *,
        name: str,
        split: str,
        side: int | None = None,
        channels: int | None = None,
        image: str | None = None,
        labels: Any = None,
    ) -> None:
        if not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")) or not len(
            samples
        ):
            raise MqvaeError(
                f"the {split} dataset of {name} has no numbered samples: expected a map-style "
                f"dataset with len() and [index], got {type(samples).__name__}"
            )
        self.samples, self.name, self.split = samples, name, split
        self.source = f"{len(samples):,} samples of {name}"
        self.image = image
        first = self._value(0)
        self._shape: tuple[int, ...]
        if isinstance(first, Image.Image):
            grey = channels == 1 or (channels is None and first.mode in ("1", "L"))
            side = side or min(first.size)
            self._shape = (1 if grey else 3, side, side)
        else:
            self._shape = tuple(first.shape)
        given = np.zeros(len(samples)) if labels is None else np.asarray(labels)
        if given.shape != (len(samples),):
            raise MqvaeError(f"{name} has {len(samples)} samples, but labels {given.shape}.")
        self.labels = torch.from_numpy(given.astype(np.int64))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if len(self.shape) == 3 else torch.float32

    @property
    def digest(self) -> str:
        """Of number, shape and labels: samples may differ each time that they are read."""
        digest = hashlib.blake2b(f"{len(self)},{self.shape}".encode(), digest_size=16)
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def take(
        self, indices: Indices, *, offsets: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        indices = torch.as_tensor(indices, dtype=torch.int64)
        rows = [self._row(index) for index in indices.tolist()]
        taken = torch.stack(rows) if rows else torch.empty((0, *self.shape), dtype=self.dtype)
        return (taken if out is None else out.copy_(taken)), self.labels[indices]

    def in_memory(self) -> InMemory:
        """The same, each sample read once."""
        values, labels = self.take(torch.arange(len(self)))
        return InMemory(self.name, self.split, values, labels, self.source)

    def _row(self, index: int) -> Tensor:
        value = self._value(index)
        if isinstance(value, Image.Image):
            value = torch.from_numpy(
                numbers(squared(upright(value, self.shape[0]), self.shape[-1])).copy()
            )
        if value.shape != self.shape:
            raise MqvaeError(
                f"sample {index} of {self.name} has shape {tuple(value.shape)}: expected "
                f"{self.shape}, as the first has"
            )
        return value

    def _value(self, index: int) -> Any:
        """A PIL image, or a vector (D,) as float32."""
        try:
            value = self.samples[index]
        except Exception as error:  # a dataset's own code may raise anything
            raise MqvaeError(
                f"sample {index} of {self.name} cannot be read: {type(error).__name__}: {error}"
            ) from error
        if isinstance(value, Mapping | tuple | list):
            found: Any = value if isinstance(value, Mapping) else dict(enumerate(value))
            names = PICTURES if self.image is None else (self.image,)
            name = next((each for each in names if each in found), None)
            if name is None:
                raise MqvaeError(
                    f"a sample of {self.name} has {', '.join(map(str, found))}: expected one of "
                    f"{', '.join(map(str, names))}; name it (--data.image NAME)"
                )
            value = found[name]
        if isinstance(value, Image.Image):
            return value
        array = torch.as_tensor(value).cpu()
        if array.ndim == 1:
            return array.to(torch.float32)
        if array.is_floating_point() and 0 <= float(array.min()) <= float(array.max()) <= 1:
            array = (array * 255).round().to(torch.uint8)
        if array.ndim == 3 and array.shape[0] in (1, 3):
            array = array.movedim(0, -1)
        if (
            array.dtype != torch.uint8
            or array.ndim not in (2, 3)
            or array.shape[2:] not in ((), (1,), (3,))
        ):
            raise MqvaeError(
                f"sample {index} of {self.name} is {tuple(array.shape)} {array.dtype}: expected a "
                "PIL image, bytes or floats in [0, 1] of 1 or 3 channels, or a vector"
            )
        return Image.fromarray(
            array.squeeze(-1).numpy() if array.shape[2:] == (1,) else array.numpy()
        )


@dataclass(frozen=True)
class OneByOne(Data):
    """What datasets of numbered samples have in common.

    Args:
        side: Pixels a side, to which images are resized and cropped (default: of the first).
        channels: 1 for grey, 3 for colour (default: as the first image).
        image: What the image is called in a sample (default: found).
        memory: Read each sample once and hold it, which fixes random transforms.
        shape: Of a sample, as found.
    """

    side: Number | None = None
    channels: Literal[1, 3] | None = None
    image: str | None = None
    memory: bool = False
    shape: tuple[int, ...] | None = None

    def seen(self, images: Images) -> Self:
        shape = images.shape
        if len(shape) == 1:
            return replace(self, shape=shape)
        channels: Any = shape[0]
        return replace(self, shape=shape, side=shape[-1], channels=channels)

    def _images(self, samples: Any, split: str, labels: Any) -> Images:
        labels = None if self.classes == 1 else labels
        found = OfDataset(
            samples,
            name=self.title,
            split=split,
            side=self.side,
            channels=self.channels,
            image=self.image,
            labels=labels,
        )
        return found.in_memory() if self.memory else found

    def _tenth(self, images: Images, split: str) -> Images:
        """A split of a dataset that has one alone."""
        chosen = by_number(len(images), self.title)[split]
        return Part(images, torch.from_numpy(chosen), split=split)


@dataclass(frozen=True)
class TorchData(OneByOne):
    """A `torch.utils.data.Dataset` of your own or of torchvision, by its class.

    Args:
        name: What it is called (default: its class).
        train: The dataset; a tenth of it is for test where there is no other.
        test: That for test.
    """

    train: DatasetSpec | None = None
    test: DatasetSpec | None = None

    @property
    def title(self) -> str:
        path = (self.train or {}).get("class_path", "")
        return self.name or path.rpartition(".")[2] or "dataset"

    def load(self, split: str) -> Images:
        spec = self.train if self.test is None else getattr(self, split)
        if not spec:
            raise MqvaeError("data.train must name a dataset: --data.train my_module.Mine")
        with refused("data"):
            samples = _made(spec)
        labels = getattr(samples, "targets", getattr(samples, "labels", None))
        images = self._images(samples, split, labels)
        return images if self.test is not None else self._tenth(images, split)


@dataclass(frozen=True)
class HubData(OneByOne):
    """A dataset of the Hugging Face Hub, as `datasets.load_dataset` finds it.

    Args:
        name: hf:OWNER/NAME, or hf:FOLDER of files that the package `datasets` reads.
        config: Which of the dataset's configurations (default: its own).
        label: Column of the labels (default: found; 1 class where there is none).
    """

    config: str | None = None
    label: str | None = None

    @classmethod
    def takes(cls, name: str) -> bool:
        return name.startswith(HUB)

    def load(self, split: str) -> Images:
        require("datasets")
        import datasets  # type: ignore[import-not-found, unused-ignore]

        found = datasets.load_dataset(self.name.removeprefix(HUB), self.config)
        own = {"train": ("train",), "test": ("test", "validation")}[split]
        name = next((each for each in own if each in found), next(iter(found)))
        samples = found[name]
        columns = LABELS if self.label is None else (self.label,)
        label = next((each for each in columns if each in samples.column_names), None)
        images = self._images(samples, split, None if label is None else samples[label])
        return self._tenth(images, split) if len(found) == 1 else images


def _made(spec: Any) -> Any:
    """The object of a {class_path, init_args}, whose class was looked at as settings were read."""
    if isinstance(spec, Mapping) and "class_path" in spec:
        kind: Any = locate(spec["class_path"])
        return kind(**{name: _made(value) for name, value in (spec.get("init_args") or {}).items()})
    return [_made(each) for each in spec] if isinstance(spec, list) else spec

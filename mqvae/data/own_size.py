"""Image files at the sizes that they have."""

import numpy as np
import torch
from torch import Tensor

from mqvae.data.decoding import guarded, numbers, open_image, upright
from mqvae.data.files import Files
from mqvae.data.images import Images, Indices
from mqvae.errors import MqvaeError

_ORIENTATION, _ON_THEIR_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF


class BySize(Images):
    """Image files at their own sizes, those of one size together: nothing is resized or cut off.

    Args:
        whole: The same images at one size, from files.
        channels: 1 or 3.

    Attributes:
        parts: Images of one size each, most of them first.

    Raises:
        ValueError: if they are not in files, or one cannot be read.
    """

    def __init__(self, whole: Images, channels: int) -> None:
        files = whole.files
        if files is None:
            raise MqvaeError(
                f"{whole.name} has images of one size, and no files: leave --own-size out."
            )
        self.name, self.split, self.source = whole.name, whole.split, whole.source
        self.names, self.files = whole.names, files
        sizes: dict[tuple[int, int], list[int]] = {}
        for index in range(len(files)):
            sizes.setdefault(_size(files, index), []).append(index)
        by_number = sorted(sizes.items(), key=lambda item: -len(item[1]))
        self.parts = [
            _OfOneSize(whole, files, np.array(indices), (channels, *size))
            for size, indices in by_number
        ]
        self.labels = torch.cat([part.labels for part in self.parts])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the smallest sides there are."""
        shapes = [part.shape for part in self.parts]
        return shapes[0][0], min(s[1] for s in shapes), min(s[2] for s in shapes)

    def take(
        self, indices: Indices, *, offsets: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Not of several sizes: take those of `parts`."""
        raise TypeError("images of several sizes are no tensor: take those of parts")


class _OfOneSize(Images):
    """Some of the files, of one size."""

    def __init__(
        self, whole: Images, files: Files, indices: np.ndarray, shape: tuple[int, int, int]
    ) -> None:
        self.name, self.split, self.source = whole.name, whole.split, whole.source
        self.files = files.take(indices)
        self.names = [whole.names[index] for index in indices.tolist()]
        self.labels = whole.labels[torch.from_numpy(indices)]
        self._shape = shape

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def take(
        self, indices: Indices, *, offsets: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert offsets is None and self.files is not None
        indices = torch.as_tensor(indices, dtype=torch.int64)
        pixels = np.stack([self._read(self.files, index) for index in indices.tolist()])
        found = torch.from_numpy(pixels)
        return (found if out is None else out.copy_(found)), self.labels[indices]

    def _read(self, files: Files, index: int) -> np.ndarray:
        channels, height, width = self._shape

        def read() -> np.ndarray:
            with open_image(files.open(index)) as opened:
                image = numbers(upright(opened, channels))
            if image.shape[1:] != (height, width):
                raise MqvaeError(f"it was {width} × {height} pixels a moment ago")
            return image

        return guarded(read, lambda: files.where(index))


def _size(files: Files, index: int) -> tuple[int, int]:
    """Height and width of an image, upright."""

    def read() -> tuple[int, int]:
        with open_image(files.open(index)) as image:
            width, height = image.size
            on_its_side = image.getexif().get(_ORIENTATION) in _ON_THEIR_SIDE
        return (width, height) if on_its_side else (height, width)

    return guarded(read, lambda: files.where(index))

"""Images as every consumer knows them; those in memory, as bytes; a part of others."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from mqvae.data.files import Files
from mqvae.errors import MqvaeError

MAX_BYTES = 4 * 2**30
Indices: TypeAlias = Tensor | Sequence[int]


class Images(ABC):
    """Images of one shape with labels, wherever they are; or vectors.

    Attributes:
        name: Data set, or the folder's path.
        split: "train" or "test"; "files" for files given one by one.
        labels: (N,) int64; zeros where there are no classes.
        source: Where the bytes came from, one readable line.
        names: File names relative to the folder, for folders; else empty.
        files: The files they are read from; None where there are none.
        remarks: What was left out or met twice as they were listed, a sentence each.
        ahead: How many batches are worth taking ahead; 0 where taking costs nothing.
        skipped: Names of those met so far that could not be read, where they are skipped.
    """

    name: str
    split: str
    labels: Tensor
    source: str
    names: Sequence[str]
    files: Files | None = None
    remarks: tuple[str, ...] = ()
    ahead: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image, (D,) of a vector."""

    @property
    def skipped(self) -> Sequence[str]:
        return ()

    @property
    def dtype(self) -> torch.dtype:
        """Of what `take` gives: uint8 of images, float32 of vectors."""
        return torch.uint8

    @property
    def digest(self) -> str:
        """Hash of images that are in no files; 32 hexadecimal digits.

        Raises:
            TypeError: if it is the files that tell.
        """
        raise TypeError(f"{type(self).__name__} has neither files nor pixels in memory")

    @abstractmethod
    def take(
        self, indices: Indices, *, offsets: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images and labels at `indices` (n,): (n, C, H, W) uint8 and (n,) int64.

        Of vectors (n, D) float32.

        Args:
            indices: Which ones, 0 to N − 1.
            offsets: Where the square of each is cut along the longer side, (n,) of 0 to 1; the
                centre if None.
            out: Where the bytes go, (n, C, H, W) uint8; also returned.

        Raises:
            ValueError: if one cannot be read, or `offsets` are given and there is nothing to cut.
        """


@dataclass(frozen=True, eq=False)
class InMemory(Images):
    """Images held in memory as bytes, or vectors as floats.

    Attributes:
        pixels: (N, C, H, W) uint8, or (N, D) float32.
        original: `digest` of the images that these were resized or converted from.

    Raises:
        ValueError: if shapes or types are others than these.
    """

    name: str
    split: str
    pixels: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    source: str
    names: tuple[str, ...] = field(default=(), repr=False)
    skipped: tuple[str, ...] = field(default=(), repr=False)
    files: Files | None = field(default=None, repr=False)
    original: str = field(default="", repr=False)
    remarks: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if (self.pixels.dtype, self.pixels.ndim) not in ((torch.uint8, 4), (torch.float32, 2)):
            raise MqvaeError(
                f"pixels do not fit: expected (N, C, H, W) uint8, got {tuple(self.pixels.shape)} "
                f"{self.pixels.dtype}; scale values to 0..255 and convert with .to(torch.uint8)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise MqvaeError(
                f"labels do not fit: expected ({len(self.pixels)},) int64, got "
                f"{tuple(self.labels.shape)} {self.labels.dtype}; give one number per image"
            )
        if self.names and len(self.names) != len(self.pixels):
            raise MqvaeError(
                f"names do not fit: expected {len(self.pixels)}, got {len(self.names)}; "
                "give one per image, or none"
            )

    @property
    def dtype(self) -> torch.dtype:
        return self.pixels.dtype

    @cached_property
    def digest(self) -> str:
        """BLAKE2b of pixels and labels as they came, before any resizing; 32 hexadecimal digits."""
        if self.original:
            return self.original
        digest = hashlib.blake2b(str(tuple(self.pixels.shape)).encode(), digest_size=16)
        for values in (self.pixels, self.labels):
            digest.update(values.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    def take(
        self, indices: Indices, *, offsets: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if offsets is not None:
            raise MqvaeError(nothing_to_cut(self.name))
        indices = torch.as_tensor(indices, dtype=torch.int64, device=self.pixels.device)
        pixels = torch.index_select(self.pixels, 0, indices, out=out)
        return pixels, self.labels.index_select(0, indices)


class Part(Images):
    """Some of other images, by their indices: nothing is copied.

    Args:
        whole: The others.
        indices: Which of them, in which order, (n,) int64.
        split: What the part is called, if not as the whole.
    """

    def __init__(self, whole: Images, indices: Tensor, *, split: str | None = None) -> None:
        self.whole = whole
        self.indices = indices
        self.name = whole.name
        self.split = whole.split if split is None else split
        self.source = whole.source
        self.ahead = whole.ahead
        self.remarks = whole.remarks
        self.labels = whole.labels.index_select(0, indices)
        self.names = _Chosen(whole.names, indices) if whole.names else ()

    @cached_property
    def files(self) -> Files | None:  # type: ignore[override]
        files = self.whole.files
        return None if files is None else files.take(self.indices.cpu().numpy())

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    @property
    def digest(self) -> str:
        digest = hashlib.blake2b(self.whole.digest.encode(), digest_size=16)
        digest.update(self.indices.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def skipped(self) -> Sequence[str]:
        return self.whole.skipped

    def take(
        self, indices: Indices, *, offsets: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        chosen = self.indices[torch.as_tensor(indices, dtype=torch.int64)]
        return self.whole.take(chosen, offsets=offsets, out=out)


def first(images: Images, count: int) -> Images:
    """The first images, `count` of them or as many as there are."""
    return Part(images, torch.arange(min(count, len(images))))


class _Chosen(Sequence[str]):
    """Some of other names."""

    def __init__(self, names: Sequence[str], indices: Tensor) -> None:
        self._names = names
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return tuple(self._names[i] for i in self._indices[index].tolist())
        return self._names[int(self._indices[index])]


def nothing_to_cut(name: str) -> str:
    """Why images cannot be cut at random."""
    return (
        f"the images of {name} are held in memory as squares: there is nothing to cut at random. "
        "Leave data.crop at center"
    )


def fits_memory(count: int, channels: int, side: int) -> bool:
    """Whether this number of images needs `MAX_BYTES` at most."""
    return count * channels * side * side <= MAX_BYTES


def check_memory(
    name: str, count: int, channels: int, side: int, *, may_stay: bool = False
) -> None:
    """Refuse more images than `MAX_BYTES` hold; `may_stay` says that they may stay on the disk."""
    needed = count * channels * side * side
    if not fits_memory(count, channels, side):
        fits = math.isqrt(MAX_BYTES // (count * channels))
        raise MqvaeError(
            f"{name} does not fit in memory: expected at most {MAX_BYTES:,} bytes "
            f"({MAX_BYTES / 2**30:.3g} GiB), got {count:,} images of {channels} × {side} × {side} "
            f"= {needed:,} bytes ({needed / 2**30:.3g} GiB); choose a side of at most {fits} "
            f"(side={fits}, --size {fits}), or "
            + (
                "leave memory=True (--data.memory) out to read them from the disk"
                if may_stay
                else "take fewer images, as a folder of their own (--data FOLDER)"
            )
        )

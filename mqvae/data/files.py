"""Many image files, by their numbers."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from mqvae.data.decoding import File
from mqvae.data.listing import Names, hashes_of, state_of
from mqvae.errors import MqvaeError


class Files(ABC):
    """Image files, wherever they are.

    Attributes:
        names: One for each.
    """

    names: Names

    def __len__(self) -> int:
        return len(self.names)

    def _hashed_as(self, whole: "Files", indices: np.ndarray) -> Self:
        """With those hashes of the files it was taken from that are known already."""
        for kind in ("name_hashes", "split_hashes"):
            if kind in whole.__dict__:
                self.__dict__[kind] = whole.__dict__[kind][indices]
        return self

    @abstractmethod
    def open(self, index: int) -> File:
        """What Pillow opens: a path, or a file that is open."""

    @abstractmethod
    def where(self, index: int) -> str:
        """What to call it in a message."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> "Files":
        """Some of them."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """Bytes of each, (N,) int64; -1 of one that is not there."""

    @abstractmethod
    def times(self) -> np.ndarray:
        """When each was changed last, in ns, (N,) int64; -1 of one that is not there."""

    @cached_property
    def name_hashes(self) -> np.ndarray:
        """Of each name, (N,) uint64."""
        return self.names.hashes()

    @cached_property
    def split_hashes(self) -> np.ndarray:
        """Of what decides the split of each, its name without the ending, (N,) uint64.

        So the same images have the same splits in a folder, as files of another kind and in shards.
        """
        return hashes_of(self._keys(), len(self))

    def _keys(self) -> Iterator[bytes]:
        return (name.rpartition(b".")[0] for name in self.names.raw())


@dataclass(frozen=True)
class InFolder(Files):
    """Files by their paths.

    Attributes:
        folder: What the paths start from.
        names: Paths relative to it.
    """

    folder: str
    names: Names

    def open(self, index: int) -> File:
        return self.where(index)

    def where(self, index: int) -> str:
        return f"{self.folder.rstrip('/')}/{self.names[index]}"

    def take(self, indices: np.ndarray) -> "InFolder":
        return InFolder(self.folder, self.names.take(indices))._hashed_as(self, indices)

    def sizes(self) -> np.ndarray:
        return self._states(lambda state: state.st_size)

    def times(self) -> np.ndarray:
        return self._states(lambda state: state.st_mtime_ns)

    def _states(self, of: Callable[[os.stat_result], int]) -> np.ndarray:
        root = os.fsencode(self.folder.rstrip("/")) + b"/"
        found = (state_of(root + name) for name in self.names.raw())
        values = (-1 if state is None else of(state) for state in found)
        return np.fromiter(values, np.int64, len(self))


@dataclass(frozen=True)
class Reading:
    """How files become images.

    Attributes:
        side: Pixels a side; what they have if None.
        channels: 1 or 3; what they have if None.
        memory: Whether to hold the images in memory; if they fit where None.
        workers: Threads that decode; as many as there are cores, 8 at most, where None.
        on_error: What an image that cannot be read is: "stop" is an error that names it, "skip"
            takes the next one in its place.
        labels: Whether images have labels; zeros if not.
        resize: Whether images are resized to `side`, or cut to it; then only smaller
            ones are resized.
    """

    side: int | None = None
    channels: int | None = None
    memory: bool | None = None
    workers: int | None = None
    on_error: str = "stop"
    labels: bool = True
    resize: bool = True

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 1:
            raise MqvaeError(
                f"side is out of range: expected at least 1 pixel, got {self.side}; e.g. 32"
            )
        if self.channels not in (None, 1, 3):
            raise MqvaeError(
                f"channels is out of range: expected 1 (grey) or 3 (colour), got {self.channels}; "
                "leave it out to take what the images have"
            )
        if self.on_error not in ("stop", "skip"):
            raise MqvaeError(f"on_error is {self.on_error!r}: expected 'stop' or 'skip'")
        if self.workers is not None and self.workers < 1:
            raise MqvaeError(f"workers is {self.workers}: expected at least 1 thread that decodes")

"""Many image files, by their numbers."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mqvae.data.decoding import File
from mqvae.data.listing import Names
from mqvae.errors import MqvaeError


class Files(ABC):
    """Image files, wherever they are.

    Attributes:
        names: One for each.
    """

    names: Names

    def __len__(self) -> int:
        return len(self.names)

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

    @property
    def split_hashes(self) -> np.ndarray:
        """What decides the split of each, (N,) uint64."""
        return self.name_hashes


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
        return InFolder(self.folder, self.names.take(indices))

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
    """

    side: int | None = None
    channels: int | None = None
    memory: bool | None = None
    workers: int | None = None
    on_error: str = "stop"

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise MqvaeError(f"on_error is {self.on_error!r}: expected 'stop' or 'skip'")
        if self.workers is not None and self.workers < 1:
            raise MqvaeError(f"workers is {self.workers}: expected at least 1 thread that decodes")


def state_of(path: str | bytes) -> os.stat_result | None:
    """What the file system knows of a file; None where there is none."""
    try:
        return os.stat(path)
    except OSError:
        return None

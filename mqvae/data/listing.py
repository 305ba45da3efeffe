"""The image files under a folder: listed once, kept while no folder changes."""

import contextlib
import hashlib
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from mqvae.cache import cache_folder
from mqvae.files import writing

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CACHED_FROM = 1_000  # files; fewer are listed in no time
_STILL_NS = 2_000_000_000  # a folder may change again within one tick of its clock
_BLOCK = 2**16  # names at a time, so that what is computed with them stays small
_ENDINGS = frozenset(extension.encode() for extension in EXTENSIONS)


class Names(Sequence[str]):
    """Many names in little memory: one text of bytes, and where each ends.

    Args:
        text: All names, one after another, as the file system has them.
        ends: Where each ends, (N,) int64.
    """

    def __init__(self, text: bytes, ends: np.ndarray) -> None:
        self.text = text
        self.ends = ends

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Names":
        text, ends = bytearray(), array("q")
        for name in names:
            text += name
            ends.append(len(text))
        return cls(bytes(text), np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.text[start : int(self.ends[index])])

    def __iter__(self) -> Iterator[str]:
        return (os.fsdecode(name) for name in self.raw())

    def raw(self) -> Iterator[bytes]:
        """The names as bytes."""
        start = 0
        for block in range(0, len(self), _BLOCK):
            for end in self.ends[block : block + _BLOCK].tolist():
                yield self.text[start:end]
                start = end

    def hashes(self) -> np.ndarray:
        """BLAKE2b of each name in 64 bits, (N,) uint64: the same on every machine."""
        return hashes_of(self.raw(), len(self))

    def take(self, indices: np.ndarray) -> "Names":
        """Some of them."""
        starts = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])[indices]
        lengths = self.ends[indices] - starts
        ends, text = lengths.cumsum(), np.frombuffer(self.text, np.uint8)
        taken = np.empty(ends[-1] if len(ends) else 0, dtype=np.uint8)
        before = 0
        for block in range(0, len(ends), _BLOCK):
            some = slice(block, block + _BLOCK)
            last = int(ends[some][-1])
            # Byte j of name i is byte starts[i] + j of the text, and before_i + j of what is taken.
            away = (starts[some] - ends[some] + lengths[some]).repeat(lengths[some])
            taken[before:last] = text[np.arange(before, last) + away]
            before = last
        return Names(taken.tobytes(), ends)

    def below(self, folder: str) -> "Names":
        """The same names in a folder."""
        before = os.fsencode(folder) + b"/"
        return Names.of(before + name for name in self.raw())

    def __add__(self, other: "Names") -> "Names":
        return Names(
            self.text + other.text, np.concatenate([self.ends, other.ends + len(self.text)])
        )


def hashes_of(names: Iterable[bytes], count: int) -> np.ndarray:
    """BLAKE2b of each of `count` names in 64 bits, (count,) uint64."""
    digests = bytearray()
    for name in names:
        digests += hashlib.blake2b(name, digest_size=8).digest()
    return np.frombuffer(digests, dtype=">u8", count=count).astype(np.uint64)


def list_images(folder: Path) -> Names:
    """Image files under a folder, sorted by the parts of their paths, relative to it.

    Links are followed; names that begin with a dot and folders that may not be read are left out.
    The list of a large folder is kept in the cache and read there, as long as the folder and those
    below it have the times of change they had. A file that is replaced under its own name changes
    no folder, and need not be noticed: the list holds names alone.

    Raises:
        FileNotFoundError: if there are none.
    """
    place = kept_at("images", str(folder.absolute()))
    names = _read(place, folder)
    if names is None:
        began = time.time_ns()
        folders: dict[bytes, int] = {}
        names = Names.of(_walk(os.fsencode(folder), b"", frozenset(), folders))
        still = max(folders.values(), default=0) < began - _STILL_NS
        if len(names) >= CACHED_FROM and still:
            below = Names.of(folders)
            keep(
                place,
                {
                    "text": np.frombuffer(names.text, np.uint8),
                    "ends": names.ends,
                    "folders": np.frombuffer(below.text, np.uint8),
                    "folder_ends": below.ends,
                    "times": np.array(list(folders.values()), dtype=np.int64),
                },
            )
    if not len(names):
        raise FileNotFoundError(
            f"{folder} holds no images: expected files ending in {', '.join(EXTENSIONS)} in it or "
            "its subfolders, got none; check the path"
        )
    return names


def holds_images(folder: Path) -> bool:
    """Whether there is an image or a shard under a folder."""
    if any(_walk(os.fsencode(folder), b"", frozenset(), {})):
        return True
    return any(not path.name.startswith(".") for path in folder.glob("*.tar"))


def _walk(
    folder: bytes, inside: bytes, above: frozenset[tuple[int, int]], folders: dict[bytes, int]
) -> Iterator[bytes]:
    """Depth first, each folder sorted: then all of them are sorted by the parts of their paths."""
    entries: list[tuple[bytes, bool]] = []
    try:
        state = os.stat(folder)
        here = (state.st_dev, state.st_ino)
        if here in above:  # a link to a folder above would otherwise be walked for ever
            return
        with os.scandir(folder) as there:
            for entry in there:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir():
                    entries.append((entry.name, True))
                elif os.path.splitext(entry.name)[1].lower() in _ENDINGS:
                    entries.append((entry.name, False))
    except PermissionError:
        return
    folders[inside] = state.st_mtime_ns
    for name, is_folder in sorted(entries):
        if is_folder:
            path = os.path.join(folder, name)
            yield from _walk(path, inside + name + b"/", above | {here}, folders)
        else:
            yield inside + name


def _read(place: Path, folder: Path) -> Names | None:
    """What is kept, if no folder has changed since."""

    def unchanged(kept: Mapping[str, np.ndarray]) -> bool:
        below = Names(kept["folders"].tobytes(), kept["folder_ends"])
        root = os.fsencode(folder)
        return all(
            (state := state_of(os.path.join(root, inside))) is not None
            and state.st_mtime_ns == then
            for inside, then in zip(below.raw(), kept["times"].tolist(), strict=True)
        )

    kept = read_kept(place, unchanged)
    return None if kept is None else Names(kept["text"].tobytes(), kept["ends"])


def state_of(path: str | bytes) -> os.stat_result | None:
    """What the file system knows of a file; None where there is none."""
    try:
        return os.stat(path)
    except OSError:
        return None


# -- lists in the cache ----------------------------------------------------------------------------


def kept_at(kind: str, what: str) -> Path:
    """Where a list is kept."""
    digest = hashlib.sha256(os.fsencode(f"{kind}\0{what}")).hexdigest()
    return cache_folder("lists") / f"{digest[:32]}.npz"


def keep(place: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays whole or not at all; a cache that cannot be written is none."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with writing(place) as file:
            np.savez(file, allow_pickle=False, **arrays)


def read_kept(
    place: Path, holds: Callable[[Mapping[str, np.ndarray]], bool]
) -> dict[str, np.ndarray] | None:
    """The arrays, if they are there, whole, and still hold."""
    try:
        # numpy leaves a damaged file open that it has opened itself.
        with place.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files}
        return kept if holds(kept) else None
    # Of another version, or damaged: then it is made anew.
    except Exception:
        return None

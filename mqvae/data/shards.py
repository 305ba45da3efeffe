"""Shards in WebDataset's layout: tar files, indexed once, then read at any place.

The package `webdataset` streams; its authors say that it cannot go on at an exact sample (issues
234 and 271 of its repository). With an index a shard is random access, and shards have the same
order, resumption and processes as folders have.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from mqvae.data.decoding import File
from mqvae.data.files import Files, state_of
from mqvae.data.listing import CACHED_FROM, EXTENSIONS, Names, keep, kept_at, read_kept
from mqvae.errors import MqvaeError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class InShards(Files):
    """Members of tar files.

    Attributes:
        folder: What the shards' paths start from.
        shards: Paths of the shards, relative to it.
        names: `SHARD/MEMBER`, the shard without its extension.
        shard: Which shard each is in, (N,).
        start: Where in it, in bytes, (N,).
        size: How many bytes, (N,).
    """

    folder: str
    shards: tuple[str, ...]
    names: Names
    shard: np.ndarray
    start: np.ndarray
    size: np.ndarray

    def open(self, index: int) -> File:
        size = int(self.size[index])
        with open(os.path.join(self.folder, self._shard(index)), "rb", buffering=0) as file:
            file.seek(int(self.start[index]))
            content = file.read(size)
        if len(content) < size:
            raise MqvaeError("the shard is cut short")
        return BytesIO(content)

    def where(self, index: int) -> str:
        shard = self._shard(index)
        member = self.names[index].removeprefix(f"{shard.removesuffix('.tar')}/")
        return f"{member} of {os.path.join(self.folder, shard)}"

    def take(self, indices: np.ndarray) -> "InShards":
        return InShards(
            self.folder,
            self.shards,
            self.names.take(indices),
            self.shard[indices],
            self.start[indices],
            self.size[indices],
        )

    def sizes(self) -> np.ndarray:
        return self.size

    def times(self) -> np.ndarray:
        states = (state_of(os.path.join(self.folder, shard)) for shard in self.shards)
        times = [-1 if state is None else state.st_mtime_ns for state in states]
        return np.array(times, dtype=np.int64)[self.shard]

    def count_of(self, shards: Sequence[str]) -> int:
        """How many images some of the shards have."""
        chosen = [self.shards.index(shard) for shard in shards]
        return int(np.isin(self.shard, chosen).sum())

    def _shard(self, index: int) -> str:
        return self.shards[int(self.shard[index])]


def shards_in(folder: Path, inside: str = "") -> list[str]:
    """Tar files in a folder, or in a folder inside it; relative to it, sorted."""
    paths = (folder / inside).glob("*.tar")
    return sorted(p.relative_to(folder).as_posix() for p in paths if not p.name.startswith("."))


def expand(pattern: str) -> tuple[Path, list[str]]:
    """The folder and the shards that a path names: `photos/{000000..000123}.tar` names 124.

    Raises:
        FileNotFoundError: if one of them is not there.
    """
    folder, _, name = pattern.rpartition("/")
    names = [name]
    while found := _RANGE.search(names[0]):
        first, last = found.groups()
        numbers = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
        names = [_RANGE.sub(number, each, count=1) for each in names for number in numbers]
        if not names:
            raise MqvaeError(f"{pattern} names no shard: expected a range that rises, as 0..9")
    missing = [each for each in names if not Path(folder, each).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{Path(folder, missing[0])} does not exist: {pattern} names {len(names)} shard(s), of "
            f"which {len(missing)} are not there; check the path and the range"
        )
    return Path(folder), names


def index_shards(folder: Path, shards: Sequence[str]) -> tuple[InShards, np.ndarray]:
    """The images of shards, and their labels, in the order of shards and members.

    A sample is what shares a name up to its first dot: an image (of several the first), and its
    label as a number in `.cls`; all labels are zero if one image has none. The index is kept in the
    cache and read there, as long as all shards have the size and time they had.

    Raises:
        ValueError: if a shard cannot be read, or there are no images.
    """
    state = np.array([_state(folder / shard) for shard in shards], dtype=np.int64)
    place = kept_at("shards", "\0".join([str(folder.absolute()), *shards]))

    def unchanged(kept: Mapping[str, np.ndarray]) -> bool:
        return np.array_equal(kept["state"], state)

    arrays = read_kept(place, unchanged)
    if arrays is None:
        arrays = _index(folder, shards)
        if len(arrays["ends"]) >= CACHED_FROM:
            keep(place, {**arrays, "state": state})
    names = Names(arrays["text"].tobytes(), arrays["ends"])
    if not len(names):
        raise FileNotFoundError(
            f"the shards in {folder} hold no images: expected members ending in "
            f"{', '.join(EXTENSIONS)}, got none; check the path"
        )
    found = InShards(
        str(folder), tuple(shards), names, arrays["shard"], arrays["start"], arrays["size"]
    )
    return found, arrays["labels"]


def _index(folder: Path, shards: Sequence[str]) -> dict[str, np.ndarray]:
    names: list[bytes] = []
    places: list[tuple[int, int, int]] = []
    labels: list[int] = []
    labelled = True
    for number, shard in enumerate(shards):
        before = os.fsencode(shard.removesuffix(".tar")) + b"/"
        for image, label in _samples(folder / shard):
            names.append(before + os.fsencode(image.name))
            places.append((number, image.offset_data, image.size))
            labels.append(label or 0)
            labelled = labelled and label is not None
    kept = Names.of(names)
    columns = np.array(places, dtype=np.int64).reshape(-1, 3)
    return {
        "text": np.frombuffer(kept.text, np.uint8),
        "ends": kept.ends,
        "shard": columns[:, 0].astype(np.int32),
        "start": columns[:, 1],
        "size": columns[:, 2],
        "labels": np.array(labels if labelled else [0] * len(labels), dtype=np.int64),
    }


def _samples(path: Path) -> Iterator[tuple[tarfile.TarInfo, int | None]]:
    """The image and the label of each sample that has an image."""
    key, image, label = "", None, None
    try:
        with tarfile.open(path, "r:") as shard:
            while (member := shard.next()) is not None:
                shard.members = []  # type: ignore[attr-defined]  # it would remember them all
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                if f"{folder}/{stem}" != key:
                    if image is not None:
                        yield image, label
                    key, image, label = f"{folder}/{stem}", None, None
                if image is None and os.path.splitext(f"x.{kind}")[1].lower() in EXTENSIONS:
                    image = member
                elif kind == "cls":
                    content = shard.extractfile(member)
                    label = None if content is None else int(content.read())
            if image is not None:
                yield image, label
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise MqvaeError(
            f"{path} cannot be read: expected a tar file that is not compressed, with numbers in "
            f"its .cls files, got: {error}; write it anew, or take it out"
        ) from error


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns

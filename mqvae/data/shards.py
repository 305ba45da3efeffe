"""Shards in WebDataset's layout: tar files, indexed once, then read at any place.

The package `webdataset` streams; its authors say that it cannot go on at an exact sample (issues
234 and 271 of its repository). With an index a shard is random access, and shards have the same
order, resumption and processes as folders have. Its `wids` (0.2.111; 1.0 has none) reads at random
too: with all shards open 1.4 × the time a read and 110 MiB for 20,000 samples, ours 4.
"""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np

from mqvae.data.decoding import File
from mqvae.data.files import Files
from mqvae.data.listing import CACHED_FROM, EXTENSIONS, Names, keep, kept_at, read_kept, state_of
from mqvae.errors import MqvaeError

NO_LABEL = -1
_LONGEST_LABEL = 32  # bytes of a .cls file
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
        remark: What was left out or met twice, a sentence; empty if nothing.
    """

    folder: str
    shards: tuple[str, ...]
    names: Names
    shard: np.ndarray
    start: np.ndarray
    size: np.ndarray
    remark: str = ""

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
            self.remark,
        )._hashed_as(self, indices)

    def _keys(self) -> Iterator[bytes]:
        """Of the samples: the same whichever shard they are in."""
        before = [len(os.fsencode(shard.removesuffix(".tar"))) + 1 for shard in self.shards]
        for name, shard in zip(self.names.raw(), self.shard.tolist(), strict=True):
            folder, slash, member = name[before[shard] :].rpartition(b"/")
            yield folder + slash + member.partition(b".")[0]

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

    A sample is what shares a name up to its first dot, wherever in the shard: an image (of several
    the first), and its label as a number in `.cls`; -1 is that of an image without one. Of a member
    that is stored twice the later one is taken, as `tar` does. The index is kept in the cache and
    read there, as long as all shards have the size and time they had.

    Raises:
        ValueError: if a shard cannot be read, or there are no images.
    """
    states = [(folder / shard).stat() for shard in shards]
    state = np.array([(each.st_size, each.st_mtime_ns) for each in states], dtype=np.int64)
    place = kept_at("samples", "\0".join([str(folder.absolute()), *shards]))
    arrays = read_kept(place, lambda kept: np.array_equal(kept["state"], state))
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
        str(folder),
        tuple(shards),
        names,
        arrays["shard"],
        arrays["start"],
        arrays["size"],
        str(arrays["remark"]),
    )
    return found, arrays["labels"]


def _index(folder: Path, shards: Sequence[str]) -> dict[str, np.ndarray]:
    names: list[bytes] = []
    places: list[tuple[int, int, int]] = []
    labels: list[int] = []
    odd: Odd = {}
    for number, shard in enumerate(shards):
        before = os.fsencode(shard.removesuffix(".tar")) + b"/"
        for sample in _samples(folder / shard, odd):
            names.append(before + os.fsencode(sample.name))
            places.append((number, sample.start, sample.size))
            labels.append(sample.label)
    kept = Names.of(names)
    columns = np.array(places, dtype=np.int64).reshape(-1, 3)
    return {
        "text": np.frombuffer(kept.text, np.uint8),
        "ends": kept.ends,
        "shard": columns[:, 0].astype(np.int32),
        "start": columns[:, 1],
        "size": columns[:, 2],
        "labels": np.array(labels, dtype=np.int64),
        "remark": np.array(_remark(odd, folder)),
    }


FURTHER = "left out, as there is an image before them in their sample"
TWICE = "stored twice, the later one is taken"
LINKS = "left out, as they are links, devices or sparse"
Odd = dict[str, tuple[int, str]]
"""How many members are left out or met twice, and the first of them, by the reason."""


def _remark(odd: Odd, folder: Path) -> str:
    """A sentence on odd members: how many, and the first of each kind; empty without any."""
    parts = [
        f"{odd[kind][0]:,} {kind} ({odd[kind][1]}{', …' * (odd[kind][0] > 1)})"
        for kind in (FURTHER, TWICE, LINKS)
        if kind in odd
    ]
    return f"images in the shards of {folder}: {'; '.join(parts)}" if parts else ""


@dataclass
class _Sample:
    name: str = ""
    start: int = 0
    size: int = 0
    label: int = NO_LABEL


def _count(odd: Odd, kind: str, member: str, path: Path) -> None:
    """One more of a kind; their names would be as many as shards have members."""
    number, first = odd.get(kind, (0, f"{member} of {path.name}"))
    odd[kind] = number + 1, first


def _samples(path: Path, odd: Odd) -> list[_Sample]:
    """The samples of a shard that have an image, in the order of their first members."""
    samples: dict[str, _Sample] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            for member in _members(shard):
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if not stem:
                    continue
                is_image = os.path.splitext(f"x.{kind}")[1].lower() in EXTENSIONS
                if not member.isreg() or member.issparse():
                    if is_image:
                        _count(odd, LINKS, member.name, path)
                    continue
                if not is_image and kind != "cls":
                    continue
                sample = samples.setdefault(f"{folder}/{stem}", _Sample())
                if kind == "cls":
                    sample.label = _label(shard, member)
                elif sample.name and sample.name != member.name:
                    _count(odd, FURTHER, member.name, path)
                else:
                    if sample.name:
                        _count(odd, TWICE, member.name, path)
                    sample.name, sample.size = member.name, member.size
                    sample.start = member.offset_data
            _check_end(file, shard.offset)
    except OSError:
        raise
    # What tarfile meets damaged headers with is not all its own.
    except Exception as error:
        raise MqvaeError(
            f"{path} cannot be read: expected a whole tar file that is not compressed, with "
            f"numbers in its .cls files, got: {error}; write it anew, or take it out"
        ) from error
    return [sample for sample in samples.values() if sample.name]


def _members(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    before = -1
    while (member := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]  # it would remember them all
        if member.size < 0 or shard.offset <= before:
            raise MqvaeError(f"a damaged header, that of {member.name}")
        before = shard.offset
        yield member


def _label(shard: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    content = shard.extractfile(member)
    text = b"" if content is None else content.read(_LONGEST_LABEL)
    try:
        label = int(text)
    except ValueError:
        label = NO_LABEL
    if not 0 <= label < 2**31:
        raise MqvaeError(f"{text.decode(errors='replace')!r} in {member.name}")
    return label


def _check_end(file: IO[bytes], end: int) -> None:
    """tarfile takes a header that is cut or damaged for the end of the archive."""
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise MqvaeError(
            f"one that ends after {end + len(mark):,} bytes, without a mark of its end"
        )
    while mark:
        if mark.strip(b"\0"):
            raise MqvaeError(f"what is neither a member nor the end, at byte {end:,} or after it")
        mark = file.read(2**20)

"""Image files, folders of them and folders of shards -> images."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mqvae.data.files import Files, InFolder, Reading
from mqvae.data.images import Images, check_options
from mqvae.data.listing import EXTENSIONS, Names, list_images
from mqvae.data.shards import expand, index_shards, shards_in
from mqvae.data.stored import images_of, settle
from mqvae.errors import MqvaeError


@dataclass(frozen=True)
class Divided:
    """Image files, divided into splits.

    Attributes:
        files: All of them.
        labels: Of all of them, (N,).
        splits: Split -> which of them.
    """

    files: Files
    labels: np.ndarray
    splits: Mapping[str, np.ndarray]


def image_files(path: str | Path) -> list[Path]:
    """The image file `path`, or all image files under the folder `path`, sorted.

    Links are followed; names that begin with a dot are left out.

    Raises:
        FileNotFoundError: if `path` does not exist, or is a folder without images.
        ValueError: if `path` is a file of another kind.
    """
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix.lower() in EXTENSIONS:
            return [path]
        raise MqvaeError(
            f"{path} is not an image by its name: expected one of {', '.join(EXTENSIONS)}, got "
            f"{path.suffix or 'no extension'}; convert or rename it"
        )
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist: expected an image or a folder of images; check the path"
        )
    return [path / name for name in list_images(path)]


def load_files(
    paths: Sequence[Path], *, side: int | None = None, channels: int | None = None
) -> Images:
    """Exactly these image files, in this order; split "files", labels zero.

    Args:
        paths: Image files.
        side: As in `load`.
        channels: As in `load`.

    Raises:
        ValueError: if there are none, if one cannot be read, or if they do not fit together.
        FileNotFoundError: if one does not exist.
    """
    check_options(side, channels)
    paths = [Path(path).expanduser() for path in paths]
    if not paths:
        raise MqvaeError("no image files: expected at least one path, got none; name some")
    base = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = Names.of(os.fsencode(path.absolute().relative_to(base).as_posix()) for path in paths)
    return _everything(
        InFolder(str(base), names),
        Reading(side, channels),
        name=str(paths[0] if len(paths) == 1 else base),
        source=f"{len(paths)} file(s) in {base}",
    )


def load_all(path: Path, reading: Reading) -> Images:
    """All images of a file, a folder or shards; split "files", labels zero.

    Raises:
        ValueError: if one cannot be read, or if they do not fit together.
        FileNotFoundError: if there are none.
    """
    check_options(reading.side, reading.channels)
    path = path.expanduser()
    if path.suffix == ".tar":
        files, _ = index_shards(*expand(str(path)))
        return _everything(files, reading, name=str(path), source=f"shards of {path}")
    if not path.is_dir():
        return load_files(image_files(path), side=reading.side, channels=reading.channels)
    try:
        names = list_images(path)
    except FileNotFoundError:
        if shards := shards_in(path):
            files, _ = index_shards(path, shards)
            return _everything(files, reading, name=str(path), source=f"shards of {path}")
        raise
    source = f"{len(names)} file(s) in {path}"
    return _everything(InFolder(str(path), names), reading, name=str(path), source=source)


def _everything(files: Files, reading: Reading, *, name: str, source: str) -> Images:
    side, channels = settle(files, reading)
    return images_of(
        files,
        np.zeros(len(files), dtype=np.int64),
        replace(reading, side=side, channels=channels),
        name=name,
        split="files",
        source=source,
    )


def load_folder(folder: Path, split: str, reading: Reading) -> Images:
    """One split of a folder of images or shards; see `load`."""
    try:
        divided, what = divide(folder), "image files in"
    except FileNotFoundError:
        found = _divide_shards(folder)
        if found is None:
            raise
        divided, what = found, "images in the shards of"
    return load_parts(divided, split, reading, name=str(folder), what=what, folder=folder)


def load_shards(pattern: str, split: str, reading: Reading) -> Images:
    """One split of the shards that a pattern names; see `load`."""
    folder, shards = expand(pattern)
    files, labels = index_shards(folder, shards)
    divided = Divided(files, labels, every_tenth(len(files), pattern))
    what = "images in the shards"
    return load_parts(divided, split, reading, name=pattern, what=what, folder=Path(pattern))


def load_parts(
    divided: Divided, split: str, reading: Reading, *, name: str, folder: Path, what: str = ""
) -> Images:
    """One of the splits of files that are divided already.

    Args:
        divided: The files. Size, colour and classes come from all of them, so that all splits
            have the same.
        split: Which one.
        reading: How they become images.
        name: Of the images.
        folder: The one that holds them all.
        what: What they are, for the readable line of where they came from.
    """
    side, channels = settle(divided.files, reading)
    chosen = divided.splits[split]
    return images_of(
        divided.files.take(chosen),
        divided.labels[chosen],
        replace(reading, side=side, channels=channels),
        name=name,
        split=split,
        source=f"{len(chosen)} {what or 'image files in'} {folder}",
    )


def divide(folder: Path) -> Divided:
    """By the folder's own train/ and test/ or val/; else every tenth image is for test."""
    bases = _own_splits(folder)
    if bases:
        names = {base: list_images(folder / base) for base in sorted(bases.values())}
        first, second = names
        classes = number(class_of(name) for part in names.values() for name in part.raw())
        together = names[first].below(first) + names[second].below(second)
        ends = np.cumsum([0, *map(len, names.values())])
        where = {base: np.arange(ends[i], ends[i + 1]) for i, base in enumerate(names)}
        splits = {split: where[base] for split, base in bases.items()}
        return Divided(InFolder(str(folder), together), classes, splits)
    listed = list_images(folder)
    splits = every_tenth(len(listed), str(folder))
    classes = number(class_of(name) for name in listed.raw())
    return Divided(InFolder(str(folder), listed), classes, splits)


def _divide_shards(folder: Path) -> Divided | None:
    """As `divide`, of a folder of shards; None where there are none."""
    bases = _own_splits(folder)
    parts = {base: shards_in(folder, base) for base in sorted(bases.values())}
    if all(parts.values()) and parts:
        shards = [shard for part in parts.values() for shard in part]
        files, labels = index_shards(folder, shards)
        ends = np.cumsum([0, *(files.count_of(part) for part in parts.values())])
        where = {base: np.arange(ends[i], ends[i + 1]) for i, base in enumerate(parts)}
        return Divided(files, labels, {split: where[base] for split, base in bases.items()})
    if not (shards := shards_in(folder)):
        return None
    files, labels = index_shards(folder, shards)
    return Divided(files, labels, every_tenth(len(files), str(folder)))


def _own_splits(folder: Path) -> dict[str, str]:
    """Split -> the name of the folder's own subfolder for it; nothing where it has none."""
    tests = [name for name in ("test", "val") if (folder / name).is_dir()]
    if tests and (folder / "train").is_dir():
        return {"train": "train", "test": tests[0]}
    return {}


def every_tenth(count: int, what: str) -> dict[str, np.ndarray]:
    """Every tenth image for test, from the first on.

    Raises:
        ValueError: if one of the splits would be empty.
    """
    if count < 2:
        raise MqvaeError(
            f"{what} has too few images to split: expected at least 2 (one to train, one to "
            f"test), got {count}; add images, or subfolders train and test"
        )
    places = np.arange(count)
    return {"train": places[places % 10 > 0], "test": places[::10]}


def class_of(name: bytes) -> bytes | None:
    """The class subfolder of a file; None if it is in none."""
    first, inside, _ = name.partition(b"/")
    return first if inside else None


def number(classes: Iterable[bytes | None]) -> np.ndarray:
    """The number of each class in sorted order; zeros if a file is in none."""
    met: dict[bytes | None, int] = {}
    found = np.fromiter((met.setdefault(name, len(met)) for name in classes), dtype=np.int64)
    if None in met:
        return np.zeros_like(found)
    place = np.empty(len(met), dtype=np.int64)
    for i, name in enumerate(sorted(filter(None, met))):
        place[met[name]] = i
    return place[found]

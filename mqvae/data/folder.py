"""Image files, folders of them and folders of shards -> images."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from mqvae.data.files import Files, InFolder, Reading
from mqvae.data.images import Images
from mqvae.data.listing import EXTENSIONS, Names, list_images
from mqvae.data.shards import NO_LABEL, expand, index_shards, shards_in
from mqvae.data.splits import by_hash, concatenated, split_folders
from mqvae.data.stored import images_of, settle
from mqvae.errors import MqvaeError


@dataclass(frozen=True)
class Divided:
    """Image files, divided into splits.

    Attributes:
        files: All of them.
        labels: Of all of them, (N,); -1 of those without one.
        splits: Split -> which of them: "train", "test" and perhaps "validation".
        remarks: What was left out or met twice, a sentence each, and empty ones.
    """

    files: Files
    labels: np.ndarray
    splits: Mapping[str, np.ndarray]
    remarks: tuple[str, ...] = ()


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
    reading = Reading(side, channels)
    paths = [Path(path).expanduser() for path in paths]
    if not paths:
        raise MqvaeError("no image files: expected at least one path, got none; name some")
    base = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = Names.of(os.fsencode(path.absolute().relative_to(base).as_posix()) for path in paths)
    return _everything(
        InFolder(str(base), names),
        reading,
        name=str(paths[0] if len(paths) == 1 else base),
        source=f"{len(paths)} file(s) in {base}",
    )


def load_all(path: Path, reading: Reading) -> Images:
    """All images of a file, a folder or shards; split "files", labels zero.

    Raises:
        ValueError: if one cannot be read, or if they do not fit together.
        FileNotFoundError: if there are none.
    """
    path = path.expanduser()
    if path.suffix == ".tar":
        folder, shards = expand(str(path))
    elif not path.is_dir():
        return load_files(image_files(path), side=reading.side, channels=reading.channels)
    else:
        folder, shards = path, shards_in(path)
        try:
            names = list_images(path)
        except FileNotFoundError:
            if not shards:
                raise
        else:
            source = f"{len(names)} file(s) in {path}"
            return _everything(InFolder(str(path), names), reading, name=str(path), source=source)
    files, _ = index_shards(folder, shards)
    say(files.remark)
    return _everything(files, reading, name=str(path), source=f"shards of {path}")


def _everything(files: Files, reading: Reading, *, name: str, source: str) -> Images:
    return images_of(
        files,
        np.zeros(len(files), dtype=np.int64),
        settle(files, reading),
        name=name,
        split="files",
        source=source,
        remarks=filter(None, (getattr(files, "remark", ""),)),
    )


def load_folder(path: Path, split: str, reading: Reading) -> Images:
    """One split of a folder of images or shards, or of the shards of a pattern; see `load`."""
    divided, what = divided_at(path)
    return load_parts(divided, split, reading, name=str(path), what=what, folder=path)


def divided_at(path: Path) -> tuple[Divided, str]:
    """The images of a folder or of a pattern of shards, divided, and what they are called."""
    if path.suffix == ".tar" and not path.is_dir():
        return _shards_by_hash(*expand(str(path)), str(path)), "images in the shards"
    try:
        return divide(path), "image files in"
    except FileNotFoundError:
        found = _divide_shards(path)
        if found is None:
            raise
        return found, "images in the shards of"


def load_parts(
    divided: Divided, split: str, reading: Reading, *, name: str, folder: Path, what: str = ""
) -> Images:
    """One split of `divided`; size, colour and classes come from all of its files.

    Args:
        divided: The files.
        split: Which of its splits.
        reading: How they become images.
        name: Name of the images.
        folder: The folder that holds them all.
        what: What they are, for `Images.source`.

    Raises:
        ValueError: if there is no such split, or only some of the images have labels.
    """
    if split not in divided.splits:
        raise MqvaeError(
            f"{folder} has no {split} split of its own: expected a subfolder val/, valid/ or "
            f"validation/ beside train/ and test/"
        )
    labels = _labels(divided, folder) if reading.labels else np.zeros(len(divided.files))
    remarks = tuple(filter(None, divided.remarks))
    for remark in remarks:
        say(remark)
    reading = settle(divided.files, reading)
    chosen = divided.splits[split]
    return images_of(
        divided.files.take(chosen),
        labels[chosen],
        reading,
        name=name,
        split=split,
        source=f"{len(chosen)} {what or 'image files in'} {folder}",
        remarks=remarks,
    )


def _labels(divided: Divided, folder: Path) -> np.ndarray:
    """The labels of all images; zeros if none has one, an error if some have one."""
    bare = divided.labels == NO_LABEL
    if bare.all():
        return np.zeros_like(divided.labels)
    if bare.any():
        raise MqvaeError(
            f"{divided.files.where(int(bare.argmax()))} has no label, as {int(bare.sum()):,} of "
            f"the {len(bare):,} images in {folder}: expected all in class folders (of shards: with "
            "a .cls each), or none; put it into its class or take it out. If there are no classes, "
            "and folders mean nothing, add --data.classes 1 (labels=False)"
        )
    return divided.labels


@cache
def say(remark: str) -> None:
    """Print a remark to stderr, once, and in the first process alone."""
    if remark and int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
        print(f"mqvae: warning: {remark}", file=sys.stderr)


def has_validation(folder: Path) -> bool:
    """Whether a folder has a validation split of its own, beside train and test."""
    return folder.is_dir() and "validation" in split_folders(folder)[0]


def divide(folder: Path) -> Divided:
    """By the folder's own train/ and test/ or val/; else by a hash of each image's name."""
    bases, remark = split_folders(folder)
    if bases:
        names = {base: list_images(folder / base) for base in sorted(bases.values())}
        classes = number(class_of(name) for part in names.values() for name in part.raw())
        together = Names.of(())
        for base, part in names.items():
            together += part.below(base)
        where = concatenated({base: len(part) for base, part in names.items()})
        splits = {split: where[base] for split, base in bases.items()}
        return Divided(InFolder(str(folder), together), classes, splits, (remark,))
    listed = list_images(folder)
    files = InFolder(str(folder), listed)
    classes = number(class_of(name) for name in listed.raw())
    splits, remark = by_hash(files.split_hashes, str(folder))
    beside = ""
    if shards := shards_in(folder):
        beside = (
            f"{len(shards):,} tar file(s) left out, as there are images beside them: "
            f"{folder / shards[0]}"
        )
    return Divided(files, classes, splits, (remark, beside))


def _divide_shards(folder: Path) -> Divided | None:
    """As `divide`, of a folder of shards; None where there are none."""
    bases, remark = split_folders(folder)
    if not bases:
        shards = shards_in(folder)
        return _shards_by_hash(folder, shards, str(folder)) if shards else None
    parts = {base: shards_in(folder, base) for base in sorted(bases.values())}
    if not all(parts.values()):
        return None
    files, labels = index_shards(folder, [shard for part in parts.values() for shard in part])
    where = concatenated({base: files.count_of(part) for base, part in parts.items()})
    if empty := [base for base, indices in where.items() if not len(indices)]:
        raise FileNotFoundError(f"the shards in {folder / empty[0]} hold no images")
    splits = {split: where[base] for split, base in bases.items()}
    return Divided(files, labels, splits, (remark, files.remark))


def _shards_by_hash(folder: Path, shards: Sequence[str], what: str) -> Divided:
    files, labels = index_shards(folder, shards)
    splits, remark = by_hash(files.split_hashes, what)
    return Divided(files, labels, splits, (remark, files.remark))


def class_of(name: bytes) -> bytes | None:
    """The class subfolder of a file; None if it is in none."""
    first, inside, _ = name.partition(b"/")
    return first if inside else None


def number(classes: Iterable[bytes | None]) -> np.ndarray:
    """The number of each class in sorted order; -1 of a file that is in none."""
    met: dict[bytes | None, int] = {}
    found = np.fromiter((met.setdefault(name, len(met)) for name in classes), dtype=np.int64)
    place = np.full(len(met), NO_LABEL, dtype=np.int64)
    for i, name in enumerate(sorted(filter(None, met))):
        place[met[name]] = i
    return place[found]

"""Image files and folders of them -> images in memory."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mqvae.data.images import Images, check_memory, check_options

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_RESIZE = "give a side to resize to (side=N, --data.side N)"

T = TypeVar("T")
Splits = Mapping[str, Mapping[Path, Path]]  # split -> {file: relative to the split's folder}


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
        raise ValueError(
            f"{path} is not an image by its name: expected one of {', '.join(EXTENSIONS)}, got "
            f"{path.suffix or 'no extension'}; convert or rename it"
        )
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist: expected an image or a folder of images; check the path"
        )
    files, seen = [], set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        # A link to a folder above would otherwise be walked for ever.
        seen.add(os.path.realpath(folder))
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in seen
        ]
        files += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    if not files:
        raise FileNotFoundError(
            f"{path} holds no images: expected files ending in {', '.join(EXTENSIONS)} in it or "
            "its subfolders, got none; check the path"
        )
    return sorted(files)


def load_files(
    paths: Sequence[Path], *, side: int | None = None, channels: int | None = None
) -> Images:
    """Exactly these image files, in this order; split "files", labels zero.

    Args:
        paths: Image files.
        side: As in `load`.
        channels: As in `load`.

    Raises:
        ValueError: if there are none, if one cannot be read, or if they do not fit together or in
            memory.
        FileNotFoundError: if one does not exist.
    """
    check_options(side, channels)
    paths = [Path(path).expanduser() for path in paths]
    if not paths:
        raise ValueError("no image files: expected at least one path, got none; name some")
    base = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    side, channels = _settle(paths, side, channels)
    return Images(
        name=str(paths[0] if len(paths) == 1 else base),
        split="files",
        pixels=_decode_all(paths, str(base), side, channels),
        labels=torch.zeros(len(paths), dtype=torch.int64),
        source=f"{len(paths)} file(s) in {base}",
        names=tuple(path.absolute().relative_to(base).as_posix() for path in paths),
    )


def load_folder(folder: Path, split: str, *, side: int | None, channels: int | None) -> Images:
    """One split of a folder of images; see `load`."""
    return load_parts(
        divide(folder), split, name=str(folder), folder=folder, side=side, channels=channels
    )


def load_parts(
    splits: Splits,
    split: str,
    *,
    name: str,
    folder: Path,
    side: int | None,
    channels: int | None,
) -> Images:
    """One of the splits of a folder that is divided already.

    Args:
        splits: Split -> {image file: the same relative to its split's folder}. Size, colour and
            classes come from all of them, so that all have the same.
        split: Which one.
        name: Of the images.
        folder: The one that holds them all.
        side: As in `load`.
        channels: As in `load`.
    """
    everything = sorted(path for part in splits.values() for path in part)
    side, channels = _settle(everything, side, channels)
    labels = _label(splits)[split]
    paths = list(splits[split])
    return Images(
        name=name,
        split=split,
        pixels=_decode_all(paths, name, side, channels),
        labels=torch.tensor(labels, dtype=torch.int64),
        source=f"{len(paths)} image files in {folder}",
        names=tuple(path.relative_to(folder).as_posix() for path in paths),
    )


def divide(folder: Path) -> Splits:
    """By the folder's own train/ and test/ or val/; else every tenth image is for test."""
    tests = [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    if tests and (folder / "train").is_dir():
        bases = {"train": folder / "train", "test": tests[0]}
        return {
            split: {path: path.relative_to(base) for path in image_files(base)}
            for split, base in bases.items()
        }
    paths = image_files(folder)
    if len(paths) < 2:
        raise ValueError(
            f"{folder} has too few images to split: expected at least 2 (one to train, one to "
            f"test), got {len(paths)}; add images, or subfolders train and test"
        )
    parts = {"train": [p for i, p in enumerate(paths) if i % 10], "test": paths[::10]}
    return {split: {p: p.relative_to(folder) for p in part} for split, part in parts.items()}


def _label(splits: Splits) -> dict[str, list[int]]:
    """The number of each file's class subfolder; zeros if a file is in none."""
    names = {
        split: [path.parts[0] if len(path.parts) > 1 else None for path in part.values()]
        for split, part in splits.items()
    }
    found = {name for part in names.values() for name in part}
    if None in found:
        return {split: [0] * len(part) for split, part in names.items()}
    numbers = {name: number for number, name in enumerate(sorted(filter(None, found)))}
    return {split: [numbers[name] for name in part if name] for split, part in names.items()}


def _settle(paths: Sequence[Path], side: int | None, channels: int | None) -> tuple[int, int]:
    """Side and channels, taken from the images where not given."""
    if side is not None and channels is not None:
        return side, channels
    heads = _in_threads(_head, paths)
    if channels is None:
        channels = 1 if all(mode in _GREY_MODES for mode, _ in heads) else 3
    if side is None:
        side, height = heads[0][1]
        if side != height:
            raise ValueError(
                f"{paths[0]} is not square: expected square images of one size, got "
                f"{side} × {height}; {_RESIZE}"
            )
        for path, (_, size) in zip(paths, heads, strict=True):
            if size != (side, side):
                raise ValueError(
                    f"{path} has another size: expected {side} × {side}, as {paths[0]} has, got "
                    f"{size[0]} × {size[1]}; {_RESIZE}"
                )
    return side, channels


def _head(path: Path) -> tuple[str, tuple[int, int]]:
    """Mode and (width, height), without decoding."""
    with Image.open(path) as image:
        return image.mode, image.size


def _decode_all(paths: Sequence[Path], name: str, side: int, channels: int) -> Tensor:
    """(N, C, side, side) uint8."""
    check_memory(name, len(paths), channels, side)
    pixels = torch.empty((len(paths), channels, side, side), dtype=torch.uint8)

    def decode(path: Path, row: np.ndarray) -> None:
        row[:] = _decode(path, side, channels)

    _in_threads(decode, paths, pixels.numpy())
    return pixels


def _decode(path: Path, side: int, channels: int) -> np.ndarray:
    """(C, side, side) uint8: first frame, upright, centre square; no transparency."""
    with Image.open(path) as opened:
        image = _eight_bits(ImageOps.exif_transpose(opened))
        if image.mode in ("P", "PA"):
            # Straight to RGB, Pillow warns about palettes with transparency.
            image = image.convert("RGBA")
        image = image.convert("L" if channels == 1 else "RGB")
        width, height = image.size
        if (width, height) != (side, side):
            # Resizing the centre square is resizing the shorter side, then cropping, but never
            # makes the long strip that an image of 10 × 100,000 pixels would become.
            short = min(width, height)
            left, top = (width - short) / 2, (height - short) / 2
            box = (left, top, left + short, top + short)
            image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
        return np.asarray(image).reshape(side, side, channels).transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits brought to 8: Pillow itself would cut all values above 255."""
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers; convert it to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise ValueError("it holds numbers outside 0..65535; convert it to 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _in_threads(
    function: Callable[..., T], paths: Iterable[Path], *others: Iterable[Any]
) -> list[T]:
    """Map `function` over the paths, in order; Pillow decodes without holding Python's lock."""

    def guarded(path: Path, *rest: Any) -> T:
        try:
            return function(path, *rest)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist: expected an image") from None
        # Decoders meet damaged files with anything from SyntaxError to struct.error.
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read: expected an image, got: {error}; "
                "replace the file or take it out"
            ) from error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            return list(pool.map(guarded, paths, *others))
        except BaseException:
            # Do not make the user wait for a hundred thousand files after the first bad one.
            pool.shutdown(wait=False, cancel_futures=True)
            raise

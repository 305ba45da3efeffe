"""Which split an image is in: by the folder it is in, or by a hash of its name."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mqvae.data.listing import EXTENSIONS, hashes_of, holds_images
from mqvae.errors import MqvaeError

# What folders of splits are called, in any case.
NAMES = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
TEST_BELOW = 2**64 // 10
_UNTIL = "until images are added; subfolders train and test decide for good"


def by_hash(hashes: np.ndarray, what: str) -> tuple[dict[str, np.ndarray], str]:
    """A tenth of the images for test, those of the lowest hashes, the others for training.

    An image's split follows from its own hash alone, so that no image that comes or goes moves
    another. Only where that would leave a split empty, as in a folder of very few images, the
    image of the lowest hash is for test, or that of the highest for training.

    Args:
        hashes: (N,) uint64.
        what: The folder, for messages.

    Returns:
        Split -> indices, and what there is to say of it; empty if nothing.

    Raises:
        ValueError: if there are fewer than two different hashes.
    """
    if len(hashes) < 2 or hashes.min() == hashes.max():
        same = f"{len(hashes)} with one key" if len(hashes) > 1 else str(len(hashes))
        raise MqvaeError(
            f"{what} has too few images to split: expected at least 2 (one to train, one to "
            f"test), got {same}; add images, or subfolders train and test"
        )
    test, remark = hashes < TEST_BELOW, ""
    if not test.any():
        test = hashes == hashes.min()
        remark = (
            f"of the {len(hashes):,} images in {what} none is for test by the hash of its name: "
            f"that of the lowest hash is, {_UNTIL}"
        )
    elif test.all():
        test = hashes != hashes.max()
        remark = (
            f"of the {len(hashes):,} images in {what} all are for test by the hashes of their "
            f"names: that of the highest hash is for training, {_UNTIL}"
        )
    return {"train": (~test).nonzero()[0], "test": test.nonzero()[0]}, remark


def by_number(count: int, what: str) -> dict[str, np.ndarray]:
    """`by_hash` of samples without names, by their numbers: those that are added move no other."""
    return by_hash(hashes_of((str(i).encode() for i in range(count)), count), what)[0]


def split_folders(folder: Path) -> tuple[dict[str, str], str]:
    """The subfolders that are splits, by their names in any case.

    `train` beside `test`, or beside one of `val`, `valid` and `validation`, which then is for test;
    with all three it is for validation.

    Returns:
        "train", "test" and perhaps "validation" -> subfolder, and what there is to say of it;
        nothing where there are no such subfolders.

    Raises:
        ValueError: if two of them are the same split, one is missing, or there are images in
            another subfolder beside them.
    """
    with os.scandir(folder) as entries:
        inside = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    found: dict[str, str] = {}
    for name in inside:
        split = NAMES.get(name.lower())
        if split is None:
            continue
        if split in found:
            raise MqvaeError(
                f"{folder} has two folders for {split}, {found[split]} and {name}: expected one; "
                "merge them, or move one away"
            )
        found[split] = name
    if not found:
        return {}, ""
    listed = ", ".join(f"{name}/" for name in found.values())
    if "train" in found:
        for name in inside:
            if name not in found.values() and holds_images(folder / name):
                raise MqvaeError(
                    f"{folder / name} is beside {listed} and is no split: expected images in "
                    "train/, test/, val/, valid/ or validation/ alone, in any case; rename it, or "
                    "move it away"
                )
    if "train" not in found or len(found) == 1:
        missing = "test" if "train" in found else "train"
        alone = folder / next(iter(found.values()))
        raise MqvaeError(
            f"{folder} has {listed} but no {missing}/: expected train/ beside test/ (or val/, "
            f"valid/, validation/), in any case, or none of them; add {missing}/, rename what is "
            f"no split, or take the images of one (--data {alone})"
        )
    if "test" not in found:
        found["test"] = found.pop("validation")
    images = (p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file())
    loose = sorted(p.name for p in images if not p.name.startswith("."))
    if not loose:
        return found, ""
    return found, f"{len(loose):,} image(s) beside {listed} left out: {folder / loose[0]}" + (
        ", …" * (len(loose) > 1)
    )


def concatenated(counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Name -> indices, where images of one name come after those of another."""
    ends = np.cumsum([0, *counts.values()])
    return {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(counts)}

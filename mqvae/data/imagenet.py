"""ImageNet of 2012, from folders as torchvision leaves them."""

import re
from pathlib import Path

from mqvae.data.folder import image_files, load_parts
from mqvae.data.images import Images, check_memory
from mqvae.data.places import Absent, search

CLASSES = 1_000
FOLDERS = {"train": "train", "test": "val"}
COUNTS = {"train": 1_281_167, "test": 50_000}
_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def load_imagenet(split: str, root: Path | None, side: int | None, channels: int | None) -> Images:
    """One split of ImageNet, 1,281,167 images to train and 50,000 to test; never downloaded.

    The files are `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`, as `torchvision.datasets.
    ImageNet` leaves them. What is for test here is the validation set, as everywhere: the test
    set's labels were never published. Labels number the WordNet ids in sorted order, which is
    torchvision's numbering. A part of ImageNet is an error; as a folder of images, by its path, it
    can be had all the same.

    Args:
        split: "train" or "test".
        root: Folder of train/ and val/, and then nowhere else.
        side: As in `load`; has to be given, as no two images need have the same size.
        channels: 1 or 3; 3 if None.

    Raises:
        ValueError: if there is no `side`, if images are missing or in no class, or as in `load`.
        FileNotFoundError: if the split's folder is not there; `DataNotFound` if `root` is None.

    Source:
        Russakovsky et al. (2015), ImageNet Large Scale Visual Recognition Challenge.
    """

    def read(folder: Path) -> Images:
        base = folder / FOLDERS[split]
        if not base.is_dir():
            raise Absent(_missing(folder, split))
        if side is None:
            raise ValueError(
                "imagenet needs a side: expected one to resize and crop its images to, which have "
                "many sizes, got none; give it (side=N, --data.side N)"
            )
        # Known before a million files are listed, which takes minutes on some disks.
        check_memory("imagenet", COUNTS[split], channels or 3, side)
        return load_parts(
            {split: _files(base, folder, split)},
            split,
            name="imagenet",
            folder=folder,
            side=side,
            channels=channels or 3,
        )

    return search(
        "imagenet",
        read,
        root=root,
        download=None,
        offline="none, image-net.org asks for an account",
        advice=(
            "It is a folder with train/ and val/ as torchvision unpacks them. Put it or a link to "
            "it there, or name it (root=FOLDER, --data.root FOLDER)."
        ),
    )


def _files(base: Path, folder: Path, split: str) -> dict[Path, Path]:
    """Image file -> the same relative to `base`, where its first part is its class."""
    files = {path: path.relative_to(base) for path in image_files(base)}
    for path, inside in files.items():
        if not re.fullmatch(r"n\d{8}", inside.parts[0]):
            raise ValueError(
                f"{path} is in no class of ImageNet: expected a folder such as n01440764 in "
                f"{base}, got {inside.parts[0]}; {_repair(base, folder, split)}"
            )
    classes = len({inside.parts[0] for inside in files.values()})
    if (classes, len(files)) != (CLASSES, COUNTS[split]):
        raise ValueError(
            f"{base} is not the whole of it: expected {COUNTS[split]:,} images of {CLASSES:,} "
            f"classes, got {len(files):,} of {classes:,}; {_repair(base, folder, split)}"
        )
    return files


def _missing(folder: Path, split: str) -> str:
    """What is not there, and what to do if it is there as an archive."""
    if not folder.is_dir():
        return "no such folder"
    archive = folder / _ARCHIVES[split]
    missing = f"{FOLDERS[split]}/ is missing"
    if archive.is_file():
        return f"{missing}, but {archive.name} is there: unpack it with {_unpack(folder, split)}"
    return f"{missing}, and so is the archive {archive.name}"


def _repair(base: Path, folder: Path, split: str) -> str:
    return (
        f"take what is there as a folder of images (--data.name {folder}), or move {base} away and "
        f"unpack {_ARCHIVES[split]} with {_unpack(folder, split)}"
    )


def _unpack(folder: Path, split: str) -> str:
    """torchvision's way, which also sorts the validation images into their classes."""
    return (
        f"torchvision.datasets.ImageNet({str(folder)!r}, {FOLDERS[split]!r}) in Python, with "
        f"{_DEVKIT} beside it"
    )

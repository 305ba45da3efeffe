"""ImageNet of 2012, from folders as torchvision leaves them."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from mqvae.data.files import InFolder, Reading
from mqvae.data.folder import Divided, class_of, load_parts, number
from mqvae.data.images import Images, check_memory
from mqvae.data.listing import list_images
from mqvae.data.places import Absent, search
from mqvae.errors import MqvaeError

CLASSES = 1_000
FOLDERS = {"train": "train", "test": "val"}
COUNTS = {"train": 1_281_167, "test": 50_000}
_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def load_imagenet(split: str, root: Path | None, reading: Reading, download: bool) -> Images:
    """One split of ImageNet, 1,281,167 images to train and 50,000 to test; never downloaded.

    The files are `train/n01440764/*.JPEG` and `val/n01440764/*.JPEG`, as `torchvision.datasets.
    ImageNet` leaves them. What is for test here is the validation set, as everywhere: the test
    set's labels were never published. Labels number the WordNet ids in sorted order, which is
    torchvision's numbering. A part of ImageNet is an error; as a folder of images, by its path, it
    can be had all the same.

    Args:
        split: "train" or "test".
        root: Folder of train/ and val/, and then nowhere else.
        reading: How they become images. The side has to be given, as no two images need have the
            same size; channels are 3 if None.

    Raises:
        ValueError: if there is no side, if images are missing or in no class, or as in `load`.
        FileNotFoundError: if the split's folder is not there; `DataNotFound` if `root` is None.

    Source:
        Russakovsky et al. (2015), ImageNet Large Scale Visual Recognition Challenge.
    """

    def read(folder: Path) -> Images:
        base = folder / FOLDERS[split]
        if not base.is_dir():
            raise Absent(_missing(folder, split))
        if reading.side is None:
            raise MqvaeError(
                "imagenet needs a side: expected one to resize and crop its images to, which have "
                "many sizes, got none; give it (side=N, --size N)"
            )
        channels = reading.channels or 3
        if reading.memory:
            # Known before a million files are listed, which takes minutes on some disks.
            check_memory("imagenet", COUNTS[split], channels, reading.side, may_stay=True)
        return load_parts(
            _listed(base, folder, split),
            split,
            replace(reading, channels=channels),
            name="imagenet",
            folder=folder,
        )

    return search(
        "imagenet",
        read,
        root=root,
        download=None,
        offline="none, image-net.org asks for an account",
        advice=(
            "It is a folder with train/ and val/ as torchvision unpacks them. Put it or a link to "
            "it there, or name it (root=FOLDER, --root FOLDER)."
        ),
    )


def _listed(base: Path, folder: Path, split: str) -> Divided:
    """All files of a split, each in the folder of its class."""
    names = list_images(base)
    classes: set[bytes] = set()
    for index, name in enumerate(names.raw()):
        inside = class_of(name) or name
        if inside not in classes and not re.fullmatch(rb"n\d{8}", inside):
            raise MqvaeError(
                f"{base / names[index]} is in no class of ImageNet: expected a folder such as "
                f"n01440764 in {base}, got {Path(names[index]).parts[0]}; "
                f"{_repair(base, folder, split)}"
            )
        classes.add(inside)
    if (len(classes), len(names)) != (CLASSES, COUNTS[split]):
        raise MqvaeError(
            f"{base} is not the whole of it: expected {COUNTS[split]:,} images of {CLASSES:,} "
            f"classes, got {len(names):,} of {len(classes):,}; "
            f"{_repair(base, folder, split)}"
        )
    files = InFolder(str(folder), names.below(FOLDERS[split]))
    numbers = number(class_of(name) for name in names.raw())
    return Divided(files, numbers, {split: np.arange(len(names))})


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
        f"take what is there as a folder of images (--data {folder}), or move {base} away and "
        f"unpack {_ARCHIVES[split]} with {_unpack(folder, split)}"
    )


def _unpack(folder: Path, split: str) -> str:
    """torchvision's way, which also sorts the validation images into their classes."""
    return (
        f"torchvision.datasets.ImageNet({str(folder)!r}, {FOLDERS[split]!r}) in Python, with "
        f"{_DEVKIT} beside it"
    )

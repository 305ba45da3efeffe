"""CelebA-HQ, from a folder of its 30,000 images."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from mqvae.data.files import InFolder, Reading
from mqvae.data.folder import Divided, divide, load_parts
from mqvae.data.images import Images
from mqvae.data.listing import EXTENSIONS, list_images
from mqvae.data.places import Absent, search
from mqvae.errors import MqvaeError

COUNT = 30_000
TEST_COUNT = 3_000
# What the usual copies call it; the first is inside the archive CelebAMask-HQ.zip.
FOLDERS = (
    "CelebAMask-HQ/CelebA-HQ-img",
    "CelebA-HQ-img",
    "CelebA-HQ",
    "celeba-hq",
    "celeba_hq",
    "celeba_hq_256",
)
_ADVICE = (
    "It is a folder of 30,000 numbered images, as CelebA-HQ-img in the archive CelebAMask-HQ.zip, "
    "unpacked, or of train/ and val/ (or test/). Put it or a link to it there, or name it "
    "(root=FOLDER, --root FOLDER)."
)


def load_celeba_hq(split: str, root: Path | None, reading: Reading, download: bool) -> Images:
    """One split of CelebA-HQ; never downloaded.

    The images are in the folder itself, or in one of `FOLDERS` in it. Subfolders train/ and val/
    (or test/) are taken as they are, and class subfolders of these (female/ and male/) as labels.

    Without them the number that ends a file's name splits, as in `0.jpg`, `00000.png` or
    `img00000.png`: the last 3,000 of the 30,000 images are for test, all before for training.
    There is no official split, and papers differ. An incomplete copy is an error, as its split
    would be another one; as a folder of images, by its path, it can be had all the same.

    Args:
        split: "train" or "test".
        root: Folder of the files, and then nowhere else.
        reading: How they become images; channels are 3 if None.

    Raises:
        ValueError: if images are missing or not numbered, or as in `load`.
        FileNotFoundError: if the folder is not there; `DataNotFound` if `root` is None.

    Source:
        Karras, Aila, Laine and Lehtinen (2018), Progressive Growing of GANs; Lee, Liu, Wu and Luo
        (2020), MaskGAN, for CelebAMask-HQ.
    """

    def read(folder: Path) -> Images:
        folder = _find(folder)
        return load_parts(
            divide(folder) if (folder / "train").is_dir() else _split_by_number(folder),
            split,
            replace(reading, channels=reading.channels or 3),
            name="celeba-hq",
            folder=folder,
        )

    return search(
        "celeba-hq",
        read,
        root=root,
        download=None,
        offline="none, it has to be fetched by hand",
        advice=_ADVICE,
    )


def _find(folder: Path) -> Path:
    """The folder of the images, or of train/ and val/ or test/."""
    if not folder.is_dir():
        raise Absent("no such folder")
    for place in (folder, *(folder / name for name in FOLDERS)):
        if (place / "train").is_dir():
            if not any((place / name).is_dir() for name in ("val", "test")):
                raise Absent(f"{place / 'train'} has neither val nor test beside it")
            return place
        if place.is_dir() and any(path.suffix.lower() in EXTENSIONS for path in place.iterdir()):
            return place
    raise Absent(f"neither images nor train/ in it, nor in its {', '.join(FOLDERS)}")


def _split_by_number(folder: Path) -> Divided:
    names = list_images(folder)
    numbered: dict[int, int] = {}
    for index, name in enumerate(names):
        path = folder / name
        number = re.search(r"\d+$", path.stem)
        if number is None:
            raise MqvaeError(
                f"{path} has no number: expected names such as 0.jpg, 00000.png or img00000.png, "
                f"got {path.name}; take it out, or {_as_folder(folder)}"
            )
        other = numbered.setdefault(int(number[0]), index)
        if other != index:
            raise MqvaeError(
                f"{path} has another image's number: expected each number once, got "
                f"{folder / names[other]} too; take one of them out, or {_as_folder(folder)}"
            )
    if len(numbered) != COUNT:
        raise MqvaeError(
            f"{folder} is not the whole of CelebA-HQ: expected {COUNT:,} images, got "
            f"{len(numbered):,}; unpack it anew, or {_as_folder(folder)}"
        )
    by_number = np.array([numbered[number] for number in sorted(numbered)])
    splits = {"train": by_number[:-TEST_COUNT], "test": by_number[-TEST_COUNT:]}
    # There are no classes, whatever folders they are in.
    return Divided(InFolder(str(folder), names), np.zeros(len(names), dtype=np.int64), splits)


def _as_folder(folder: Path) -> str:
    return f"take what is there as a folder of images (--data {folder})"

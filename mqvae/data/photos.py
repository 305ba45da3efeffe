"""Photographs without a download: squares of 256 pixels, cut from Debian's wallpapers."""

from dataclasses import replace
from pathlib import Path

from mqvae.data.files import Reading
from mqvae.data.folder import divide, load_parts
from mqvae.data.images import Images
from mqvae.data.places import Absent, search

SIDE = 256
FOLDER = f"photos-{SIDE}"
PACKAGES = (
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
)
INSTALL = f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"


def load_photos(split: str, root: Path | None, reading: Reading, download: bool) -> Images:
    """One split of the squares that `python -m benchmarks.photos` has written.

    Args:
        split: "train" or "test".
        root: The folder of photos-256/, or that itself, and then nowhere else.
        reading: How they become images; the side is `SIDE` and channels are 3 if None.

    Raises:
        ValueError: as in `load`.
        FileNotFoundError: if the folder is not there; `DataNotFound` if `root` is None.
    """

    def read(folder: Path) -> Images:
        if (folder / FOLDER).is_dir():
            folder = folder / FOLDER
        if not ((folder / "train").is_dir() and (folder / "test").is_dir()):
            raise Absent(f"no {FOLDER}/ with train/ and test/ in it")
        settled = replace(reading, side=reading.side or SIDE, channels=reading.channels or 3)
        return load_parts(divide(folder), split, settled, name="photos", folder=folder)

    return search(
        "photos",
        read,
        root=root,
        download=None,
        offline="none, its photographs are in Debian's packages",
        advice="In a clone of mqvae's repository `python -m benchmarks.photos` cuts them from "
        f"Debian's wallpapers: {INSTALL}.",
    )

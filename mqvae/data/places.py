"""Where the files of a data set may be, and what to say when they are nowhere."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mqvae.cache import cache_folder, impatient
from mqvae.errors import MqvaeError

T = TypeVar("T")


class DataNotFound(FileNotFoundError):
    """A named data set is in none of the places where it may be; the message lists them."""


class Absent(Exception):
    """A folder does not hold the files; its text says which one is missing."""


def search(
    name: str,
    read: Callable[[Path], T],
    *,
    root: Path | None,
    shipped: Sequence[Path] = (),
    download: Callable[[Path], object] | None,
    advice: str,
    offline: str = "not tried, as download is off",
) -> T:
    """What `read` makes of the first folder that holds the files.

    With `root` that folder only; else the cache folder, the `shipped` ones, and the cache folder
    after `download`. Damaged files end the search: `read` raises ValueError for them.

    Args:
        name: Of the data set.
        read: Folder -> data; raises `Absent` where a file is missing.
        download: Puts the files into the folder it is given; None to stay offline.
        advice: How to get the data, a sentence.
        offline: Why nothing was downloaded where `download` is None.

    Raises:
        FileNotFoundError: if `root` does not hold the files.
        DataNotFound: if no place does.
    """
    if root is not None:
        try:
            return read(root)
        except (Absent, PermissionError) as absent:
            raise FileNotFoundError(
                f"{name} is not in {root}: {absent}. Put the files there, or leave root out "
                f"(--root) to look in the usual places. {advice}"
            ) from None
    cache = cache_folder(name)
    tried = []
    for folder in (cache, *shipped):
        try:
            return read(folder)
        except (Absent, PermissionError) as absent:
            tried.append(f"{folder}: {absent}")
    if download is None:
        tried.append(f"download: {offline}")
    else:
        try:
            _fetch(download, cache)
            return read(cache)
        # A network, a mirror and an archive fail in too many ways to list; all mean "not here".
        except Exception as error:
            tried.append(f"download to {cache}: {' '.join(str(error).split()) or repr(error)}")
    places = "".join(f"\n  {reason}" for reason in tried)
    raise DataNotFound(f"{name} was not found: expected its files in one of{places}\n{advice}")


def mending(folder: Path, root: Path | None, advice: str = "") -> str:
    """What to do about a damaged file in `folder`, a sentence."""
    if root is not None:
        return f"Put the original file there, or leave root out (--root). {advice}".strip()
    return f"Delete it and run again. {advice}".strip()


def by_torchvision(
    make: Callable[[], Any], files: dict[Path, str], archive: str, folder: Path, root: Path | None
) -> Any:
    """torchvision's data set, which unpickles nothing before its MD5 is right.

    Raises:
        Absent: if one of `files` (path -> MD5) is missing.
        ValueError: if one of them is damaged.
    """
    from torchvision.datasets.utils import check_integrity

    if not folder.is_dir():
        raise Absent("no such folder")
    for path in files:
        if not path.is_file():
            raise Absent(f"{path.relative_to(folder)} is missing")
    try:
        with warnings.catch_warnings():
            # The arrays were pickled by a NumPy of 2009, which today's remarks on.
            warnings.simplefilter("ignore")
            return make()
    except RuntimeError:
        for path, md5 in files.items():
            if not check_integrity(path, md5):
                raise MqvaeError(
                    f"{path} is cut short or was altered: expected the MD5 {md5}, got another. "
                    + mending(folder, root, f"The original is in {archive}.")
                ) from None
        raise


def _fetch(download: Callable[[Path], object], folder: Path) -> None:
    """Download into a scratch folder, then move the files in: each is there whole or not at all.

    So an interrupted download leaves nothing that looks like damaged data, and processes that
    download at the same time do not write into each other's files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="download-", dir=folder))
    try:
        with impatient():
            download(scratch)
        for path in sorted(scratch.rglob("*")):
            if path.is_file() and path.suffix != ".gz":  # archives are unpacked by now
                target = folder / path.relative_to(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

"""Data sets by name, and `load`, which takes a name or a folder."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from mqvae.data.celeba_hq import load_celeba_hq
from mqvae.data.cifar import binary_folder, read_binary
from mqvae.data.files import Reading
from mqvae.data.folder import load_folder
from mqvae.data.idx import read_idx
from mqvae.data.imagenet import load_imagenet
from mqvae.data.images import Images, InMemory, check_options, conform
from mqvae.data.photos import load_photos
from mqvae.data.places import Absent, search
from mqvae.errors import MqvaeError, did_you_mean
from mqvae.optional import require

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DIGITS = Path(__file__).with_name("digits.npz")

Loader = Callable[[str, Path | None, bool], InMemory]  # split, root, download
# The same without download; images are brought to a side and channels as they are decoded, one
# by one, since all of them at their own size would not fit in memory.
FileLoader = Callable[[str, Path | None, Reading], Images]


def load(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    side: int | None = None,
    channels: int | None = None,
    download: bool = True,
    memory: bool | None = None,
    workers: int | None = None,
    on_error: str = "stop",
    labels: bool = True,
    resize: bool = True,
) -> Images:
    """Load a data set by its name, a folder of images, or shards.

    A folder is split by its subfolders train/ and test/ (or val/), in any case, if it has them;
    otherwise a hash of each file's name decides, and a tenth is for test: images that come or go
    move no other. Its labels number the class subfolders in sorted order. A folder of tar files, or
    a pattern that names some, is split in the same way, by the keys of samples; their labels are in
    them. `mqvae.data.celeba_hq` and `mqvae.data.imagenet` say which files these two are;
    `mqvae data photos` makes those of photos.

    Args:
        name: One of `DATASETS`, an existing folder, or shards as in `photos/{0000..0123}.tar`.
        split: "train" or "test"; "validation" of a folder that has val/ beside train/ and test/.
        root: Folder of the files, and then nowhere else; where a relative folder `name` starts.
        side: Pixels a side; shorter side resized (bicubic) and centre cropped. None: as it is.
        channels: 1 (grey) or 3 (colour). None: as it is; a folder is grey if all its images are.
        download: Whether to download what is found nowhere; never celeba-hq, imagenet
            and photos.
        memory: Whether images of files are held in memory; if None, where they fit. The named data
            sets, other than celeba-hq, imagenet and photos, always are.
        workers: Threads that decode files; as many as there are cores, 8 at most, if None.
        on_error: "stop" at a file that cannot be read, or "skip" it: the next takes its place.
        labels: Whether images of folders and shards have labels; zeros if not.
        resize: False cuts `side` × `side` pixels at the centre instead, of images in files; only
            smaller ones are resized.

    Raises:
        ValueError: if the name, split, side or channels are not among those possible, if a file is
            damaged, if only some images have labels, or if the images do not fit together or in
            memory.
        FileNotFoundError: if files are missing; `DataNotFound` if a named data set is in none of
            its usual places.

    Example:
        >>> from mqvae.data import load
        >>> load("digits", "test").shape
        (1, 8, 8)
    """
    if split not in ("train", "test") and (split != "validation" or name in DATASETS):
        raise MqvaeError(f"unknown split {split!r}: expected 'train' or 'test'; choose one of them")
    check_options(side, channels)
    reading = Reading(side, channels, memory, workers, on_error, labels, resize)
    root = None if root is None else Path(root).expanduser()
    if name in _LOADERS:
        return conform(_LOADERS[name](split, root, download), side=side, channels=channels)
    if name in _FILE_LOADERS:
        return _FILE_LOADERS[name](split, root, reading)
    folder = (root or Path()) / Path(name).expanduser()
    if name and (folder.is_dir() or folder.suffix == ".tar"):
        return load_folder(folder, split, reading)
    raise MqvaeError(
        f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}, or an existing folder "
        f"of images or shards, got {'a file' if folder.is_file() else 'neither'}."
        f"{did_you_mean(name.lower(), DATASETS)}"
    )


def _fashion_mnist(split: str, root: Path | None, download: bool) -> InMemory:
    return _load_idx(
        "fashion-mnist",
        "FashionMNIST",
        split,
        root,
        download,
        digests={  # SHA-256 of the unpacked files
            "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        shipped=(DEBIAN_FASHION_MNIST,),
        advice=f"Debian and Ubuntu have it: apt-get install {_DEBIAN_PACKAGE}.",
    )


def _mnist(split: str, root: Path | None, download: bool) -> InMemory:
    advice = "Its four files are named train-images-idx3-ubyte.gz and so on."
    return _load_idx("mnist", "MNIST", split, root, download, advice=advice)


def _load_idx(
    name: str,
    torchvision_name: str,
    split: str,
    root: Path | None,
    download: bool,
    *,
    digests: Mapping[str, str] = MappingProxyType({}),
    shipped: Sequence[Path] = (),
    advice: str,
) -> InMemory:
    """A data set of MNIST's four files; the digests of those that are known verify them."""

    def read(folder: Path) -> InMemory:
        prefix, count = {"train": ("train", 60_000), "test": ("t10k", 10_000)}[split]
        folders = [folder, folder / torchvision_name / "raw"]
        parts = []
        for part, shape in (("images", (count, 28, 28)), ("labels", (count,))):
            path = _find(folders, f"{prefix}-{part}-idx{len(shape)}-ubyte")
            digest = digests.get(f"{prefix}-{part}")
            mending = _mending(folder, root, advice)
            parts.append(read_idx(path, shape=shape, digest=digest, advice=mending))
        pixels, labels = parts[0].unsqueeze(1), parts[1].to(torch.int64)  # (N, 1, 28, 28), (N,)
        if labels.max() > 9:
            raise MqvaeError(
                f"{path} was altered: expected labels of 0 to 9, got {labels.max()}. {mending}"
            )
        package = f" (Debian package {_DEBIAN_PACKAGE})" if folder in shipped else ""
        return InMemory(name, split, pixels, labels, f"files in {folder}{package}")

    def fetch(folder: Path) -> object:
        import torchvision

        return getattr(torchvision.datasets, torchvision_name)(folder, download=True)

    return search(
        name,
        read,
        root=root,
        shipped=shipped,
        download=fetch if download else None,
        advice=advice,
    )


def _find(folders: list[Path], name: str) -> Path:
    """The file `name` or `name`.gz in the first of the folders that has it."""
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    if not folders[0].is_dir():
        raise Absent("no such folder")
    raise Absent(f"{name}.gz is missing (also unpacked, and in {folders[1]})")


def _mending(folder: Path, root: Path | None, advice: str) -> str:
    """What to do about a damaged file in `folder`, a sentence."""
    if root is not None:
        return f"Put the original file there, or leave root out (--root). {advice}".strip()
    if folder == DEBIAN_FASHION_MNIST:
        return f"Install it anew: apt-get install --reinstall {_DEBIAN_PACKAGE}."
    return f"Delete it and run again. {advice}".strip()


def _digits(split: str, root: Path | None, download: bool) -> InMemory:
    """scikit-learn's 8×8 digits; inside the package, so there is no root and no download.

    Source:
        E. Alpaydin and C. Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine
        Learning Repository, licence CC BY 4.0: its test part, all of what scikit-learn ships.
    """
    with np.load(_DIGITS) as file:
        images, labels = file["images"], file["labels"]
    part = slice(0, 1500) if split == "train" else slice(1500, None)
    pixels = np.rint(images[part] * (255 / 16)).astype(np.uint8)  # (N, 8, 8), from 0..16
    return InMemory(
        name="digits",
        split=split,
        pixels=torch.from_numpy(pixels).unsqueeze(1),  # (N, 1, 8, 8)
        labels=torch.from_numpy(labels[part].astype(np.int64)),
        source="the digits of UCI, as scikit-learn has them",
    )


def _cifar(name: str, split: str, root: Path | None, download: bool) -> InMemory:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]

    def read(folder: Path) -> InMemory:
        # Also right if the folder named is the one inside the archive.
        if folder.name == kind.base_folder and not (folder / kind.base_folder).is_dir():
            folder = folder.parent
        binary = binary_folder(name, folder)
        if binary and not (folder / kind.base_folder).is_dir():
            found = read_binary(name, split, binary, _mending(folder, root, ""))
            both = [torch.from_numpy(each) for each in found]
            return InMemory(name, split, both[0], both[1], f"files in {binary}")
        meta = (kind.meta["filename"], kind.meta["md5"])
        files = {
            folder / kind.base_folder / file: md5
            for file, md5 in [*kind.train_list, *kind.test_list, meta]
        }
        data = _torchvision(
            lambda: kind(folder, train=split == "train"), files, kind.filename, folder, root
        )
        pixels = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))  # (N, 3, 32, 32)
        return InMemory(
            name, split, torch.from_numpy(pixels), torch.tensor(data.targets), f"files in {folder}"
        )

    advice = f"Its archive is {kind.filename}, or the binary version, to be unpacked there."
    fetch = functools.partial(kind, download=True) if download else None
    return search(name, read, root=root, download=fetch, advice=advice)


def _svhn(split: str, root: Path | None, download: bool) -> InMemory:
    require("scipy")
    from torchvision.datasets import SVHN

    _, file, md5 = SVHN.split_list[split]

    def read(folder: Path) -> InMemory:
        files = {folder / file: md5}
        data = _torchvision(lambda: SVHN(folder, split), files, file, folder, root)
        pixels = np.ascontiguousarray(data.data)  # (N, 3, 32, 32)
        labels = torch.from_numpy(data.labels)
        return InMemory("svhn", split, torch.from_numpy(pixels), labels, f"files in {folder}")

    fetch = functools.partial(SVHN, split=split, download=True) if download else None
    return search("svhn", read, root=root, download=fetch, advice=f"Its file is {file}.")


def _torchvision(
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
                    + _mending(folder, root, f"The original is in {archive}.")
                ) from None
        raise


_LOADERS: dict[str, Loader] = {
    "fashion-mnist": _fashion_mnist,
    "mnist": _mnist,
    "digits": _digits,
    "cifar10": functools.partial(_cifar, "cifar10"),
    "cifar100": functools.partial(_cifar, "cifar100"),
    "svhn": _svhn,
}
_FILE_LOADERS: dict[str, FileLoader] = {
    "celeba-hq": load_celeba_hq,
    "imagenet": load_imagenet,
    "photos": load_photos,
}
DOWNLOADED = tuple(name for name in _LOADERS if name != "digits")
LARGE = tuple(_FILE_LOADERS)
DATASETS = (*_LOADERS, *LARGE)

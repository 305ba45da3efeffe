"""The data sets that are known by name, a row each, and `load`, which takes a name or a folder.

To add one: a file with a function like the others', and a row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from mqvae.data.conform import conform
from mqvae.data.files import Reading
from mqvae.data.folder import load_folder, say
from mqvae.data.images import Images, InMemory
from mqvae.errors import MqvaeError, did_you_mean

Loader = Callable[[str, Path | None, Reading, bool], Images]
"""Of a split, root, how files are read, and whether to download."""


@dataclass(frozen=True)
class Row:
    """A data set.

    Attributes:
        title: As its authors write it.
        path: Of its `Loader`, which is imported when it is asked for. What it gives in memory may
            have a side and channels of its own.
        downloads: It is downloaded where it is in none of its usual places.
        large: Its images are files of several sizes, some 256 pixels a side or more.
    """

    title: str
    path: str
    downloads: bool = False
    large: bool = False

    @property
    def load(self) -> Loader:
        """What loads it."""
        loader: Loader = resolve_name(self.path)
        return loader


_HERE = "mqvae.data"
DATASETS: dict[str, Row] = {
    "fashion-mnist": Row("Fashion-MNIST", f"{_HERE}.mnist.load_fashion_mnist", downloads=True),
    "mnist": Row("MNIST", f"{_HERE}.mnist.load_mnist", downloads=True),
    "digits": Row("scikit-learn's 8×8 digits", f"{_HERE}.digits.load_digits"),
    "cifar10": Row("CIFAR-10", f"{_HERE}.cifar.load_cifar10", downloads=True),
    "cifar100": Row("CIFAR-100", f"{_HERE}.cifar.load_cifar100", downloads=True),
    "svhn": Row("SVHN", f"{_HERE}.svhn.load_svhn", downloads=True),
    "celeba-hq": Row("CelebA-HQ", f"{_HERE}.celeba_hq.load_celeba_hq", large=True),
    "imagenet": Row("ImageNet", f"{_HERE}.imagenet.load_imagenet", large=True),
    "photos": Row("photographs", f"{_HERE}.photos.load_photos", large=True),
}


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
    `python -m benchmarks.photos` in a clone of the repository makes those of photos.

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
    reading = Reading(side, channels, memory, workers, on_error, labels, resize)
    root = None if root is None else Path(root).expanduser()
    if name in DATASETS:
        if root is None and Path(name).is_dir():
            say(f"{name} is the data set by that name: the folder is {name}/")
        images = DATASETS[name].load(split, root, reading, download)
        if isinstance(images, InMemory):
            return conform(images, side=side, channels=channels)
        return images
    folder = (root or Path()) / Path(name).expanduser()
    if name and (folder.is_dir() or folder.suffix == ".tar"):
        return load_folder(folder, split, reading)
    own = all(part.isidentifier() for part in name.split(".")) and "." in name
    hint = f" For a class of your own add --import {name.rpartition('.')[0]}." if own else ""
    raise MqvaeError(
        f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}, or an existing folder "
        f"of images or shards, got {'a file' if folder.is_file() else 'neither'}."
        f"{did_you_mean(name.lower(), DATASETS)}{hint}"
    )

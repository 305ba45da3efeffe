"""Data of a run, as a component of settings."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from mqvae.data.folder import has_validation
from mqvae.data.images import Images
from mqvae.data.registry import DATASETS, load
from mqvae.errors import MqvaeError
from mqvae.ranges import Count, Number


@dataclass(frozen=True)
class Data(ABC):
    """Data of some source, and how much of it is used.

    Derive from it for a source of your own, `--data my_module.Mine`; its fields become settings.
    Reading settings makes the object: look at files in `load`, not before.

    Args:
        name: What it is called, or where it is.
        batch_size: Images or vectors in a batch, over all processes.
        validation: Number of images of the validation split, on which the best checkpoint is
            chosen; 0 for none. They are sampled from the training images by the seed, or are those
            in val/ of a folder that has it (default: a tenth, and 1,000 at most).
        limit: Number of training images, sampled by the seed (default: all).
        classes: Number of classes (default: counted); 1 takes all images as one class, whatever
            folders they are in.
    """

    name: str = ""
    batch_size: Number = 512
    validation: Count | None = None
    limit: Number | None = None
    classes: Number | None = None

    places: ClassVar[tuple[str, ...]] = ()
    """Fields that are paths of this machine, which are not shared with a tokenizer."""

    def __post_init__(self) -> None:
        if isinstance(shape := self.__dict__.get("shape"), list):  # as files have it
            object.__setattr__(self, "shape", tuple(shape))

    @abstractmethod
    def load(self, split: str) -> Images:
        """Load a split, "train" or "test"; "train" includes the validation images.

        Raises:
            ValueError: if there is none, or it cannot be read.
        """

    @classmethod
    def takes(cls, name: str) -> bool:
        """Whether `--data NAME` means this source."""
        return False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...] | None:
        """(C, H, W) of images, (D,) of vectors; None where they must be looked at first."""

    def everything(self) -> Images:
        """Load all images as one split, "files".

        Raises:
            ValueError: if it is always split.
        """
        raise MqvaeError(f"{type(self).__name__} is taken by its splits: add --split test.")

    def prepared(self, rows: Tensor) -> Tensor:
        """Vectors (N, D) as the network takes them."""
        return rows

    @abstractmethod
    def seen(self, images: Images) -> Self:
        """A copy with the shape of these images."""

    @property
    def are_vectors(self) -> bool:
        """Whether it is vectors (D,), as far as is known."""
        return self.shape is not None and len(self.shape) == 1

    @property
    def title(self) -> str:
        """What it is called in the names of runs and on pages."""
        return Path(self.name).name

    @property
    def channels(self) -> int | None:
        """1 of grey images, 3 of colour; None of vectors and where it is not known."""
        return self.shape[0] if self.shape and len(self.shape) == 3 else None

    @property
    def side(self) -> int | None:
        """Pixels a side; None of vectors and where it is not known."""
        return self.shape[-1] if self.shape and len(self.shape) == 3 else None

    def in_words(self) -> str:
        """The shape in words, for messages."""
        if self.are_vectors and self.shape:
            return f"vectors of {self.shape[0]:,} numbers"
        return f"{self.channels} × {self.side} × {self.side} pixels"

    @property
    def random_crop(self) -> bool:
        """Whether training images are cut to squares at random."""
        return False

    @property
    def random_flip(self) -> bool:
        """Whether half of the training images are mirrored."""
        return False

    @property
    def skips(self) -> bool:
        """Whether images that cannot be read are skipped."""
        return False

    def validation_split(self) -> Images | None:
        """Its own validation split; None where validation images are sampled from "train"."""
        return None

    def absolute(self) -> Self:
        """A copy with absolute paths."""
        return self

    def unheld(self, *, skip: bool = False) -> Self:
        """A copy for a single pass, which holds no images in memory.

        Args:
            skip: Leave out what cannot be read.
        """
        return self

    def moved(self, root: str) -> Self:
        """A copy whose files are in another folder than in training.

        Raises:
            ValueError: if they are not there, or lie nowhere.
        """
        raise MqvaeError(f"--root {root}: {type(self).__name__} has no folder that it could be.")


@dataclass(frozen=True)
class ImageData(Data):
    """Images: a dataset by its name, a folder, or tar shards.

    Args:
        name: fashion-mnist, mnist, digits, cifar10, cifar100, svhn, celeba-hq, imagenet or photos,
            or a folder of images or of shards, or a pattern of shards as in
            "photos/{0000..0123}.tar".
        root: Folder of a data set's files (default: its usual places; all but celeba-hq, imagenet
            and photos are downloaded where they are in none).
        side: Pixels a side, to which images are resized and cropped (default: as they are).
        channels: 1 for grey, 3 for colour (default: as the images are).
        memory: Whether images of files are held in memory, or read from the disk (default: held
            where they fit).
        workers: Threads that decode images from the disk (default: one a core, and 8 at most).
        crop: Where along its longer side an image is cut to a square: random is for training;
            pixels cuts the central side × side pixels, and resizes only images that are smaller.
        flip: Mirror half of the training images.
        on_error: An image that cannot be read ends the run, or is skipped: the next one takes its
            place.
    """

    name: str = "fashion-mnist"
    root: str | None = None
    side: Number | None = None
    channels: Literal[1, 3] | None = None
    memory: bool | None = None
    workers: Number | None = None
    crop: Literal["center", "random", "pixels"] = "center"
    flip: bool = False
    on_error: Literal["stop", "skip"] = "stop"

    places = ("name", "root")

    def load(self, split: str) -> Images:
        # Squares in memory have nothing left to be cut at random.
        at_random = self.random_crop and split == "train"
        return load(
            self.name,
            split,
            root=self.root,
            side=self.side,
            channels=self.channels,
            memory=False if at_random and self.memory is None else self.memory,
            workers=self.workers,
            on_error=self.on_error,
            # Said by the user of images in folders that mean nothing; found in those without any.
            labels=self.classes != 1,
            resize=self.crop != "pixels",
        )

    @property
    def shape(self) -> tuple[int, ...] | None:
        if self.channels is None or self.side is None:
            return None
        return self.channels, self.side, self.side

    def seen(self, images: Images) -> Self:
        channels: Any = images.shape[0]  # 1 or 3, as of all images
        return replace(self, side=images.shape[1], channels=channels)

    @property
    def random_crop(self) -> bool:
        return self.crop == "random"

    @property
    def random_flip(self) -> bool:
        return self.flip

    @property
    def skips(self) -> bool:
        return self.on_error == "skip"

    @property
    def _folder(self) -> Path:
        return Path(self.root or "", Path(self.name).expanduser())

    def validation_split(self) -> Images | None:
        named = self.name in DATASETS
        return self.load("validation") if not named and has_validation(self._folder) else None

    def absolute(self) -> Self:
        root, name = self.root, self.name
        if root is not None:
            root = str(Path(root).expanduser().absolute())
        folder = replace(self, root=root)._folder.absolute()
        if name not in DATASETS and (folder.is_dir() or folder.suffix == ".tar"):
            name = str(folder)
        return replace(self, root=root, name=name)

    def unheld(self, *, skip: bool = False) -> Self:
        return replace(self, memory=False, on_error="skip" if skip else "stop")

    def moved(self, root: str) -> Self:
        if self.name in DATASETS:
            return replace(self, root=root)
        folder, name = Path(root).expanduser(), Path(self.name).name
        shards = Path(self.name).suffix == ".tar"
        if (shards and folder.is_dir()) or (folder / name).is_dir():
            folder = folder / name
        elif not folder.is_dir() and folder.suffix != ".tar":
            raise MqvaeError(
                f"--root {root}: there is no such folder. Expected the images of {self.name}, or "
                "the folder that they lie in."
            )
        return replace(self, name=str(folder.absolute()), root=None)

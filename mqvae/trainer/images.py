"""The images of a run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mqvae.data import DATASETS, Images, InMemory, first, hold_out, load, usual_count
from mqvae.data.images import nothing_to_cut
from mqvae.errors import MqvaeError
from mqvae.networks.architecture import Inputs
from mqvae.settings import Data, Settings

FAST_IMAGES = 64  # of trainer.fast_dev_run


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        train: What it is trained on.
        validation: What the best checkpoint is chosen on, held out of the training set; may be
            empty.
        test: What it is measured on, and nothing else.
    """

    train: Images
    validation: Images
    test: Images


def load_split(options: Data, split: str) -> Images:
    """A split of a run's dataset, as it came."""
    return load(
        options.name,
        split,
        root=options.root,
        side=options.side,
        channels=options.channels,
        memory=options.memory,
        workers=options.workers,
        on_error=options.on_error,
    )


def load_splits(settings: Settings) -> tuple[Splits, Settings]:
    """The images of a run, and its settings with what was found in them."""
    data, start = _absolute(settings.data), settings.start
    if start is not None:
        start = replace(start, run=str(Path(start.run).expanduser().absolute()))
    # Squares in memory have nothing left to be cut at random.
    memory = False if data.crop == "random" and data.memory is None else data.memory
    train = load_split(replace(data, memory=memory), "train")
    if data.crop == "random" and isinstance(train, InMemory):
        raise MqvaeError(f"{nothing_to_cut(train.name)}.")
    channels: Any = train.shape[0]  # 1 or 3, as of all images
    # Looking at a million images once is enough.
    test = load_split(replace(data, side=train.shape[1], channels=channels), "test")
    highest = max(int(images.labels.max()) for images in (train, test))
    classes = data.classes or highest + 1
    if classes <= highest:
        raise MqvaeError(
            f"data.classes is {classes}, but {train.name} has labels up to {highest}: expected "
            f"{highest + 1} or more; leave it out to have them counted."
        )
    count = usual_count(train) if data.validation is None else data.validation
    data = replace(data, channels=channels, side=train.shape[1], classes=classes, validation=count)
    train, validation = hold_out(train, count, seed=settings.seed, limit=data.limit)
    if settings.trainer.fast_dev_run:
        validation, test = (first(images, FAST_IMAGES) for images in (validation, test))
    return Splits(train, validation, test), replace(settings, data=data, start=start)


def inputs_of(data: Data) -> Inputs:
    """What a network for these images is built for.

    Raises:
        ValueError: if they have not been looked at yet.
    """
    if data.channels is None or data.side is None:
        raise MqvaeError("data.channels and data.side must be known to build a network.")
    return Inputs(data.channels, data.side, data.classes or 1)


def _absolute(data: Data) -> Data:
    """The same images, whatever folder the run is gone on with or used from."""
    root, name = data.root, data.name
    if root is not None:
        root = str(Path(root).expanduser().absolute())
    folder = Path(root or "", Path(name).expanduser()).absolute()
    if name not in DATASETS and (folder.is_dir() or folder.suffix == ".tar"):
        name = str(folder)
    return replace(data, root=root, name=name)

"""The images of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mqvae.config import Settings, Spec
from mqvae.config.classes import find
from mqvae.config.sources import source_of
from mqvae.data import (
    DATASETS,
    Bounds,
    Data,
    Identity,
    ImageData,
    Images,
    Reading,
    bounds_of,
    draw,
    first,
    hold_out,
    identity_of,
    load_all,
    usual_count,
)
from mqvae.data.own_size import BySize
from mqvae.data.validation import MOST
from mqvae.errors import MqvaeError, did_you_mean
from mqvae.networks.architecture import Inputs
from mqvae.runs import Run
from mqvae.training.known import Changes, Known, check
from mqvae.weights.packaged import packaged

FAST_IMAGES = 64  # of trainer.fast_dev_run
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        train: What it is trained on.
        validation: What the best checkpoint is chosen on, held out of the training set, or of a
            validation split that the folder has; may be empty.
        test: What it is measured on, and nothing else.
        bounds: What decides by an image's hash whether it is held out; None where images have no
            names.
    """

    train: Images
    validation: Images
    test: Images
    bounds: Bounds | None = None

    def by_name(self) -> Mapping[str, Images]:
        """Split -> images."""
        return {name: getattr(self, name) for name in SPLITS}


@dataclass(frozen=True)
class Found:
    """A split of a run, as it is there now.

    Attributes:
        images: The images.
        identity: Which they are.
        changes: What is different from those that the run had, and was accepted.
    """

    images: Images
    identity: Identity
    changes: Changes


def load_split(data: Data, split: str) -> Images:
    """A split of a run's dataset, as it came; "train" has the images held out in it, too."""
    return data.load(split)


def load_splits(settings: Settings, known: Known | None = None) -> tuple[Splits, Settings]:
    """The images of a run, and its settings with what was found in them.

    Args:
        settings: Of the run.
        known: What the run knows of its images, which keeps each of them in its split.
    """
    data, start = settings.data.absolute(), settings.start
    if start is not None and packaged(start.run) is None:
        start = replace(start, run=str(Path(start.run).expanduser().absolute()))
    train = load_split(data, "train")
    seen = data.seen(train)  # looking at a million images once is enough
    test = load_split(seen, "test")
    highest = max(int(images.labels.max()) for images in (train, test))
    classes = data.classes or highest + 1
    if classes <= highest:
        raise MqvaeError(
            f"data.classes is {classes}, but {train.name} has labels up to {highest}: expected "
            f"{highest + 1} or more; leave it out to have them counted."
        )
    if classes > 1 and highest == 0:
        raise MqvaeError(
            f"data.classes is {classes}, but {train.name} has no labels: all images would be of "
            "class 0. Put them into class folders (in shards, a .cls to each), or leave it out."
        )
    settings = replace(settings, data=seen)
    train, validation, bounds, count = _held_out(train, settings, known.bounds if known else None)
    data = replace(seen, classes=classes, validation=count)
    if settings.trainer.fast_dev_run:
        validation, test = (first(images, FAST_IMAGES) for images in (validation, test))
    splits = Splits(train, validation, test, bounds)
    return splits, replace(settings, data=data, start=start)


def load_run_split(
    run: Run,
    settings: Settings,
    split: str,
    *,
    whole: bool = False,
    accept_changed_data: bool = False,
) -> Found:
    """One split of a run, as the run has it, compared with what it had.

    "train" is what it was trained on: without the validation images, and within the limit.

    Args:
        run: The run.
        settings: Its settings; `data.root` and how images are read may be others.
        split: "train", "validation" or "test".
        whole: Take the dataset's training split whole, with the images held out and those beyond
            the limit in it.
        accept_changed_data: Take the images as they are, though they are others.

    Raises:
        ValueError: if there is no such split, or the images are others and not accepted.
    """
    if split not in SPLITS:
        raise MqvaeError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}.")
    known = Known.of_run(run)
    settings = replace(settings, data=settings.data.absolute())
    if split == "test":
        images = load_split(settings.data, "test")
        parts = {"test": images}
    else:
        everything = load_split(settings.data, "train")
        bounds = known.bounds if known else None
        train, validation, *_ = _held_out(everything, settings, bounds)
        parts = {"train": train, "validation": validation}
        if not whole:
            parts = {split: parts[split]}
        images = everything if whole else parts[split]
    if settings.trainer.fast_dev_run:
        parts = {k: v if k == "train" else first(v, FAST_IMAGES) for k, v in parts.items()}
        images = images if whole else parts[split]
    now = {name: identity_of(part) for name, part in parts.items()}
    changes = check(run.folder, known, now, accept=accept_changed_data)
    identity = identity_of(images) if whole else now[split]
    return Found(images, identity, changes)


def other_images(
    data: Data, name: str, split: str | None, *, root: str | None, own_size: bool
) -> Images:
    """Other images than those of a run, as many channels and as large as these.

    Args:
        data: Of the run.
        name: A dataset by its name, a folder of images or shards.
        split: One of its splits; if None, test of a dataset and all images of a folder.
        root: Where its files are.
        own_size: Take files at the sizes that they have.

    Raises:
        ValueError: if there are none, one cannot be read or they have no sizes of their own.
    """
    source = source_of(name)
    if data.are_vectors or source["class_path"] != "mqvae.ImageData":
        return _of_source(data, source, split)
    channels: Any = data.channels  # 1 or 3, as of all images
    own = data if isinstance(data, ImageData) else ImageData(side=data.side, channels=channels)
    options = replace(own, name=name, root=root)
    options = options.unheld() if own_size else options
    if name in DATASETS or split is not None:
        images = load_split(options, split or "test")
    else:
        path = Path(root or "", Path(name).expanduser())
        if not path.exists() and path.suffix != ".tar":
            raise MqvaeError(
                f"there is no '{name}': --data is a folder of images, shards, or one of "
                f"{', '.join(DATASETS)}.{did_you_mean(name.lower(), DATASETS)}"
            )
        how = (options.memory, options.workers, options.on_error)
        resize = options.crop != "pixels"
        images = load_all(path, Reading(data.side, data.channels, *how, resize=resize))
    return BySize(images, data.channels or 1) if own_size else images


def _of_source(data: Data, source: Spec, split: str | None) -> Images:
    """Other data of a source, read as those of a run are where it is the same source."""
    kind: Any = find(source["class_path"])
    arguments = source.get("init_args", {})
    other = replace(data, **arguments) if kind is type(data) else kind(**arguments)
    images = other.everything() if split is None else other.load(split)
    if images.shape != data.shape:
        raise MqvaeError(
            f"{images.name} has rows of shape {images.shape}: expected {data.shape}, as the run "
            "was trained on."
        )
    return images


def _held_out(
    train: Images, settings: Settings, bounds: Bounds | None
) -> tuple[Images, Images, Bounds | None, int]:
    """Training split, validation split, the bounds that divide them, and how many were asked for.

    Bounds that are known already hold; counts of images are for a run that begins.
    """
    data, seed, limit = settings.data, settings.seed, settings.data.limit
    if (whole := data.validation_split()) is not None:
        count = min(MOST, len(whole)) if data.validation is None else data.validation
        known = None if bounds is None else bounds.validation
        validation, bound = draw(whole, count, seed=seed, bound=known)
        end = bounds or bounds_of(train, 0, seed=seed, limit=limit)
        if end is not None:
            train, _ = hold_out(train, 0, seed=seed, bounds=replace(end, validation=0))
            bounds = replace(end, validation=bound)
        return train, validation, bounds, count
    count = usual_count(train) if data.validation is None else data.validation
    bounds = bounds or bounds_of(train, count, seed=seed, limit=limit)
    left, validation = hold_out(train, count, seed=seed, limit=limit, bounds=bounds)
    return left, validation, bounds, count


def inputs_of(data: Data) -> Inputs:
    """The inputs that a network for these images takes.

    Raises:
        ValueError: if they have not been looked at yet.
    """
    if data.shape is None:
        raise MqvaeError("data.channels and data.side must be known to build a network.")
    size, *sides = data.shape
    return Inputs(size, sides[-1] if sides else 0, data.classes or 1)

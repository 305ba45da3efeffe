"""The images that a run is trained on, and others to measure it on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mqvae.config import Settings, Spec
from mqvae.config.classes import find
from mqvae.config.sources import source_of
from mqvae.data import DATASETS, Data, ImageData, Images, Reading, first, load_all
from mqvae.data.own_size import BySize
from mqvae.errors import MqvaeError, did_you_mean
from mqvae.runs.images import FAST_IMAGES, Splits, held_out
from mqvae.runs.known import Known
from mqvae.weights.packaged import packaged


def load_splits(settings: Settings, known: Known | None = None) -> tuple[Splits, Settings]:
    """The images of a run, and its settings with what was found in them.

    What the run knows of its images already keeps each of them in its split.
    """
    data, start = settings.data.absolute(), settings.start
    if start is not None and packaged(start.run) is None:
        start = replace(start, run=str(Path(start.run).expanduser().absolute()))
    train = data.load("train")
    seen = data.seen(train)  # looking at a million images once is enough
    test = seen.load("test")
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
    bounds = known.bounds if known else None
    train, validation, bounds, count = held_out(train, seen, settings.seed, bounds)
    data = replace(seen, classes=classes, validation=count)
    if settings.trainer.fast_dev_run:
        validation, test = (first(images, FAST_IMAGES) for images in (validation, test))
    splits = Splits(train, validation, test, bounds)
    return splits, replace(settings, data=data, start=start)


def other_images(
    data: Data, name: str, split: str | None, *, root: str | None, own_size: bool
) -> Images:
    """Images of a dataset, folder or shards, with as many channels and as large as those of a run.

    Without a split they are test of a dataset and all images of a folder; with `own_size` files
    are taken at the sizes that they have.
    """
    source = source_of(name)
    if data.are_vectors or source["class_path"] != "mqvae.ImageData":
        return _of_source(data, source, split)
    channels: Any = data.channels  # 1 or 3, as of all images
    own = data if isinstance(data, ImageData) else ImageData(side=data.side, channels=channels)
    options = replace(own, name=name, root=root)
    options = options.unheld() if own_size else options
    if name in DATASETS or split is not None:
        images = options.load(split or "test")
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

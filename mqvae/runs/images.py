"""The images of a run, in its splits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mqvae.data import (
    Bounds,
    Data,
    Identity,
    Images,
    bounds_of,
    draw,
    first,
    hold_out,
    identity_of,
    usual_count,
)
from mqvae.data.validation import MOST
from mqvae.errors import MqvaeError
from mqvae.runs.folder import Run
from mqvae.runs.known import Changes, Known, check

FAST_IMAGES = 64  # of trainer.fast_dev_run
SPLITS = ("train", "validation", "test")


class OfImages(Protocol):
    """What the settings of a run say of its images."""

    @property
    def data(self) -> Data: ...
    @property
    def seed(self) -> int: ...
    @property
    def trainer(self) -> Any: ...


@dataclass(frozen=True)
class Splits:
    """The images of a run."""

    train: Images  # what it is trained on
    # What the best checkpoint is chosen on, held out of the training set, or of a validation split
    # that the folder has; may be empty.
    validation: Images
    test: Images  # what it is measured on, and nothing else
    # What decides by an image's hash whether it is held out; None where images have no names.
    bounds: Bounds | None = None

    def by_name(self) -> Mapping[str, Images]:
        """Split -> images."""
        return {name: getattr(self, name) for name in SPLITS}


@dataclass(frozen=True)
class Found:
    """A split of a run, as it is there now, or other images."""

    images: Images
    identity: Identity  # which they are
    # What is different from those that the run had, and was accepted.
    changes: Changes = field(default_factory=dict)
    data: str = ""  # what they are called in files, if they are not the run's; empty if they are


def load_run_split(
    run: Run,
    settings: OfImages,
    split: str,
    *,
    whole: bool = False,
    accept_changed_data: bool = False,
) -> Found:
    """One split of a run, "train", "validation" or "test", compared with what the run had.

    "train" is what it was trained on: without the validation images, and within the limit, unless
    the `whole` split is wanted. `data.root` and how images are read may be others than the run's.

    Raises:
        ValueError: if there is no such split, or the images are others and not accepted.
    """
    if split not in SPLITS:
        raise MqvaeError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}.")
    known = Known.of_run(run)
    data = settings.data.absolute()
    if split == "test":
        images = data.load("test")
        parts = {"test": images}
    else:
        everything = data.load("train")
        bounds = known.bounds if known else None
        train, validation, *_ = held_out(everything, data, settings.seed, bounds)
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


def held_out(
    train: Images, data: Data, seed: int, bounds: Bounds | None
) -> tuple[Images, Images, Bounds | None, int]:
    """Training split, validation split, the bounds that divide them, and how many were asked for.

    Bounds that are known already hold; counts of images are for a run that begins.
    """
    limit = data.limit
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

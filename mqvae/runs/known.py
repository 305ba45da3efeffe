"""A run's record of its images, and checks against it."""

import io
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mqvae.core.distributed import is_first
from mqvae.data import Bounds, Identity, Images, identity_of
from mqvae.errors import MqvaeError
from mqvae.files import write_whole
from mqvae.runs.folder import Run

FILE = "images.npz"
ACCEPT = "--accept-changed-data"
Changes = Mapping[str, str]  # split -> what is different, in words


@dataclass(frozen=True)
class Known:
    """A run's record of its images: in `state.json`, `summary.json` and `images.npz`."""

    splits: Mapping[str, Identity] = field(default_factory=dict)  # which images each split has
    # What decides by an image's hash whether it is held out; None where images have no names.
    bounds: Bounds | None = None
    # Changes of the images that were accepted, with the step.
    accepted: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, splits: Mapping[str, Images], bounds: Bounds | None) -> "Known":
        """The record of a run's splits; looks at the size of each file."""
        return cls({name: identity_of(images) for name, images in splits.items()}, bounds)

    @classmethod
    def of_run(cls, run: Run) -> "Known | None":
        """The record of a run; None if it has none.

        That of the last checkpoint, also for the best: changes that were accepted since hold.
        """
        there = (name for name in ("last", "best") if Run.checkpoint_in(run.folder, name))
        name = next(there, None)
        state = {} if name is None else run.load(name, training=False, weights=False).state
        if "images" not in state:
            return None
        arrays = _read(run.folder / FILE)  # nothing unless it is of the same
        splits = {
            split: Identity.from_json(content).with_arrays(arrays.get(split, {}))
            for split, content in state["images"].items()
        }
        bounds = state["bounds"]
        accepted = tuple(state["accepted_changes"])
        return cls(splits, None if bounds is None else Bounds(**bounds), accepted)

    def summary(self) -> dict[str, Any]:
        """The entries about images in summary.json."""
        images = {split: identity.to_json() for split, identity in self.splits.items()}
        return {"images": images, "accepted_changes": list(self.accepted)}

    def state(self) -> dict[str, Any]:
        """The entries about images in state.json."""
        return {**self.summary(), "bounds": self.bounds and asdict(self.bounds)}

    def write(self, run: Run) -> None:
        """Write images.npz into a run's folder: what it takes to count what has changed."""
        arrays = {
            f"{split}.{name}": array
            for split, identity in self.splits.items()
            for name, array in identity.to_arrays().items()
        }
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        write_whole(run.folder / FILE, content.getvalue())

    def changes(self, now: Mapping[str, Identity]) -> Changes:
        """Differences of these splits from the record."""
        found = {}
        for split, identity in now.items():
            if split in self.splits and (different := self.splits[split].compare(identity)):
                found[split] = str(different)
        return found

    def trained_on(self, test: Identity) -> int:
        """Number of some test images that were training images."""
        train = self.splits.get("train")
        if train is None or train.names is None or test.names is None:
            return 0
        return int(np.isin(test.names, train.names).sum())


def check(
    folder: Path, known: Known | None, now: Mapping[str, Identity], *, accept: bool
) -> Changes:
    """Compare images with those that a run had: what is different, by split.

    A warning says so of a run without a record, and of differences that are accepted; others are
    refused.
    """
    if known is None:
        _warn(
            f"{folder} has no record of its images, as it was imported: whether they are the same "
            "cannot be told"
        )
        return {}
    changes = known.changes(now)
    if not changes:
        return {}
    lines = "".join(f"\n  {split}: {words}" for split, words in changes.items())
    test = now.get("test")
    if "test" in changes and test is not None and (number := known.trained_on(test)):
        lines += f"\n  {number:,} of the images that are for test now were training images"
    if not accept:
        raise MqvaeError(
            f"the images are not those that {folder} was trained and measured on:{lines}\n"
            f"Put them back as they were, or accept them as they are: {ACCEPT} "
            "(accept_changed_data=True)."
        )
    _warn(f"changed images are accepted for {folder}:{lines}")
    return changes


def _warn(text: str) -> None:
    if is_first():
        print(f"mqvae: warning: {text}", file=sys.stderr)


def _read(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """Split -> arrays; nothing if the file is missing or damaged, as digests are elsewhere."""
    found: dict[str, dict[str, np.ndarray]] = {}
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            for key in arrays.files:
                split, _, name = key.partition(".")
                found.setdefault(split, {})[name] = arrays[key]
    except Exception:
        return {}
    return found

"""Sizes and colours of images, by their headers."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mqvae.data.decoding import guarded, head
from mqvae.data.folder import divided_at
from mqvae.data.registry import DATASETS, load

SOME = 32  # files that are looked at, evenly among all


@dataclass(frozen=True)
class Look:
    """Size and colour of images.

    Attributes:
        least: Shortest side of any of them, in pixels.
        most: Longest side of any of them.
        colour: Whether any is in colour.
        count: How many there are, all splits together.
    """

    least: int
    most: int
    colour: bool
    count: int

    def __str__(self) -> str:
        sides = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{'colour' if self.colour else 'grey'}, {sides} pixels a side"


def look(name: str, root: str | None = None) -> Look:
    """Look at some images of a data set, a folder or shards; at files, their headers alone.

    Args:
        name: As in `load`.
        root: As in `load`.

    Raises:
        ValueError: if one that is looked at cannot be read.
        FileNotFoundError: if there are none.
    """
    row = DATASETS.get(name)
    if row is not None and row.large:  # their files have several sizes, none of them small
        return Look(256, 256, colour=True, count=100_000)
    if row is not None:
        images = load(name, "test", root=root)  # as large, and fewer
        channels, height, width = images.shape
        return Look(min(height, width), max(height, width), channels == 3, len(images))
    files = divided_at(Path(root or "", Path(name).expanduser()))[0].files
    heads = [
        guarded(lambda i=i: head(files.open(i)), partial(files.where, i))  # type: ignore[misc]
        for i in range(0, len(files), -(-len(files) // SOME))
    ]
    sides = [side for _, *sides in heads for side in sides]
    return Look(min(sides), max(sides), not all(grey for grey, *_ in heads), len(files))

"""Strips of sample images, cut apart and set again so that a page can carry them."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mqvae.errors import MqvaeError

GAP = 2  # pixels between the tiles of a strip in a run folder
TILE = 56  # CSS pixels that a tile has at least
LARGE = 128  # CSS pixels that a tile has at most, when its image is larger
BUDGET = 1_500_000  # characters for all strips of a page, and again for all codebooks

# Tried in this order until the strips fit: first unchanged, then ever smaller.
ENCODINGS = ((None, 1.0), (90, 1.0), (80, 1.0), (80, 0.5), (70, 0.25))


@dataclass(frozen=True)
class Strip:
    """Equal square tiles, (N, S, S, channels) bytes."""

    tiles: np.ndarray

    @property
    def side(self) -> int:
        return int(self.tiles.shape[1])

    @property
    def scale(self) -> float:
        """CSS pixels per image pixel: whole where images are enlarged, so that pixels are equal."""
        if self.side < TILE:
            return float(math.ceil(TILE / self.side))
        return min(1.0, LARGE / self.side)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in CSS pixels."""
        pixels = len(self.tiles) * (self.side + self.gap) - self.gap
        return round(self.scale * pixels), round(self.scale * self.side)

    @property
    def tile(self) -> float:
        """Width of a tile on the page, in CSS pixels."""
        return self.scale * self.side

    @property
    def period(self) -> float:
        """From a tile to the next, in CSS pixels."""
        return self.scale * (self.side + self.gap)

    @property
    def gap(self) -> int:
        return max(1, round(4 / self.scale))

    def image(self) -> Image.Image:
        """The tiles side by side; what lies between them is transparent, for dark pages."""
        count, side, _, channels = self.tiles.shape
        sheet = np.zeros((side, count * (side + self.gap) - self.gap, channels + 1), np.uint8)
        for index, tile in enumerate(self.tiles):
            left = index * (side + self.gap)
            sheet[:, left : left + side, :channels] = tile
            sheet[:, left : left + side, channels] = 255
        return Image.fromarray(sheet)


def read_strip(file: Path) -> Strip | None:
    """The tiles of a strip in a run folder; None when there is no such file.

    Raises:
        ValueError: the file is no image, or is not a strip of square tiles.
    """
    if not file.is_file():
        return None
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            grey = opened.mode in ("1", "L", "LA", "I", "I;16")
            pixels = np.asarray(opened.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise MqvaeError(f"{file} is damaged: not a readable image ({error})") from error
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    side, width = pixels.shape[:2]
    count, left = divmod(width + GAP, side + GAP)
    if left or not count:
        raise MqvaeError(
            f"{file} is damaged: expected square tiles with {GAP} pixels between them, "
            f"got an image of {width}×{side}"
        )
    starts = [index * (side + GAP) for index in range(count)]
    return Strip(np.stack([pixels[:, start : start + side] for start in starts]))


def encode(images: Sequence[Image.Image]) -> tuple[list[str], bool]:
    """Data URIs of images, and whether they are lossless.

    They are when all of them fit into `BUDGET`; otherwise WebP, coarser until they do.
    """
    if not images:
        return [], True
    for quality, zoom in ENCODINGS:
        uris = [data_uri(image, quality, zoom) for image in images]
        if sum(map(len, uris)) <= BUDGET:
            break
    return uris, quality is None


def data_uri(image: Image.Image, quality: int | None = None, zoom: float = 1.0) -> str:
    """An image as PNG, or as WebP of some quality and size, in the page itself."""
    written, kind = BytesIO(), "png" if quality is None else "webp"
    if quality is None:
        image.save(written, "PNG", optimize=True)
    else:
        width, height = (max(1, round(zoom * length)) for length in image.size)
        resized = image.convert("RGBA").resize((width, height), Image.Resampling.LANCZOS)
        resized.save(written, "WEBP", quality=quality, method=4)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"

"""Decoding of an image file."""

import os
import stat
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mqvae.errors import MqvaeError

_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")

MOST_BYTES = 2**30  # of a file; an image of as many pixels as Pillow takes has no more

# What files with the endings that are read hold. Pillow knows more, some of which it hands to other
# programs, and looks at what a file holds, not at its name.
_KINDS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "TIFF", "WEBP")

T = TypeVar("T")
File = str | Path | IO[bytes]


def open_image(file: File) -> Image.Image:
    """An image file, not decoded yet.

    Raises:
        ValueError: if it declares a size of 0, or so many pixels that it may be a bomb, or has no
            end, or none that memory could hold.
        UnidentifiedImageError: if it is of none of the kinds that are read.
    """
    if isinstance(file, str | Path):
        check_file(file)
    try:
        image = Image.open(file, formats=_kinds())
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise MqvaeError(f"more than {most:,} pixels by its header, which may be a bomb") from None
    if not all(image.size):
        image.close()
        raise MqvaeError("{} × {} pixels by its header".format(*image.size))
    return image


def check_file(path: str | Path) -> None:
    """Refuse pipes, devices and huge files.

    Raises:
        ValueError: if it is no file of `MOST_BYTES` at most.
        FileNotFoundError: if it is not there.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise MqvaeError("no regular file")
    if state.st_size > MOST_BYTES:
        raise MqvaeError(f"{state.st_size:,} bytes, more than {MOST_BYTES:,}")


@cache
def _kinds() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in _KINDS if kind in Image.OPEN)


def head(file: File) -> tuple[bool, int, int]:
    """Whether it is grey, its width and height, without decoding."""
    with open_image(file) as image:
        return image.mode in _GREY_MODES, *image.size


def decode(
    file: File, side: int, channels: int, *, offset: float = 0.5, resize: bool = True
) -> np.ndarray:
    """(C, side, side) uint8: first frame, upright, a square of it; no transparency.

    Args:
        file: What to decode.
        side: Of the result.
        channels: 1 or 3.
        offset: Where the square lies along the longer side, 0 to 1; 0.5 is the centre.
        resize: Whether the square is as high as the image; if not, it has `side` pixels, and only
            smaller images are resized.
    """
    if isinstance(file, str):
        check_file(file)
        # Read at once: Pillow's many small reads are a sixth of the time of a small image.
        with open(file, "rb", buffering=0) as there:
            file = BytesIO(there.read())
    with open_image(file) as opened:
        return numbers(squared(upright(opened, channels), side, offset=offset, resize=resize))


def squared(
    image: Image.Image, side: int, *, offset: float = 0.5, resize: bool = True
) -> Image.Image:
    """A square of an image with `side` pixels a side; arguments as of `decode`."""
    width, height = image.size
    if (width, height) == (side, side):
        return image
    # Resizing the square is resizing the shorter side, then cropping, but never
    # makes the long strip that an image of 10 × 100,000 pixels would become.
    short = min(width, height)
    left, top = (width - short) * offset, (height - short) * offset
    if not resize and short >= side:  # whole pixels: nothing is interpolated
        short, left, top = side, (width - side) // 2, (height - side) // 2
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def upright(image: Image.Image, channels: int) -> Image.Image:
    """The first frame in grey or colour of 8 bits, as its orientation says; no transparency."""
    image = _eight_bits(ImageOps.exif_transpose(image))
    if image.mode in ("P", "PA"):
        # Straight to RGB, Pillow warns about palettes with transparency.
        image = image.convert("RGBA")
    return image.convert("L" if channels == 1 else "RGB")


def numbers(image: Image.Image) -> np.ndarray:
    """(C, H, W) uint8 of a grey or colour image of 8 bits."""
    width, height = image.size
    return np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)


def guarded(function: Callable[[], T], where: Callable[[], str]) -> T:
    """What `function` makes of a file; whatever goes wrong names the file.

    Args:
        function: Reads it.
        where: Its name.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it cannot be read.
    """
    try:
        return function()
    except FileNotFoundError:
        raise FileNotFoundError(f"{where()} does not exist: expected an image") from None
    # Decoders meet damaged files with anything from SyntaxError to struct.error.
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        text = " ".join(str(error).split()) or type(error).__name__
        got = "none that is known" if unknown else text
        raise MqvaeError(
            f"{where()} cannot be read: expected an image, got: {got}; "
            "replace the file or take it out"
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits brought to 8: Pillow itself would cut all values above 255."""
    if image.mode == "F":
        raise MqvaeError("it holds floating-point numbers; convert it to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65_535:
        raise MqvaeError("it holds numbers outside 0..65535; convert it to 8 or 16 bits")
    values += 128
    values //= 257
    return Image.fromarray(values.astype(np.uint8))

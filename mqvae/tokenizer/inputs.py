"""Forms of images that a tokenizer takes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mqvae.data.decoding import guarded, numbers, open_image, upright
from mqvae.errors import MqvaeError

Picture: TypeAlias = Tensor | np.ndarray | Image.Image | str | os.PathLike[str]
Pictures: TypeAlias = Picture | Sequence[Picture]

EXPECTED = (
    "expected a PIL image, the path of an image file, an array (H, W), (H, W, C) or (B, H, W, C), "
    "a tensor (C, H, W) or (B, C, H, W), or a list of images"
)
# A decoder's output, which may be encoded again, is a little beyond [0, 1]; images scaled to
# [−1, 1] or 0 … 255 are far.
SLACK = 0.5


def tensors_of(given: Pictures, channels: int) -> Tensor | list[Tensor]:
    """Images as the network takes them.

    Args:
        given: What `EXPECTED` says; bytes, or floats in [0, 1]. PIL images and files become grey
            or colour, as `channels` says, at the size that they have.
        channels: 1 or 3.

    Returns:
        (B, C, H, W) floats in [0, 1], or one (C, H, W) each if they have several sizes.

    Raises:
        ValueError: if it is something else, or a file cannot be read.
        FileNotFoundError: if a file is not there.
    """
    if not isinstance(given, list | tuple):
        return _batch(given, channels)
    if not given:
        raise MqvaeError(f"there are no images: {EXPECTED}.")
    images = []
    for index, each in enumerate(given):
        batch = _batch(each, channels)
        if len(batch) != 1:
            raise MqvaeError(
                f"entry {index} of the list holds {len(batch)} images: expected one image in each."
            )
        images.append(batch[0])
    one_size = len({image.shape for image in images}) == 1
    same = len({(image.dtype, image.device) for image in images}) == 1
    if one_size:
        return torch.stack(images if same else [image.float().cpu() for image in images])
    return images


def _batch(given: Any, channels: int) -> Tensor:
    """One image or a batch: (B, C, H, W) floats."""
    if isinstance(given, str | os.PathLike):
        return _scaled(_file(Path(given), channels))[None]
    if isinstance(given, Image.Image):
        return _scaled(torch.tensor(numbers(upright(given, channels))))[None]
    if isinstance(given, np.ndarray):
        tensor = _channels_first(given)
    elif isinstance(given, Tensor):
        tensor = given.detach()
    else:
        raise MqvaeError(f"{EXPECTED}, got {type(given).__name__}.")
    batch = tensor[None] if tensor.ndim == 3 else tensor
    if batch.ndim != 4 or batch.shape[1] != channels or not batch.numel():
        what = "a tensor" if isinstance(given, Tensor) else "an array"
        shape = "(C, H, W) or (B, C, H, W)" if what == "a tensor" else "(H, W, C) or (B, H, W, C)"
        raise MqvaeError(
            f"{what} of images is {shape} with C = {channels}, the channels that the tokenizer was "
            f"trained on; got {tuple(given.shape)}."
        )
    return _scaled(batch)


def _file(path: Path, channels: int) -> Tensor:
    if path.is_dir():
        raise MqvaeError(
            f"{path} is a folder: pass a list of files, as in sorted(Path({str(path)!r})"
            ".glob('*.png')), or encode all of it with `mqvae encode`."
        )

    def read() -> Tensor:
        with open_image(path) as image:
            return torch.tensor(numbers(upright(image, channels)))

    return guarded(read, lambda: str(path))


def _channels_first(array: np.ndarray) -> Tensor:
    """(H, W), (H, W, C) or (B, H, W, C) → (C, H, W) or (B, C, H, W)."""
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise MqvaeError(f"{_NUMBERS}, got an array of {array.dtype}.")
    if array.ndim in (3, 4):
        array = np.moveaxis(array, -1, -3)
    return torch.from_numpy(np.array(array))  # of its own: it may be a view that goes backwards


_NUMBERS = "images are bytes (uint8, 0 … 255) or floats in [0, 1]"


def _scaled(images: Tensor) -> Tensor:
    """Bytes and floats as floats in [0, 1]."""
    if images.dtype == torch.uint8:
        return images / 255
    if not images.is_floating_point():
        raise MqvaeError(f"{_NUMBERS}, got {images.dtype}.")
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise MqvaeError(f"{_NUMBERS}, got floats from {low:.4g} to {high:.4g}: scale them.")
    return images

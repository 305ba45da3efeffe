"""Images in memory at another size, in grey or in colour."""

import dataclasses

import torch
from torch import Tensor

from mqvae.data.images import InMemory, check_memory

_CHUNK_BYTES = 32 * 2**20


def conform(images: InMemory, *, side: int | None, channels: int | None) -> InMemory:
    """The same square images with `side` pixels a side and `channels` channels.

    Grey becomes colour by repetition, colour becomes grey by the luma of ITU-R BT.601.

    Raises:
        ValueError: if the result is larger than `MAX_BYTES`.
    """
    old_channels, old_side, _ = images.shape
    side, channels = side or old_side, channels or old_channels
    check_memory(images.name, len(images), channels, side)
    pixels = images.pixels
    if channels == 1 and old_channels == 3:
        pixels = _luma(pixels)
    if side != old_side:
        pixels = _resize(pixels, side)
    if channels == 3 and old_channels == 1:
        pixels = pixels.repeat(1, 3, 1, 1)  # (N, 3, H, W)
    # Resizing rounds apart on other processors: the images are known by what they were before.
    original = "" if pixels is images.pixels else images.digest
    return dataclasses.replace(images, pixels=pixels, original=original)


def _chunks(pixels: Tensor, bytes_each: int) -> tuple[Tensor, ...]:
    """Views on the images, so many at a time that intermediate values stay small."""
    return torch.split(pixels, max(1, _CHUNK_BYTES // bytes_each))


def _luma(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 1, H, W) uint8, in the integers that Pillow uses for files."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(3, 1, 1)
    grey = [
        ((chunk.to(torch.int32) * weights).sum(1, keepdim=True, dtype=torch.int32) + 0x8000) >> 16
        for chunk in _chunks(pixels, 4 * pixels[0].numel())
    ]
    return torch.cat([chunk.to(torch.uint8) for chunk in grey])


def _resize(pixels: Tensor, side: int) -> Tensor:
    """(N, C, S, S) uint8 -> (N, C, side, side) uint8; bicubic, antialiased when shrinking."""
    count, channels, old_side, _ = pixels.shape
    resized = torch.empty((count, channels, side, side), dtype=torch.uint8)
    chunks = _chunks(pixels, 4 * channels * max(side, old_side) ** 2)
    for chunk, out in zip(chunks, torch.split(resized, len(chunks[0])), strict=True):
        values = torch.nn.functional.interpolate(
            chunk.to(torch.float32), size=(side, side), mode="bicubic", antialias=True
        )
        # Bicubic overshoots at edges; without the clamp bytes would wrap around.
        out.copy_(values.round_().clamp_(0, 255))
    return resized

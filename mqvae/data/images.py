"""Images in memory, as bytes, and what fits them to a side and a number of channels."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_BYTES = 4 * 2**30
_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Images:
    """Images held in memory as bytes.

    Attributes:
        name: Data set, or the folder's path.
        split: "train" or "test"; "files" for files given one by one.
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64; zeros where there are no classes.
        source: Where the bytes came from, one readable line.
        names: File names relative to the folder, for folders.

    Raises:
        ValueError: if shapes or types are others than these.
    """

    name: str
    split: str
    pixels: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    source: str
    names: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise ValueError(
                f"pixels do not fit: expected (N, C, H, W) uint8, got {tuple(self.pixels.shape)} "
                f"{self.pixels.dtype}; scale values to 0..255 and convert with .to(torch.uint8)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"labels do not fit: expected ({len(self.pixels)},) int64, got "
                f"{tuple(self.labels.shape)} {self.labels.dtype}; give one number per image"
            )
        if self.names and len(self.names) != len(self.pixels):
            raise ValueError(
                f"names do not fit: expected {len(self.pixels)}, got {len(self.names)}; "
                "give one per image, or none"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def take(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images and labels at `indices` (n,): (n, C, H, W) uint8 and (n,) int64."""
        indices = torch.as_tensor(indices, dtype=torch.int64, device=self.pixels.device)
        return self.pixels.index_select(0, indices), self.labels.index_select(0, indices)


def conform(images: Images, *, side: int | None, channels: int | None) -> Images:
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
    return dataclasses.replace(images, pixels=pixels)


def check_options(side: int | None, channels: int | None) -> None:
    """Raise ValueError unless `side` is at least 1 and `channels` 1 or 3, where given."""
    if side is not None and side < 1:
        raise ValueError(f"side is out of range: expected at least 1 pixel, got {side}; e.g. 32")
    if channels is not None and channels not in (1, 3):
        raise ValueError(
            f"channels is out of range: expected 1 (grey) or 3 (colour), got {channels}; "
            "leave it out to take what the images have"
        )


def check_memory(name: str, count: int, channels: int, side: int) -> None:
    """Raise ValueError if so many images need more than `MAX_BYTES`."""
    needed = count * channels * side * side
    if needed > MAX_BYTES:
        fits = math.isqrt(MAX_BYTES // (count * channels))
        raise ValueError(
            f"{name} does not fit in memory: expected at most {MAX_BYTES:,} bytes "
            f"({MAX_BYTES / 2**30:.3g} GiB), got {count:,} images of {channels} × {side} × {side} "
            f"= {needed:,} bytes ({needed / 2**30:.3g} GiB); choose a side of at most {fits} "
            f"(side={fits}, --data.side {fits}), or take fewer images, as a folder of their own "
            "(--data.name FOLDER)"
        )


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

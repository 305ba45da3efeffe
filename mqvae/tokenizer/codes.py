"""Codes of images, and the file they are kept in."""

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mqvae.errors import MqvaeError
from mqvae.tokenizer.sizes import Size


@dataclass(frozen=True, eq=False)
class SizedCodes:
    """Codes of images whose sizes the codes alone do not tell; `Tokenizer.decode` cuts to them.

    Attributes:
        codes: (B, h, w) int64, or (B, h, w, G) with more than one group. Where images have several
            sizes, −1 stands beyond the codes of the smaller ones.
        sizes: Height and width of every image in pixels.

    Raises:
        ValueError: if there is not one size for each image.

    Example:
        >>> codes = tokenizer.encode([wide, tall])
        >>> images = tokenizer.decode(codes[1:].to("cpu"))
    """

    codes: Tensor
    sizes: tuple[Size, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.codes):
            raise MqvaeError(f"codes of {len(self.codes)} images, but {len(self.sizes)} sizes.")

    @property
    def mask(self) -> Tensor:
        """Where there are codes, of their shape: False beyond those of smaller images."""
        return self.codes >= 0

    def to(self, *arguments: Any, **options: Any) -> "SizedCodes":
        """The same on another device or in another type; arguments as of `Tensor.to`."""
        return replace(self, codes=self.codes.to(*arguments, **options))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, which: int | slice) -> "SizedCodes":
        """Some of the images; a number gives a batch of one."""
        if isinstance(which, int):
            indices = [range(len(self))[which]]
        else:
            indices = list(range(len(self))[which])
        return SizedCodes(self.codes[indices], tuple(self.sizes[i] for i in indices))


# What `torch.save` wrote of it, `torch.load` reads without `weights_only=False`.
torch.serialization.add_safe_globals([SizedCodes])


@dataclass(frozen=True)
class Codes:
    """Codes of images, with what is needed to decode them.

    Attributes:
        codes: (n, h, w), or (n, h, w, G) with more than one group.
        num_codes: K of the codebook they index.
        side: Side of the images in pixels.
        channels: Channels of the images.
        names: A name for every image.
        model: Fingerprint of the weights that made them.
    """

    codes: np.ndarray
    num_codes: int
    side: int
    channels: int
    names: tuple[str, ...]
    model: str

    def save(self, path: str | Path) -> None:
        """Write a .npz file whole or not at all; readable by numpy alone, without pickle."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        small = np.uint16 if self.num_codes <= 2**16 else np.int32
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                codes=self.codes.astype(small),
                num_codes=self.num_codes,
                side=self.side,
                channels=self.channels,
                names=np.array(self.names, dtype=str),
                model=self.model,
            )
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Codes":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is not one of codes.
        """
        if not Path(path).is_file():
            raise MqvaeError(f"there is no file {path}.")
        try:
            if not zipfile.is_zipfile(path):
                raise MqvaeError("no .npz file")
            with np.load(path, allow_pickle=False) as file:
                return cls(
                    codes=file["codes"],
                    num_codes=int(file["num_codes"]),
                    side=int(file["side"]),
                    channels=int(file["channels"]),
                    names=tuple(str(n) for n in file["names"]),
                    model=str(file["model"]),
                )
        except (
            AttributeError,
            EOFError,
            KeyError,
            NotImplementedError,
            TypeError,
            ValueError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise MqvaeError(
                f"{path} does not hold codes ({error}): pass a file that `mqvae encode` wrote."
            ) from error

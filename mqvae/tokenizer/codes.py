"""Codes of images, and the file they are kept in."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mqvae.errors import MqvaeError
from mqvae.files import writing
from mqvae.tokenizer.sizes import Size

MOST_BYTES = 4 * 2**30  # in a file; as many as images in memory may have


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
        codes: (n, h, w), or (n, h, w, G) with more than one group; of vectors (n, G).
        num_codes: K of the codebook they index.
        side: Side of the images in pixels; 0 of vectors.
        channels: Channels of the images, or dimensions of the vectors.
        names: A name for every image.
        model: Fingerprint of the weights that made them.
        skipped: Names of images that could not be read and have no codes.
        images: Fingerprint of the images, where it was taken: names, sizes and times of change.
        refined: How codes were refined, in words; empty for the nearest codes.
    """

    codes: np.ndarray
    num_codes: int
    side: int
    channels: int
    names: tuple[str, ...]
    model: str
    skipped: tuple[str, ...] = ()
    images: str = ""
    refined: str = ""

    def save(self, path: str | Path) -> None:
        """Write a .npz file whole or not at all; readable by numpy alone, without pickle.

        Raises:
            ValueError: if a code is not in [0, num_codes), or they are more than a file may hold.
        """
        path = Path(path)
        if self.codes.size and not (
            self.codes.dtype.kind in "iu"
            and 0 <= int(self.codes.min()) <= int(self.codes.max()) < self.num_codes
        ):
            raise MqvaeError(
                f"codes must be whole numbers in 0 … {self.num_codes - 1}, got "
                f"{self.codes.min()} … {self.codes.max()} ({self.codes.dtype})."
            )
        codes = self.codes.astype(_type_for(self.num_codes))
        names, skipped = (np.array(each, dtype=str) for each in (self.names, self.skipped))
        if codes.nbytes + names.nbytes + skipped.nbytes > MOST_BYTES:
            raise MqvaeError(
                f"{path} would hold {codes.nbytes:,} bytes of codes, more than {MOST_BYTES:,}: "
                "encode into a folder (--out DIR)."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            arrays = {"codes": codes, "names": names, "skipped": skipped, "digest": self._digest()}
            np.savez_compressed(file, **(vars(self) | arrays))

    def without(self, names: Iterable[str]) -> "Codes":
        """The codes without those of images that could not be read, in whose place others were."""
        skipped = set(names)
        kept = [i for i, name in enumerate(self.names) if name not in skipped]
        if len(kept) == len(self.names):
            return self
        return replace(
            self,
            codes=self.codes[kept],
            names=tuple(self.names[i] for i in kept),
            skipped=tuple(name for name in self.names if name in skipped),
        )

    @classmethod
    def load(cls, path: str | Path) -> "Codes":
        """Read what `save` wrote; what other programs wrote needs no skipped, images and digest.

        Raises:
            ValueError: if the file is not one of codes, or was altered.
        """
        if Path(path).is_dir():
            raise MqvaeError(
                f"{path} is a folder of codes, which are read piece by piece: "
                "`mqvae.tokenizer.shards.shards_of`. `mqvae encode --out FILE.npz` writes one file."
            )
        if not Path(path).is_file():
            raise MqvaeError(f"there is no file {path}.")
        try:
            found, digest = cls._read(path)
            if digest and digest != found._digest():
                raise MqvaeError("it is not what was written")
        # What is damaged or something else fails in too many ways to list.
        except Exception as error:
            raise MqvaeError(
                f"{path} does not hold codes ({error or type(error).__name__}): pass a file that "
                "`mqvae encode` wrote."
            ) from error
        return found

    @classmethod
    def _read(cls, path: str | Path) -> tuple["Codes", str]:
        """Contents of a file, and the digest in it; empty where it has none."""
        if not zipfile.is_zipfile(path):
            raise MqvaeError("no .npz file")
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        if declared > MOST_BYTES:
            raise MqvaeError(f"it declares {declared:,} bytes, more than {MOST_BYTES:,}")
        # numpy leaves a damaged file open that it has opened itself.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            codes, names = file["codes"], file["names"]
            if codes.ndim < 2 or names.ndim != 1:
                raise MqvaeError(f"codes {codes.shape} with names {names.shape}")
            numbers = {name: int(file[name]) for name in ("num_codes", "side", "channels")}
            found = cls(
                codes=codes,
                names=tuple(str(n) for n in names),
                model=str(file["model"]),
                skipped=tuple(str(n) for n in file["skipped"]) if "skipped" in file else (),
                images=str(file["images"]) if "images" in file else "",
                refined=str(file["refined"]) if "refined" in file else "",
                **numbers,
            )
            return found, str(file["digest"]) if "digest" in file else ""

    def _digest(self) -> str:
        """SHA-256 of all that is here, whatever type the codes have."""
        told = [self.num_codes, self.side, self.channels, self.names, self.model]
        told += [self.refined] if self.refined else []
        shape = list(self.codes.shape)
        digest = hashlib.sha256(json.dumps([*told, self.skipped, self.images, shape]).encode())
        digest.update(self.codes.astype(_type_for(self.num_codes)).tobytes())
        return digest.hexdigest()


def form_of(shape: Sequence[int]) -> tuple[int, int]:
    """Side and channels that a file has of images (C, H, W); 0 and D of vectors (D,)."""
    return (shape[-1] if len(shape) > 1 else 0), shape[0]


def numbered(count: int) -> tuple[str, ...]:
    """Names of images that have none."""
    digits = len(str(count - 1))
    return tuple(f"{i:0{digits}d}" for i in range(count))


def _type_for(num_codes: int) -> np.dtype[Any]:
    """The smallest that holds all codes, the same on every machine."""
    kinds = (kind for kind, number in (("<u2", 2**16), ("<i4", 2**31)) if num_codes <= number)
    return np.dtype(next(kinds, "<i8"))

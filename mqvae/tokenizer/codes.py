"""Codes of images, and the file they are kept in."""

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mqvae.errors import MqvaeError
from mqvae.tokenizer.sizes import Size


class SizedCodes(Tensor):
    """Codes that know how large their images were: a tensor, (B, h, w) or (B, h, w, G) int64.

    `to`, `cpu`, `cuda`, `clone` and `detach` keep the sizes, everything else gives a plain tensor.
    Where images have several sizes, −1 stands beyond the codes of the smaller ones.

    Args:
        codes: The codes.
        sizes: Height and width of every image.

    Raises:
        ValueError: if there is not one size for each.
    """

    sizes: tuple[Size, ...]

    # What makes it is `as_subclass`: a tensor's own constructor would copy.
    def __new__(cls, codes: Tensor, sizes: Sequence[Size]) -> "SizedCodes":
        if len(sizes) != len(codes):
            raise MqvaeError(f"codes of {len(codes)} images, but {len(sizes)} sizes.")
        made = codes.detach().as_subclass(cls)
        made.sizes = tuple(sizes)
        return made

    def __init__(self, codes: Tensor, sizes: Sequence[Size]) -> None:
        super().__init__()

    @property
    def mask(self) -> Tensor:
        """Where there are codes, of their shape: False beyond those of smaller images."""
        return self.as_subclass(Tensor) >= 0

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if isinstance(args[0], SizedCodes) and func in _KEEPING:
                result = SizedCodes(result, args[0].sizes)
        return result


_KEEPING = {Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.clone, Tensor.detach}


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

"""A tokenizer and files: images to encode, codes to check, pictures to write."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mqvae.data import Images, Reading, load_all
from mqvae.errors import MqvaeError
from mqvae.progress import watched
from mqvae.runs.images import SPLITS, load_run_split
from mqvae.tokenizer.codec import Codec
from mqvae.tokenizer.codes import Codes

BATCH_SIZE = 256  # images that are held to be written


class FileCodec(Codec):
    """A codec that knows files: images to encode, codes to check, pictures to write."""

    def find_images(
        self,
        what: str,
        *,
        fit: bool = False,
        on_error: str = "stop",
        accept_changed_data: bool = False,
    ) -> Images:
        """An image file, a folder, shards, or a split of the run's dataset, to be encoded.

        Files stay on the disk: each is wanted once.

        Args:
            what: A path, or "test", "validation", or "train" with the validation images in it.
            fit: Resize, crop and convert files to what the run was trained on.
            on_error: "stop" at an image that cannot be read, or "skip" it.
            accept_changed_data: Take a split as it is, though it has other images than the run had.

        Raises:
            ValueError: if it is none of these, the images do not fit the run, or a split has other
                images than the run had.
        """
        data, path = self.settings.data, Path(what)
        if not path.exists() and path.suffix != ".tar":
            if what not in SPLITS:
                raise MqvaeError(
                    f"there is no '{what}': IMAGES is an image file, a folder of images, or one of "
                    f"{', '.join(SPLITS)} for that split of the run's dataset."
                )
            return load_run_split(
                self.run,
                replace(self.settings, data=data.unheld(skip=on_error == "skip")),
                what,
                whole=what == "train",
                accept_changed_data=accept_changed_data,
            ).images
        if data.are_vectors:
            return replace(data, name=str(path)).everything()
        reading = Reading(memory=False, workers=getattr(data, "workers", None), on_error=on_error)
        if fit:
            return load_all(path, replace(reading, side=data.side, channels=data.channels))
        try:
            images = load_all(path, reading)
        except ValueError as error:
            text, advice, _ = str(error).partition("; give a side")
            if not advice:
                raise
            raise MqvaeError(f"{text}; --fit resizes and crops to {data.side}.") from error
        if images.shape[0] != data.channels:
            raise MqvaeError(
                f"{what} has images of {images.shape[0]} channels, the run was trained on "
                f"{data.channels}: --fit converts them."
            )
        weight = next(self.network.parameters())
        black = torch.zeros(1, *images.shape, dtype=weight.dtype, device=self.device)
        try:
            # Not by `encode`, which would fill sides up that codes in a file do not know of.
            with torch.no_grad():
                self.network.encode(black)
        except ValueError as error:
            raise MqvaeError(f"{what}: {error} --fit resizes them to {data.side}.") from None
        return images

    def check_codes(self, codes: Codes) -> None:
        """Refuse codes that this network did not make or cannot decode.

        Raises:
            ValueError: if count, range or shape do not fit, or another network made them.
        """
        quantizer = self.network.quantizer
        array = codes.codes
        of_vectors = self.settings.data.are_vectors
        ndim = 2 if of_vectors else 3 if quantizer.groups == 1 else 4
        if codes.num_codes != quantizer.num_codes:
            raise MqvaeError(
                f"the codes index {codes.num_codes} codewords, the run has "
                f"{quantizer.num_codes}: they belong to another run."
            )
        if array.ndim != ndim or (ndim != 3 and array.shape[-1] != quantizer.groups):
            grid = "" if of_vectors else ", h, w"
            shape = f"(n{grid})" if ndim == 3 else f"(n{grid}, {quantizer.groups})"
            raise MqvaeError(f"the run decodes codes {shape}, got {tuple(array.shape)}.")
        channels = (self.settings.data.shape or (None,))[0]
        if codes.channels != channels:
            raise MqvaeError(
                f"the codes are of inputs with {codes.channels} channels, the run has {channels}."
            )
        if len(codes.names) != len(array):
            raise MqvaeError(f"{len(array)} rows of codes, but {len(codes.names)} names.")
        if not array.size or array.dtype.kind not in "iu":
            raise MqvaeError(
                f"codes must be whole numbers, and some, got {array.size} of {array.dtype}."
            )
        if not 0 <= int(array.min()) <= int(array.max()) < quantizer.num_codes:
            raise MqvaeError(
                f"codes must lie in 0 … {quantizer.num_codes - 1}, got {int(array.min())} … "
                f"{int(array.max())}."
            )
        if not of_vectors:
            # Asked of the decoder, whose work the codes that are there bound; `side` may say
            # anything.
            output = self.decode(torch.from_numpy(array[:1].astype(np.int64)))
            image = self.task.images(output)[0]  # (C, H, W)
            if image.shape != (codes.channels, codes.side, codes.side):
                raise MqvaeError(
                    f"{array.shape[1]} × {array.shape[2]} codes decode to images of "
                    f"{image.shape[1]} × {image.shape[2]}, the file says {codes.side} × "
                    f"{codes.side}."
                )
        if codes.model != self.model:
            raise MqvaeError(
                "these codes were made with other weights: decode them with the run and the "
                "checkpoint that encoded them."
            )

    def decode_to_files(
        self, codes: Codes, folder: str | Path, *, paths: Sequence[Path] | None = None
    ) -> int:
        """Write the images of codes as PNG files, vectors as `vectors.npy`; returns how many.

        Args:
            codes: What to decode.
            folder: Where the files go.
            paths: One for each, in the folder (default: made of the names).

        Raises:
            ValueError: for what `check_codes` refuses; nothing is written then.
        """
        self.check_codes(codes)
        folder = Path(folder)
        if self.settings.data.are_vectors:
            rows = codes.codes[:, 0] if self.network.quantizer.groups == 1 else codes.codes
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / "vectors.npy", self.decode(rows).float().cpu().numpy())
            return len(rows)
        names = png_names(codes.names) if paths is None else paths
        parts = torch.from_numpy(codes.codes.astype(np.int64)).split(BATCH_SIZE)
        done = 0
        for part in watched(parts, len(parts), "decoding"):
            done += write_pictures(self.task.images(self.decode(part)), folder, names[done:])
        return done


def write_pictures(images: Tensor, folder: Path, names: Sequence[Path]) -> int:
    """Write images (n, C, H, W) in [0, 1] as PNG files; returns how many.

    Args:
        images: The images.
        folder: Where the files go.
        names: Of the first n files, in the folder.
    """
    from PIL import Image

    pixels = (images * 255).round().byte().cpu()
    for picture, name in zip(pixels, names, strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        plane: Any = picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
        Image.fromarray(plane.numpy()).save(path)
    return len(pixels)


def png_names(names: tuple[str, ...]) -> list[Path]:
    """A file name of its own for every image, inside the folder it will be put in."""
    if all(Path(name).name for name in names):
        for paths in (
            [Path(name).with_suffix(".png") for name in names],
            [Path(f"{name}.png") for name in names],  # a.jpg beside a.png
        ):
            if all(map(is_inside, paths)) and len(set(paths)) == len(names):
                return paths
    return [Path(f"{i:06d}.png") for i in range(len(names))]


def is_inside(path: Path) -> bool:
    """Whether it can name a picture, which then is inside the folder that it is put in."""
    try:
        parts = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        return False
    fits = all(len(part) <= 255 and b"\0" not in part for part in parts)
    named = os.path.splitext(path.name)[1] == ".png"  # which a name of dots alone has not
    return fits and named and b".." not in parts and not path.is_absolute()

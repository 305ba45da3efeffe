"""A trained run as an object that encodes and decodes."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mqvae.core.network import VQNetwork
from mqvae.core.quantizer import NoQuantizer
from mqvae.data import Images, Reading, in_order, load_all
from mqvae.progress import watched
from mqvae.runs import Run
from mqvae.settings import Settings
from mqvae.tasks import Task
from mqvae.trainer import inputs_of, load_split

BATCH_SIZE = 256


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
            raise ValueError(f"there is no file {path}.")
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("no .npz file")
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
            raise ValueError(
                f"{path} does not hold codes ({error}): pass a file that `mqvae encode` wrote."
            ) from error


class Tokenizer:
    """A trained network with the preprocessing of its run.

    Args:
        run: The run it comes from.
        settings: The run's settings.
        network: The trained network.
        task: What it was trained for.
        step: The number of updates it has had.
        model: Fingerprint of its weights.

    Example:
        >>> tokenizer = Tokenizer.from_run("runs/first")
        >>> codes = tokenizer.encode(images)       # (B, C, H, W) in [0, 1] → (B, h, w)
        >>> images = tokenizer.decode(codes)
    """

    def __init__(
        self, run: Run, settings: Settings, network: VQNetwork, task: Task, step: int, model: str
    ) -> None:
        self.run = run
        self.settings = settings
        self.network = network.eval()
        self.task = task.eval()
        self.step = step
        self.model = model
        self.device = next(network.parameters()).device

    @classmethod
    def from_run(
        cls,
        folder: str | Path,
        *,
        checkpoint: str = "last",
        device: torch.device | str | None = None,
    ) -> "Tokenizer":
        """Load a run.

        Args:
            folder: The run's folder.
            checkpoint: "last" or "best".
            device: Where to put it; a GPU if there is one.

        Raises:
            ValueError: if it is not a run, or its checkpoint is missing or damaged.
        """
        run = Run(folder)
        settings = Settings.of_run(run)
        saved = run.load(checkpoint, training=False)
        components = settings.components()
        network = components.network.build(inputs_of(settings.data), components.quantizer)
        saved.give_weights(network, folder)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        task = components.task.to(device)
        return cls(run, settings, network.to(device), task, saved.state["step"], saved.digest)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes of images.

        Args:
            images: (B, C, H, W) in [0, 1].

        Returns:
            (B, h, w) int64, or (B, h, w, G) with more than one group.

        Raises:
            ValueError: if channels or sides do not fit the network, or it does not quantize.
        """
        if isinstance(self.network.quantizer, NoQuantizer):
            raise ValueError("without quantization there are no codes to encode to.")
        return self.network.encode(images.to(self.device))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """What the decoder makes of codes: images, (B, C, H, W), if that is what the run is about.

        Images are as they come; clamp them to [0, 1] to show them.

        Args:
            codes: As `encode` gives them.

        Raises:
            ValueError: if the codes do not fit the codebook.
        """
        return self.network.decode(codes.to(self.device))

    def find_images(self, what: str, *, fit: bool = False, on_error: str = "stop") -> Images:
        """An image file, a folder, shards, or a split of the run's dataset.

        Args:
            what: A path, or "train" or "test".
            fit: Resize, crop and convert files to what the run was trained on.
            on_error: "stop" at an image that cannot be read, or "skip" it.

        Raises:
            ValueError: if it is none of these, or the images do not fit the run.
        """
        data, path = self.settings.data, Path(what)
        if not path.exists() and path.suffix != ".tar":
            if what in ("train", "test"):
                skip: Any = on_error
                return load_split(replace(data, on_error=skip), what)
            raise ValueError(
                f"there is no '{what}': IMAGES is an image file, a folder of images, or 'train' "
                "or 'test' for that split of the run's dataset."
            )
        reading = Reading(memory=data.memory, workers=data.workers, on_error=on_error)
        if fit:
            return load_all(path, replace(reading, side=data.side, channels=data.channels))
        try:
            images = load_all(path, reading)
        except ValueError as error:
            text, advice, _ = str(error).partition("; give a side")
            if not advice:
                raise
            raise ValueError(f"{text}; --fit resizes and crops to {data.side}.") from error
        if images.shape[0] != data.channels:
            raise ValueError(
                f"{what} has images of {images.shape[0]} channels, the run was trained on "
                f"{data.channels}: --fit converts them."
            )
        try:
            self.encode(torch.zeros(1, *images.shape))
        except ValueError as error:
            raise ValueError(f"{what}: {error} --fit resizes them to {data.side}.") from None
        return images

    def encode_images(self, images: Images) -> Codes:
        """Codes of many images, with what is needed to decode them."""
        batches = in_order(images, BATCH_SIZE, device=self.device)
        total = -(-len(images) // BATCH_SIZE)
        parts = [self.encode(x).cpu().numpy() for x, _ in watched(batches, total, "encoding")]
        channels, side, _ = images.shape
        return self.as_file(np.concatenate(parts), side, channels, names=tuple(images.names))

    def as_file(
        self, codes: np.ndarray, side: int, channels: int, *, names: tuple[str, ...] = ()
    ) -> Codes:
        """Codes of this tokenizer with what is needed to decode them.

        Args:
            codes: (n, h, w), or (n, h, w, G) with more than one group.
            side: Side of their images in pixels.
            channels: Channels of their images.
            names: A name for each; numbers if not given.
        """
        digits = len(str(len(codes) - 1))
        return Codes(
            codes=codes,
            num_codes=self.network.quantizer.num_codes,
            side=side,
            channels=channels,
            names=names or tuple(f"{i:0{digits}d}" for i in range(len(codes))),
            model=self.model,
        )

    def check_codes(self, codes: Codes) -> None:
        """Refuse codes that this network did not make or cannot decode.

        Raises:
            ValueError: if count, range or shape do not fit, or another network made them.
        """
        quantizer = self.network.quantizer
        array = codes.codes
        ndim = 3 if quantizer.groups == 1 else 4
        if codes.num_codes != quantizer.num_codes:
            raise ValueError(
                f"the codes index {codes.num_codes} codewords, the run has "
                f"{quantizer.num_codes}: they belong to another run."
            )
        if array.ndim != ndim or (ndim == 4 and array.shape[-1] != quantizer.groups):
            shape = "(n, h, w)" if ndim == 3 else f"(n, h, w, {quantizer.groups})"
            raise ValueError(f"the run decodes codes {shape}, got {tuple(array.shape)}.")
        if codes.channels != self.settings.data.channels:
            raise ValueError(
                f"the codes are of images with {codes.channels} channels, the run has "
                f"{self.settings.data.channels}."
            )
        if len(codes.names) != len(array):
            raise ValueError(f"{len(array)} rows of codes, but {len(codes.names)} names.")
        if not array.size or array.dtype.kind not in "iu":
            raise ValueError(
                f"codes must be whole numbers, and some, got {array.size} of {array.dtype}."
            )
        if not 0 <= int(array.min()) <= int(array.max()) < quantizer.num_codes:
            raise ValueError(
                f"codes must lie in 0 … {quantizer.num_codes - 1}, got {int(array.min())} … "
                f"{int(array.max())}."
            )
        # Asked of the decoder, whose work the codes that are there bound; `side` may say anything.
        output = self.decode(torch.from_numpy(array[:1].astype(np.int64)))
        image = self.task.images(output)[0]  # (C, H, W)
        if image.shape != (codes.channels, codes.side, codes.side):
            raise ValueError(
                f"{array.shape[1]} × {array.shape[2]} codes decode to images of "
                f"{image.shape[1]} × {image.shape[2]}, the file says {codes.side} × {codes.side}."
            )
        if codes.model != self.model:
            raise ValueError(
                "these codes were made with other weights: decode them with the run and the "
                "checkpoint that encoded them."
            )

    def decode_to_files(
        self, codes: Codes, folder: str | Path, *, paths: Sequence[Path] | None = None
    ) -> int:
        """Write the images of codes as PNG files; returns how many.

        Args:
            codes: What to decode.
            folder: Where the files go.
            paths: One for each, in the folder; made of the names if not given.

        Raises:
            ValueError: for what `check_codes` refuses; nothing is written then.
        """
        from PIL import Image

        self.check_codes(codes)
        folder = Path(folder)
        names = _png_names(codes.names) if paths is None else paths
        array = torch.from_numpy(codes.codes.astype(np.int64))
        done = 0
        parts = array.split(BATCH_SIZE)
        for part in watched(parts, len(parts), "decoding"):
            pixels = (self.task.images(self.decode(part)) * 255).round().byte().cpu()
            for picture in pixels:
                path = folder / names[done]
                path.parent.mkdir(parents=True, exist_ok=True)
                plane: Any = picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)
                Image.fromarray(plane.numpy()).save(path)
                done += 1
        return done


def _png_names(names: tuple[str, ...]) -> list[Path]:
    """A file name of its own for every image, inside the folder it will be put in."""
    if all(Path(name).name for name in names):
        for paths in (
            [Path(name).with_suffix(".png") for name in names],
            [Path(f"{name}.png") for name in names],  # a.jpg beside a.png
        ):
            inside = not any(p.is_absolute() or ".." in p.parts for p in paths)
            if inside and len(set(paths)) == len(names):
                return paths
    return [Path(f"{i:06d}.png") for i in range(len(names))]

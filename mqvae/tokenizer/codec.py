"""Images to codes and back, by a trained network."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mqvae.config import Settings
from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import NoQuantizer
from mqvae.data import Images, fitting
from mqvae.errors import MqvaeError
from mqvae.progress import watched_batches
from mqvae.refine.curvature import Curvature, curvature_of
from mqvae.refine.refined import refined
from mqvae.refine.refinement import Refinement
from mqvae.runs import Run
from mqvae.tasks import Task
from mqvae.tokenizer.codes import Codes, SizedCodes, form_of, numbered
from mqvae.tokenizer.eval_mode import EvalMode
from mqvae.tokenizer.inputs import Pictures, tensors_of
from mqvae.tokenizer.sizes import Size, by_size, cut, together

BATCH_SIZE = 256


def at_once(shape: Sequence[int], how: Refinement | None) -> int:
    """Number of images (C, H, W) encoded at once; smaller where they are refined."""
    return fitting(BATCH_SIZE, shape, side=64 if how is None else 16)


class Codec:
    """A trained network with the preprocessing of its run.

    Args:
        folder: Where it comes from: its run, or a folder of `Tokenizer.save_pretrained`.
        settings: The run's settings.
        network: The trained network.
        task: What it was trained for.
        step: Number of training steps it has had.
        model: Fingerprint of its weights.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Settings,
        network: VQNetwork,
        task: Task,
        step: int,
        model: str,
    ) -> None:
        self.folder = Path(folder)
        self.settings = settings
        self.network = network.eval()
        self.task = task.eval()
        self.step = step
        self.model = model
        self.device = next(network.parameters()).device
        self._evaluating = EvalMode(network)

    @property
    def run(self) -> Run:
        """The run that it comes from.

        Raises:
            ValueError: if it was not made by `from_run`.
        """
        return Run(self.folder)

    @cached_property
    @torch.no_grad()
    def code_shape(self) -> tuple[int, ...]:
        """Shape of the codes of an image of the run: (h, w), or (h, w, G) with more than one group.

        Of the codes of a vector () or (G,).
        """
        return tuple(self._one(*self._shape).shape[1:])

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of one input of the run."""
        return self.settings.data.shape or (1, 1, 1)

    @property
    def stride(self) -> int:
        """Pixels a side that a code stands for; 1 where codes are on no grid."""
        on_grid = len(self.code_shape) == (2 if self.network.quantizer.groups == 1 else 3)
        return -(-(self.settings.data.side or 1) // self.code_shape[0]) if on_grid else 1

    def _one(self, *shape: int) -> Tensor:
        """Codes of a black image (C, H, W)."""
        self._check_quantized()
        weight = next(self.network.parameters())
        black = torch.zeros(1, *shape, dtype=weight.dtype, device=self.device)
        with self._evaluating:
            return self.network.encode(black)

    def _check_quantized(self) -> None:
        if isinstance(self.network.quantizer, NoQuantizer):
            raise MqvaeError("without quantization there are no codes to encode to.")

    @torch.no_grad()
    def encode(
        self, images: Pictures, *, refine: int | Refinement | None = None
    ) -> Tensor | SizedCodes:
        """Codes of images.

        Sides that are no multiple of the stride are filled up, on the right and below, with the
        outermost pixels; `decode` cuts them back. The codes of an image do not depend on the others
        of a list. The network is in eval mode meanwhile, whatever mode it is in before and after.

        Args:
            images: A PIL image, the path of an image file, an array (H, W), (H, W, C) or
                (B, H, W, C), a tensor (C, H, W) or (B, C, H, W), or a list of images, which may
                have several sizes. Arrays and tensors are bytes, or floats in [0, 1]. Of a run on
                vectors an array or a tensor (B, D) of floats.
            refine: Passes through the decoder that look for better codes than the nearest, or all
                about that search; None for the nearest.

        Returns:
            (B, h, w) int64, or (B, h, w, G) with more than one group. Where images have several
            sizes, or were filled up, a record of these codes and the sizes. Of vectors (B,) or
            (B, G).

        Raises:
            ValueError: says what is expected if it gets something else, the network refuses the
                images, it does not quantize, or its codes cannot be refined.
        """
        self._check_quantized()
        if self.settings.data.are_vectors:
            return self.encode_batch(self._vectors(images), refine=refine)
        given = tensors_of(images, self.settings.data.channels or 1)
        sizes: list[Size] = [(image.shape[-2], image.shape[-1]) for image in given]
        if isinstance(given, Tensor):
            codes = self.encode_batch(given, refine=refine)
        else:
            parts: dict[int, Tensor] = {}
            for indices in by_size(sizes):
                part = torch.stack([given[i].to(self.device) for i in indices])
                parts |= zip(indices, self.encode_batch(part, refine=refine), strict=True)
            codes = together([parts[i] for i in range(len(sizes))], fill=-1)
        whole = isinstance(given, Tensor) and not any(self._missing(*sizes[0]))
        return codes if whole else SizedCodes(codes, tuple(sizes))

    def _vectors(self, given: Any) -> Tensor:
        """Vectors (B, D), or one (D,), as the network takes them."""
        expected = f"vectors (B, {self._shape[0]}) of floats"
        if not isinstance(given, Tensor | np.ndarray):
            raise MqvaeError(f"{expected} are an array or a tensor, got {type(given).__name__}.")
        rows = torch.as_tensor(given)
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or not rows.is_floating_point():
            raise MqvaeError(f"expected {expected}, got {tuple(rows.shape)} {rows.dtype}.")
        return self.settings.data.prepared(rows)

    def _missing(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that an image lacks to be a whole number of codes."""
        if (height, width) == (self.settings.data.side,) * 2:
            return 0, 0
        return -height % self.stride, -width % self.stride

    def filled(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) with sides filled up as `encode` does; `x` itself where none is."""
        if x.ndim != 4:
            return x
        below, right = self._missing(x.shape[2], x.shape[3])
        return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x

    @torch.no_grad()
    def encode_batch(self, x: Tensor, *, refine: int | Refinement | None = None) -> Tensor:
        """Codes of images of one size, always a tensor: what `encode` does to each size.

        Args:
            x: (B, C, H, W) floats in [0, 1], on any device.
            refine: As of `encode`.

        Returns:
            (B, h, w) int64, or (B, h, w, G) with more than one group, on the tokenizer's device.

        Raises:
            ValueError: if the network refuses the images, it does not quantize, or its codes cannot
                be refined.
        """
        self._check_quantized()
        how = Refinement.of(refine)
        dtype = next(self.network.parameters()).dtype
        codes = []
        with self._evaluating:
            for part in x.split(at_once(x.shape[1:], how)):
                x = part.to(self.device, dtype)
                codes.append(
                    self.network.encode(self.filled(x)) if how is None else self._refined(x, how)
                )
        return torch.cat(codes)

    def _refined(self, x: Tensor, how: Refinement) -> Tensor:
        """Refined codes of a few images on the device."""
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if self.task.target(x, labels).shape != x.shape:
            raise MqvaeError(
                f"the codes of a {type(self.task).__name__} run cannot be refined: refinement "
                "compares the output with the image, and this task compares it with something "
                "else. Leave out the refinement."
            )
        return refined(self.network, self.filled(x), self.task, how, self._curvature, target=x)

    @cached_property
    def _curvature(self) -> Curvature:
        """Curvature of the decoder, as it is when codes are first refined; in eval mode."""
        shape = self._shape
        return curvature_of(self.network, shape, at_once=at_once(shape, Refinement()))

    @torch.no_grad()
    def decode(self, codes: Tensor | np.ndarray | SizedCodes) -> Tensor:
        """Decode codes: to images, (B, C, H, W), if the run is about images.

        Images are as they come; clamp them to [0, 1] to show them. A record's have the sizes that
        it tells; of several sizes, zeros stand beyond the smaller ones. Other codes give whole
        images. The network is in eval mode meanwhile, whatever mode it is in before and after.

        Args:
            codes: As `encode` gives them, on any device: integers of any type.

        Raises:
            ValueError: if the codes do not fit the codebook.
        """
        sizes: tuple[Size, ...] = ()
        if isinstance(codes, SizedCodes):
            sizes, codes = codes.sizes, codes.codes
        if isinstance(codes, np.ndarray) and codes.dtype.kind in "iu":
            codes = torch.from_numpy(codes.astype(np.int64))
        if not isinstance(codes, Tensor):
            kind = codes.dtype if isinstance(codes, np.ndarray) else type(codes).__name__
            raise MqvaeError(f"codes are a tensor or an array of whole numbers, got {kind}.")
        codes = codes.to(self.device)
        groups = self.network.quantizer.groups
        if self.network.channel_axis == 1 and codes.ndim != (4 if groups > 1 else 3):
            shape = "(B, h, w)" if groups == 1 else f"(B, h, w, {groups})"
            raise MqvaeError(f"the tokenizer decodes codes {shape}, got {tuple(codes.shape)}.")
        if not codes.numel():
            raise MqvaeError(f"there are no codes to decode, got {tuple(codes.shape)}.")
        if not sizes:
            return self._decode(codes)
        parts: dict[int, Tensor] = {}
        for indices in by_size(sizes):
            height, width = (-(-side // self.stride) for side in sizes[indices[0]])
            output = self._decode(codes[indices, :height, :width])
            parts |= zip(indices, cut(output, sizes[indices[0]]), strict=True)
        return together([parts[i] for i in range(len(sizes))], fill=0)

    def _decode(self, codes: Tensor) -> Tensor:
        """Decode codes of one size, as many at once as memory holds."""
        shape = self._shape
        if self.stride > 1 and codes.ndim > 2:
            shape = (shape[0], *(self.stride * codes.shape[axis] for axis in (1, 2)))
        parts = codes.split(fitting(BATCH_SIZE, shape))
        with self._evaluating:
            return torch.cat([self.network.decode(part) for part in parts])

    def encode_images(self, images: Images, *, refine: int | Refinement | None = None) -> Codes:
        """Codes of many images, with what is needed to decode them; `refine` as of `encode`."""
        how = Refinement.of(refine)
        size = BATCH_SIZE if how is None else at_once(images.shape, how)
        batches = watched_batches(images, size, "encoding", device=self.device)
        parts = [self.encode_batch(x, refine=how).cpu().numpy() for x, _ in batches]
        codes, names = np.concatenate(parts), tuple(images.names)
        made = self.as_file(codes, *form_of(images.shape), names=names)
        return made if how is None else replace(made, refined=str(how))

    def as_file(
        self, codes: np.ndarray, side: int, channels: int, *, names: tuple[str, ...] = ()
    ) -> Codes:
        """Codes of this tokenizer with what is needed to decode them.

        Args:
            codes: (n, h, w), or (n, h, w, G) with more than one group; (n, G) of vectors.
            side: Side of their images in pixels; 0 of vectors.
            channels: Channels of their images; dimensions of their vectors.
            names: A name for each (default: numbers).
        """
        return Codes(
            codes=codes[:, None] if codes.ndim == 1 else codes,
            num_codes=self.network.quantizer.num_codes,
            side=side,
            channels=channels,
            names=names or numbered(len(codes)),
            model=self.model,
        )

"""A tokenizer and compressed files: codes in, images out."""

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mqvae.coding import Compressed, SameSize
from mqvae.core.quantizers import CodebookQuantizer
from mqvae.core.quantizers.gumbel import GumbelQuantizer
from mqvae.data.folder import image_files
from mqvae.errors import MqvaeError
from mqvae.progress import watched
from mqvae.tokenizer.codes import Codes, SizedCodes, numbered
from mqvae.tokenizer.files import FileCodec, png_names, write_pictures
from mqvae.tokenizer.shards import INDEX, shards_of
from mqvae.tokenizer.sizes import Size, together

AT_ONCE = 64  # files that are encoded together, images that are decoded together


def compressed(
    tokenizer: FileCodec, codes: Tensor | SizedCodes, names: tuple[str, ...] = ()
) -> Compressed:
    """Codes as a compressed file has them; arguments as of `Tokenizer.compress`."""
    array = codes.codes if isinstance(codes, SizedCodes) else codes
    groups = tokenizer.network.quantizer.groups
    grid = array.cpu().numpy()
    if grid.ndim == (4 if groups > 1 else 3):
        grid = grid.reshape(*grid.shape[:3], groups)
    if grid.ndim != 4 or grid.shape[3] != groups or grid.dtype.kind not in "iu" or not grid.size:
        shape = "(B, h, w)" if groups == 1 else f"(B, h, w, {groups})"
        raise MqvaeError(
            f"codes to compress are whole numbers {shape}, and some, got {tuple(array.shape)} of "
            f"{array.dtype}."
        )
    if isinstance(codes, SizedCodes):
        runs: list[SameSize] = []
        for size, same in groupby(range(len(codes.sizes)), codes.sizes.__getitem__):
            height, width = (-(-side // tokenizer.stride) for side in size)
            runs.append(SameSize(grid[list(same), :height, :width], size))
    else:
        runs = [SameSize(grid, _whole(tokenizer, grid.shape))]
    return Compressed(
        tuple(runs),
        tokenizer.network.quantizer.num_codes,
        tokenizer.settings.data.channels or 1,
        tokenizer.model,
        names,
    )


def _whole(tokenizer: FileCodec, shape: tuple[int, ...]) -> Size:
    """Size of the images that the decoder makes of codes (n, h, w, G)."""
    if tuple(shape[1:3]) == tokenizer.code_shape[:2]:
        return (tokenizer.settings.data.side or 1,) * 2
    return shape[1] * tokenizer.stride, shape[2] * tokenizer.stride


def codewords_of(tokenizer: FileCodec) -> np.ndarray | None:
    """(books, K, d) codewords, one book for all groups or one for each; None without a codebook."""
    quantizer = tokenizer.network.quantizer
    if isinstance(quantizer, CodebookQuantizer):
        table = quantizer.table()
    elif isinstance(quantizer, GumbelQuantizer):
        table = quantizer.codebook
    else:
        return None  # similar codes have similar numbers as it is
    return table.detach().double().cpu().numpy().reshape(-1, quantizer.num_codes, table.shape[1])


def codes_of(tokenizer: FileCodec, found: Compressed) -> Tensor | SizedCodes:
    """The codes of a compressed file: what `compressed` got."""
    _check(tokenizer, found)
    one = found.runs[0].codes.shape[3] == 1
    arrays = [torch.from_numpy(r.codes[..., 0] if one else r.codes) for r in found.runs]
    (first, *others) = found.runs
    if not others and first.size == _whole(tokenizer, first.codes.shape):
        return arrays[0]
    sizes = tuple(run.size for run in found.runs for _ in run.codes)
    return SizedCodes(together([each for array in arrays for each in array], fill=-1), sizes)


def _check(tokenizer: FileCodec, found: Compressed) -> None:
    if found.model != tokenizer.model:
        raise MqvaeError(
            f"the codes were made with other weights ({found.model[:8]}) than those of "
            f"{tokenizer.folder} ({tokenizer.model[:8]}): decompress them with the run and the "
            "checkpoint that compressed them."
        )
    quantizer = tokenizer.network.quantizer
    of = (found.num_codes, found.runs[0].codes.shape[3], found.channels)
    own = (quantizer.num_codes, quantizer.groups, tokenizer.settings.data.channels)
    if of != own:
        raise MqvaeError(
            "the codes have {} values, {} at a position, for images of {} channels; the tokenizer "
            "has {}, {} and {}: they were not made with it.".format(*of, *own)
        )


def of_images(
    tokenizer: FileCodec, what: str, *, fit: bool = False, accept_changed_data: bool = False
) -> Compressed:
    """Codes of images, or of a file or folder that `mqvae encode` wrote, to be compressed.

    Args:
        tokenizer: What encodes.
        what: An image file, a folder of images, which may have several sizes, shards, a split of
            the run's dataset, or codes.
        fit: Resize, crop and convert images to what the run was trained on.
        accept_changed_data: Take a split as it is, though it has other images than the run had.

    Raises:
        ValueError: if it is none of these, or images or codes do not fit the run.
    """
    path = Path(what)
    if path.suffix == ".npz" and not path.is_dir():
        return _of_codes(tokenizer, [Codes.load(path)])
    if (path / INDEX).is_file():
        return _of_codes(tokenizer, shards_of(path))
    paths: list[Path] = []
    if path.exists() and not fit and path.suffix != ".tar":
        with suppress(FileNotFoundError):  # a folder of shards
            paths = image_files(path)
    if not paths:
        images = tokenizer.find_images(what, fit=fit, accept_changed_data=accept_changed_data)
        return _of_codes(tokenizer, [tokenizer.encode_images(images)])
    parts = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
    found = [
        compressed(tokenizer, tokenizer.encode(p)) for p in watched(parts, len(parts), "encoding")
    ]
    root = path if path.is_dir() else path.parent
    return _joined(found, tuple(each.relative_to(root).as_posix() for each in paths))


def _of_codes(tokenizer: FileCodec, parts: Iterable[Codes]) -> Compressed:
    found: list[Compressed] = []
    names: list[str] = []
    for codes in parts:
        tokenizer.check_codes(codes)
        found.append(compressed(tokenizer, torch.from_numpy(codes.codes.astype(np.int64))))
        names += codes.names
    numbers = numbered(len(names))
    return _joined(found, () if tuple(names) == numbers else tuple(names))


def _joined(parts: list[Compressed], names: tuple[str, ...]) -> Compressed:
    """All of them one after the other; runs of one size become one."""
    every = (run for part in parts for run in part.runs)
    runs = tuple(
        SameSize(np.concatenate([run.codes for run in same]), size)
        for (size, _), same in groupby(every, _of)
    )
    return dataclasses.replace(parts[0], runs=runs, names=names)


def _of(run: SameSize) -> tuple[Size, tuple[int, ...]]:
    return run.size, run.codes.shape[1:]


def to_files(tokenizer: FileCodec, found: Compressed, folder: Path) -> int:
    """Write the images of a compressed file as PNG files; returns how many.

    Raises:
        ValueError: if another tokenizer made the codes; nothing is written then.
    """
    _check(tokenizer, found)
    paths = png_names(found.names or numbered(len(found)))
    parts = [
        SameSize(run.codes[start : start + AT_ONCE], run.size)
        for run in found.runs
        for start in range(0, len(run.codes), AT_ONCE)
    ]
    done = 0
    for part in watched(parts, len(parts), "decoding"):
        one = part.codes.shape[3] == 1
        codes = torch.from_numpy(part.codes[..., 0] if one else part.codes)
        decoded = tokenizer.decode(SizedCodes(codes, (part.size,) * len(codes)))
        done += write_pictures(tokenizer.task.images(decoded), folder, paths[done:])
    return done

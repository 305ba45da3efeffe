"""What only a run's weights can show: its codewords decoded, and the codes of its images.

All else on the page is read from files. Here the last checkpoint of a finished run is loaded, once
in a process: a page that is watched is written again and again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mqvae.errors import MqvaeError
from mqvae.report.further import drawn, worst
from mqvae.report.reading import state_of
from mqvae.report.run import Run
from mqvae.report.strips import Strip, read_strip
from mqvae.runs.results import Counts

if TYPE_CHECKING:
    from torch import Tensor

    from mqvae.tokenizer import Tokenizer

MOST = 1024  # codewords in a picture
PIXELS = 2**24  # decoded for it at most: a network for large images shows fewer codewords
BATCH = 2**20  # pixels decoded at once
BESIDE, BETWEEN = 1, 8  # pixels between two codewords, and between the blocks of groups
FAINT = 70  # of 255: how opaque a codeword is that was never chosen


@dataclass(frozen=True)
class Decoded:
    """What the weights of a run show.

    Attributes:
        words: What the picture of the codewords is, or why there is none.
        codewords: They are decoded, in rows; bytes (H, W, grey or colour, and opacity).
        codes: The run's sample images in the colours of their codes.
        different: How many codes these images have.
        order: The codes of the codewords shown (G, K), in the order of the picture.
        chosen: How often the images measured on chose them (G, K); None where that was not counted.
        places: Of each position of the sample images (N, h, w, G) the codeword in the picture,
            group after group; -1 where it is not shown.
        further: Worst images and samples of the prior, by what they are.
    """

    words: str
    codewords: np.ndarray | None = None
    codes: Strip | None = None
    different: int = 0
    order: np.ndarray | None = None
    chosen: np.ndarray | None = None
    places: np.ndarray | None = None
    further: Mapping[str, Strip] = field(default_factory=dict)


_FOUND: dict[object, Decoded] = {}
"""What was decoded in this process, by the run's folder and the state of its files."""


def decoded(run: Run) -> Decoded:
    """Decode the codebook of a run; says why where that cannot be."""
    if not run.finished:
        return Decoded("decoded when the run has finished.")
    from mqvae.runs import Run as Folder

    if Folder.checkpoint_in(run.path) is None:
        return Decoded("has no checkpoint to decode its codebook with.")
    key = (run.path, state_of(run.path))
    try:
        if key not in _FOUND:
            _FOUND[key] = _decode(run)
    except Exception as error:  # the network is anybody's, and the rest of the page is there
        return Decoded(f"could not be decoded: {error}")
    return _FOUND[key]


def _decode(run: Run) -> Decoded:
    import torch

    from mqvae.core.quantizers import NoQuantizer
    from mqvae.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_run(run.path)
    # Of a damaged checkpoint the one before it is read, and one may have been trained on since.
    if run.summary.get("weights", tokenizer.model) != tokenizer.model:
        raise MqvaeError(
            f"the checkpoint, of step {tokenizer.step:,}, has other weights than those measured."
        )
    if isinstance(tokenizer.network.quantizer, NoQuantizer):
        return Decoded("does not quantize: it has no codebook.")
    strips = [each for each in run.pictures or () if each.kind == "strip"]
    originals = next((each.file for each in strips if each.reference), None)
    strip = read_strip(originals) if originals else None
    with torch.no_grad():
        codes, coloured = _codes(tokenizer, strip) if strip else (None, None)
        different = (
            0 if codes is None else len(np.unique(codes.reshape(-1, codes.shape[-1]), axis=0))
        )
        further = worst(tokenizer) | drawn(tokenizer)
        try:
            found = _codewords(tokenizer, run.counts, run.images)
        except ValueError as error:
            words = f"cannot be shown: {error}"
            return Decoded(words, codes=coloured, different=different, further=further)
    assert found.order is not None
    places = None if codes is None else _places(codes, found.order)
    return replace(found, codes=coloured, different=different, places=places, further=further)


def _places(codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Codes (N, h, w, G) by their place in the picture, -1 where they are not in it."""
    shown = order.shape[1]
    found = np.full(codes.shape, -1, np.int32)
    for group, own in enumerate(order):
        ascending = np.argsort(own)
        place = np.searchsorted(own, codes[..., group], sorter=ascending).clip(max=shown - 1)
        here = ascending[place]
        there = own[here] == codes[..., group]
        found[..., group] = np.where(there, group * shown + here, -1)
    return found


def _codewords(
    tokenizer: Tokenizer, counts: Sequence[Counts], images: str = "test images"
) -> Decoded:
    """Every codeword on the whole of the decoder's map, and of the image the middle.

    Of a codeword's own group that is: the other groups, or stages, have their most used codeword.
    """
    import torch

    quantizer, side = tokenizer.network.quantizer, tokenizer.settings.data.side or 1
    groups, total = quantizer.groups, quantizer.num_codes
    shown = min(total, max(min(MOST, PIXELS // side**2) // groups, 64))
    if known := [group.total for group in counts] == [total] * groups:
        order = [group.first(shown) for group in counts]
    else:
        order = [np.arange(shown)] * groups
    usual = torch.tensor([int(each[0]) for each in order])
    blocks, unchosen = [], 0
    for group, codes in enumerate(order):
        alone = usual.repeat(shown, 1)  # (shown, G)
        alone[:, group] = torch.from_numpy(codes)
        tiles = np.concatenate(
            [_middle(tokenizer, part) for part in alone.split(max(BATCH // side**2, 1))]
        )
        opacity = np.full((*tiles.shape[:3], 1), 255, np.uint8)
        if known:
            never = counts[group].of(codes) == 0
            opacity[never] = FAINT
            unchosen += int(never.sum())
        blocks.append(_in_rows(np.concatenate([tiles, opacity], -1), gap=BESIDE))
    what = "codewords" if total == shown else f"of {total:,} codewords"
    words = f"{shown:,} {what}{' in each group' if groups > 1 else ''}"
    words += ", the most used first, row by row" if known else ", in the order of their numbers"
    if unchosen:
        words += f"; faint: {unchosen:,} that none of the {images} chose"
    if groups > 1:
        words += "; a block for each group, the others at their most used codeword"
    listed = np.stack(order)
    chosen = np.stack([counts[g].of(listed[g]) for g in range(groups)]) if known else None
    picture = _in_rows(np.stack(blocks), gap=BETWEEN)
    return Decoded(f"{words}.", picture, order=listed, chosen=chosen)


def _middle(tokenizer: Tokenizer, codes: Tensor) -> np.ndarray:
    """Codes (N, G) alone in their maps, decoded: what two positions or 16 pixels show, bytes."""
    shape = tokenizer.code_shape
    grid = shape if tokenizer.network.quantizer.groups == 1 else shape[:-1]
    whole = codes.view(len(codes), *[1] * len(grid), -1).expand(-1, *grid, -1)
    images = tokenizer.task.images(
        tokenizer.decode(whole[..., 0] if len(grid) == len(shape) else whole)
    )  # (N, C, H, W)
    stride, side = tokenizer.stride, images.shape[-1]
    size = side if stride == 1 else min(side, max(stride, min(2 * stride, 16)))
    start = (side - size) // 2
    middle = images[:, :, start : start + size, start : start + size]
    return (255 * middle).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _in_rows(tiles: np.ndarray, *, gap: int) -> np.ndarray:
    """Tiles (N, H, W, C) in as many rows as columns, some pixels apart."""
    count = len(tiles)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = np.pad(tiles, ((0, rows * columns - count), (0, gap), (0, gap), (0, 0)))
    _, height, width, channels = tiles.shape
    sheet = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return sheet.reshape(rows * height, columns * width, channels)[:-gap, :-gap]


def _codes(tokenizer: Tokenizer, strip: Strip) -> tuple[np.ndarray, Strip]:
    """The codes of images (N, h, w, G), and the images in the colours of them.

    Colours are the first three principal directions of the codewords chosen: near codewords have
    near colours, whatever their numbers.
    """
    import torch

    tiles = strip.tiles[..., :1] if tokenizer.settings.data.channels == 1 else strip.tiles
    x = torch.tensor(tiles).movedim(-1, 1) / 255  # (N, C, H, W)
    codes = tokenizer.encode_batch(x)  # (N, h, w) or (N, h, w, G)
    chosen = tokenizer.network.quantizer.decode(codes).double().cpu().numpy()  # (N, h, w, D)
    _, height, width, dim = chosen.shape
    flat = chosen.reshape(-1, dim)
    flat = flat - flat.mean(0)
    directions = np.linalg.eigh(flat.T @ flat)[1][:, : -min(dim, 3) - 1 : -1]  # (D, 3)
    directions *= np.where(directions.sum(0) < 0, -1, 1)  # an eigenvector has no sign of its own
    places = flat @ directions
    low, high = np.percentile(places, (2, 98), axis=0)
    shares = np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1)
    colours = np.full((len(flat), 3), 128, np.uint8)
    colours[:, : shares.shape[1]] = 30 + 200 * shares
    maps = colours.reshape(-1, height, width, 3)
    pixel = np.arange(strip.side)
    enlarged = maps[:, pixel * height // strip.side][:, :, pixel * width // strip.side]
    groups = tokenizer.network.quantizer.groups
    return codes.cpu().numpy().reshape(-1, height, width, groups), Strip(enlarged)

"""Entropy coding of codes, by a model of their neighbours."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mqvae.coding.mixture import BITS, Mixture, hashed
from mqvae.optional import require

PLACES = 16  # rows and columns that are told apart, at most
DELAY = 64  # a code is learned from by when there are 1/64 more of them
FEWEST, MOST = 64, 4096  # positions that are coded together
SORTS, SORTS_OF_GROUPS = 9, 11  # of contexts
PRECISION = 24  # bits of a probability in constriction

Coder = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Bits, and how likely each is a one in units of 2^−BITS → the bits; a decoder knows them alone."""


def pack(runs: Sequence[np.ndarray], num_codes: int) -> bytes:
    """Entropy-coded codes in [0, K), (n, h, w, G) of images of each size.

    Raises:
        ExtraMissing: if the package constriction is not installed.
    """
    queue, family = _constriction()
    encoder = queue.RangeEncoder()

    def coder(bits: np.ndarray, said: np.ndarray) -> np.ndarray:
        encoder.encode(bits.astype(np.int32), family, _frequencies(said))
        return bits

    walk([run.astype(np.uint64) for run in runs], num_codes, coder)
    return bytes(encoder.get_compressed().astype("<u4").tobytes())


def unpack(content: bytes, shapes: Sequence[tuple[int, ...]], num_codes: int) -> list[np.ndarray]:
    """What `pack` was given, int64; `shapes` has (n, h, w, G) of every run.

    Raises:
        ExtraMissing: if the package constriction is not installed.
    """
    queue, family = _constriction()
    decoder = queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32))

    def coder(bits: np.ndarray, said: np.ndarray) -> np.ndarray:
        return decoder.decode(family, _frequencies(said)).astype(np.int64)

    runs = [np.zeros(shape, np.uint64) for shape in shapes]
    walk(runs, num_codes, coder)
    return [run.astype(np.int64) for run in runs]


def _constriction() -> tuple[Any, Any]:
    """Its range coders, and its distributions of few symbols."""
    require("constriction")
    from constriction import stream

    return stream.queue, stream.model.Categorical(perfect=False)


def _frequencies(said: np.ndarray) -> np.ndarray:
    """Weights of zero and one that constriction makes exactly these probabilities of, (B, 2).

    It gives each symbol 1 of 2^24 and shares the rest by weight. Whole numbers whose sum is that
    rest are scaled by 1, and exact in float32: no rounding is left that could differ elsewhere.
    """
    ones = said << (PRECISION - BITS)
    return (np.stack([(1 << PRECISION) - ones, ones], 1) - 1).astype(np.float32)


def walk(runs: Sequence[np.ndarray], num_codes: int, coder: Coder) -> None:
    """Take codes, (n, h, w, G) uint64 each, through a coder, bit by bit; a decoder's are filled in.

    Positions of which none is a neighbour of another go together: those with the same
    x + 2 y, of several images.
    """
    levels = (num_codes - 1).bit_length()
    total = sum(run.size for run in runs) * levels
    if not total:
        return
    groups = runs[0].shape[3]
    size = min(max(total.bit_length() - 3, 10), 22)
    mixture = Mixture(SORTS if groups == 1 else SORTS_OF_GROUPS, groups * levels, size)
    seen = 0
    for run in runs:
        start = 0
        while start < len(run):
            _, height, width, _ = run.shape
            at_once = min(max(seen // DELAY, FEWEST), MOST)
            block = run[start : start + max(1, at_once // min(height, -(-width // 2)))]
            _walk_block(block, levels, mixture, coder)
            seen += block[..., 0].size
            start += len(block)


def _walk_block(block: np.ndarray, levels: int, mixture: Mixture, coder: Coder) -> None:
    images, height, width, groups = block.shape
    # Beyond the borders is a value that no code has.
    padded = np.full((images, height + 1, width + 2, groups + 1), 1 << levels, np.uint64)
    for y, x in _together(height, width):
        i, y, x = np.repeat(np.arange(images), len(y)), np.tile(y, images), np.tile(x, images)
        place = [y * PLACES // max(height, PLACES), x * PLACES // max(width, PLACES)]
        for group in range(groups):
            own = padded[..., group + 1]
            neighbours = [own[i, y + dy, x + dx] for dy, dx in ((1, 0), (0, 1), (0, 0), (0, 2))]
            before = padded[i, y + 1, x + 1, group] if groups > 1 else None
            contexts = _contexts(neighbours, before, place, group * 16, levels)
            code = block[i, y, x, group]
            node = np.ones_like(code)  # the bits so far, after a one
            for level in range(levels):
                said = mixture.predict(contexts ^ node, group * levels + level)
                bits = ((code >> np.uint64(levels - 1 - level)) & np.uint64(1)).astype(np.int64)
                bits = coder(bits, said)
                mixture.learn(bits)
                node = (node << np.uint64(1)) | bits.astype(np.uint64)
            code = node ^ np.uint64(1 << levels)
            block[i, y, x, group] = padded[i, y + 1, x + 1, group + 1] = code


def _together(height: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of the positions that are coded at the same time, in turn."""
    rows = np.arange(height)
    for step in range(width + 2 * (height - 1)):
        y = rows[(step - 2 * rows >= 0) & (step - 2 * rows < width)]
        if len(y):  # of a single column every other is empty
            yield y, step - 2 * y


def _contexts(
    neighbours: Sequence[np.ndarray],
    before: np.ndarray | None,
    place: Sequence[np.ndarray],
    kind: int,
    levels: int,
) -> np.ndarray:
    """Hashes of the contexts of B codes, (SORTS, B) or with groups (SORTS_OF_GROUPS, B).

    Neighbours are the codes on the left, above, above on the left and above on the right; before
    them, those of the group before at the same positions, None without groups.
    """

    def first(code: np.ndarray, bits: int) -> np.ndarray:
        return code >> np.uint64(max(levels - bits, 0))

    left, above, _, beyond = neighbours
    sorts = [
        [np.zeros_like(left)],
        [*place],
        [left],
        [above],
        [left, above],
        [first(left, 5), first(above, 5)],
        [first(code, 3) for code in neighbours],
        [first(left, 3), first(above, 3), *place],
        [beyond, first(above, 4)],
    ]
    if before is not None:
        sorts += [[before], [before, first(left, 3), first(above, 3)]]
    return np.stack([hashed(parts, kind + sort) for sort, parts in enumerate(sorts)])


def order_of(codewords: np.ndarray) -> np.ndarray:
    """Numbers for codes, (K,) int64: codewords (K, d) that are similar have the same first bits."""
    centred = codewords - codewords.mean(0)
    turned = centred @ np.linalg.eigh(centred.T @ centred)[1]
    labels = np.empty(len(turned), np.int64)
    waiting = [(np.arange(len(turned)), 0, 1 << (len(turned) - 1).bit_length())]
    while waiting:
        members, start, room = waiting.pop()
        if len(members) == 1:
            labels[members] = start
            continue
        axis = turned[members].var(0).argmax()
        members = members[turned[members, axis].argsort(kind="stable")]
        half = room // 2
        cut = max(len(members) - half, len(members) // 2)
        waiting += [(members[:cut], start, half), (members[cut:], start + half, half)]
    return labels

"""The nearest code, in bounded memory."""

import torch
from torch import Tensor

from mqvae.core.passes import without_autocast
from mqvae.errors import MqvaeError

BLOCK = 64  # codewords whose scores are reduced at once, see `_lowest`
BAND = 2**16  # embeddings that take all codewords before the next do
CODEWORDS = 2**22  # numbers of the codewords at once: 16 MiB of float32
# Scores at once, 4 MiB of float32: what stays in a cache. A GPU wants larger pieces, of 32 MiB.
SCORES = {"cpu": 2**20}
SCORES_ELSEWHERE = 2**23


def nearest(z_e: Tensor, codebook: Tensor, price: Tensor | None = None) -> Tensor:
    """The index of the closest codeword for every embedding (Eq. 2).

    k_i = argmin_j ‖z_i − e_j‖² + price_j = argmin_j ½‖e_j‖² + ½ price_j − z_i·e_j, so that one
    matrix product decides and no N × K array is ever held: embeddings and codewords are taken in
    tiles, and what is held beside the codes is under 64 MiB whatever N, K and D up to 2¹⁶.

    Args:
        z_e: Embeddings, (N, D).
        codebook: Codewords, (K, D).
        price: What a codeword costs beside its squared distance, (K,); None for nothing.

    Returns:
        Codes, (N,) int64. Ties go to the lowest index.
    """
    if z_e.ndim != 2 or codebook.ndim != 2 or z_e.shape[1] != codebook.shape[1]:
        raise MqvaeError(
            f"nearest expects embeddings (N, D) and a codebook (K, D), got {tuple(z_e.shape)} "
            f"and {tuple(codebook.shape)}: reshape them, or build the quantizer with dim=D."
        )
    z_e, codebook = z_e.detach(), codebook.detach()
    if torch.compiler.is_exporting():
        return _at_once(z_e, codebook, price)
    if torch.compiler.is_compiling():
        return _in_tiles_compiled(z_e, codebook, price)
    return _in_tiles(z_e, codebook, price)


def _in_tiles(z_e: Tensor, codebook: Tensor, price: Tensor | None = None) -> Tensor:
    with without_autocast(z_e.device), torch.no_grad():
        # Half precision cannot rank neighbours that float32 tells apart.
        dtype = torch.promote_types(torch.promote_types(z_e.dtype, codebook.dtype), torch.float32)
        codebook = codebook.to(dtype)
        centre = _centre(codebook)
        dim = max(1, codebook.shape[1])
        columns = min(_blocks(len(codebook)), _blocks(min(2**14, CODEWORDS // dim)))
        rows = max(1, SCORES.get(z_e.device.type, SCORES_ELSEWHERE) // max(columns, dim))
        scores = codebook.new_empty(min(rows, len(z_e)), columns)
        codes = torch.empty(len(z_e), dtype=torch.int64, device=z_e.device)
        for band, found in zip(z_e.split(BAND), codes.split(BAND), strict=True):
            best = codebook.new_full((len(band),), torch.inf)
            for first in range(0, len(codebook), columns):
                words = codebook[first : first + columns] - centre
                half_norms = words.square().sum(1) / 2
                if price is not None:
                    half_norms += price[first : first + columns].to(dtype) / 2
                if missing := -len(words) % BLOCK:  # codewords that are never the nearest
                    words = torch.cat([words, words.new_zeros(missing, dim)])
                    half_norms = torch.cat([half_norms, half_norms.new_full((missing,), torch.inf)])
                for start in range(0, len(band), rows):
                    here = slice(start, start + rows)
                    chunk = band[here].to(dtype) - centre
                    tile = scores[: len(chunk), : len(words)]
                    torch.addmm(half_norms, chunk, words.T, alpha=-1, out=tile)
                    lowest, index = _lowest(tile)
                    if first:
                        index = torch.where(lowest < best[here], index + first, found[here])
                    found[here] = index
                    best[here] = torch.minimum(lowest, best[here])
    return codes


# A compiled graph takes the search as one operation: unrolled, its tiles would be compiled anew for
# every size.
_in_tiles_compiled = torch.library.custom_op(
    "mqvae::nearest",
    _in_tiles,
    mutates_args=(),
    schema="(Tensor z_e, Tensor codebook, Tensor? price=None) -> Tensor",
)


@_in_tiles_compiled.register_fake
def _no_search(z_e: Tensor, codebook: Tensor, price: Tensor | None = None) -> Tensor:
    return z_e.new_empty(len(z_e), dtype=torch.int64)


def _at_once(z_e: Tensor, codebook: Tensor, price: Tensor | None = None) -> Tensor:
    """The same in one piece: an exported program knows no loops over sizes of its inputs."""
    dtype = torch.promote_types(torch.promote_types(z_e.dtype, codebook.dtype), torch.float32)
    centre = _centre(codebook.to(dtype))
    words = codebook.to(dtype) - centre
    half_norms = words.square().sum(1) / 2
    if price is not None:
        half_norms = half_norms + price.to(dtype) / 2
    return torch.addmm(half_norms, z_e.to(dtype) - centre, words.T, alpha=-1).argmin(1)


def _centre(codebook: Tensor) -> Tensor:
    """The median of some codewords, (D,).

    Distances do not feel an offset that all share, but the scores' rounding would: this one is
    taken off, which no codeword that drifted far away pulls along.
    """
    few = codebook[:: max(1, len(codebook) // 64)]
    return few.sort(0).values[len(few) // 2]


def _blocks(number: int) -> int:
    """The next multiple of BLOCK."""
    return -(-number // BLOCK) * BLOCK


def _lowest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest of every row, and where it is first: (rows, columns) → (rows,), (rows,).

    An arg-min of a whole row takes as long as the matrix product before it. So the minimum of
    every block, which is vectorized, and an arg-min over blocks and within the best one.
    """
    blocks = scores.unflatten(1, (-1, BLOCK))  # (rows, blocks, BLOCK)
    block = blocks.amin(2).argmin(1)  # (rows,)
    row = torch.arange(len(scores), device=scores.device)
    lowest, index = blocks[row, block].min(1)
    return lowest, block * BLOCK + index

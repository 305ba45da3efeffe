"""The nearest code, in bounded memory."""

import torch
from torch import Tensor

BLOCK = 64  # codewords whose scores are reduced at once, see `_lowest`
COLUMNS = 2**14  # codewords at once
# Scores at once, 4 MiB of float32: what stays in a cache. A GPU wants larger pieces, of 32 MiB.
SCORES = {"cpu": 2**20}
SCORES_ELSEWHERE = 2**23


def nearest(z_e: Tensor, codebook: Tensor) -> Tensor:
    """The index of the closest codeword for every embedding (Eq. 2).

    k_i = argmin_j ‖z_i − e_j‖² = argmin_j ½‖e_j‖² − z_i·e_j, so that one matrix product
    decides and no N × K array is ever held: embeddings and codewords are taken in tiles.

    Args:
        z_e: Embeddings, (N, D).
        codebook: Codewords, (K, D).

    Returns:
        Codes, (N,) int64. Ties go to the lowest index.
    """
    if z_e.ndim != 2 or codebook.ndim != 2 or z_e.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"nearest expects embeddings (N, D) and a codebook (K, D), got {tuple(z_e.shape)} "
            f"and {tuple(codebook.shape)}: reshape them, or build the quantizer with dim=D."
        )
    z_e, codebook = z_e.detach(), codebook.detach()
    with torch.autocast(z_e.device.type, enabled=False), torch.no_grad():
        # Half precision cannot rank neighbours that float32 tells apart.
        dtype = torch.promote_types(torch.promote_types(z_e.dtype, codebook.dtype), torch.float32)
        codebook = codebook.to(dtype)
        # Distances do not feel an offset that all share, but the scores' rounding would: take off
        # the median of some codewords, which one that drifted far away does not pull along.
        few = codebook[:: max(1, len(codebook) // 64)]
        centre = few.sort(0).values[len(few) // 2]  # (D,)
        columns = min(-(-len(codebook) // BLOCK) * BLOCK, COLUMNS)
        rows = max(1, SCORES.get(z_e.device.type, SCORES_ELSEWHERE) // columns)
        scores = codebook.new_empty(min(rows, len(z_e)), columns)
        codes = torch.zeros(len(z_e), dtype=torch.int64, device=z_e.device)
        best: Tensor | None = None
        for first in range(0, len(codebook), columns):
            part = codebook[first : first + columns] - centre
            half_norms = part.square().sum(1) / 2
            if missing := -len(part) % BLOCK:  # codewords that are never the nearest
                part = torch.cat([part, part.new_zeros(missing, part.shape[1])])
                half_norms = torch.cat([half_norms, half_norms.new_full((missing,), torch.inf)])
            values = [
                _lowest(
                    torch.addmm(
                        half_norms,
                        chunk.to(dtype) - centre,
                        part.T,
                        alpha=-1,
                        out=scores[: len(chunk), : len(part)],
                    )
                )
                for chunk in z_e.split(rows)
            ]
            lowest = torch.cat([value for value, _ in values])
            where = torch.cat([index for _, index in values]) + first
            if best is None:
                best, codes = lowest, where
            else:
                codes = torch.where(lowest < best, where, codes)
                best = torch.minimum(lowest, best)
    return codes


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

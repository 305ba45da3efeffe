"""The nearest code, in bounded memory."""

import torch
from torch import Tensor

SCORES_AT_ONCE = 4 * 2**20  # 16 MiB of float32 distances; more does not make it faster


def nearest(z_e: Tensor, codebook: Tensor) -> Tensor:
    """The index of the closest codeword for every embedding (Eq. 2).

    k_i = argmin_j ‖z_i − e_j‖² = argmin_j ½‖e_j‖² − z_i·e_j, so that one matrix product
    decides and no N × K array is ever held: embeddings are taken in chunks, and codewords too
    where a single row of scores would be large.

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
    with torch.autocast(z_e.device.type, enabled=False):
        # Half precision cannot rank neighbours that float32 tells apart.
        dtype = torch.promote_types(torch.promote_types(z_e.dtype, codebook.dtype), torch.float32)
        codebook = codebook.to(dtype)
        # Distances do not feel an offset that all share, but the scores' rounding would: take off
        # the median of some codewords, which one that drifted far away does not pull along.
        few = codebook[:: max(1, len(codebook) // 64)]
        centre = few.sort(0).values[len(few) // 2]  # (D,)
        codebook = codebook - centre
        half_norms = codebook.square().sum(1) / 2  # (K,)
        columns = min(len(codebook), SCORES_AT_ONCE)
        rows = max(1, SCORES_AT_ONCE // columns)
        codes = torch.empty(len(z_e), dtype=torch.int64, device=z_e.device)
        for start in range(0, len(z_e), rows):
            chunk = z_e[start : start + rows].to(dtype) - centre
            scores = torch.addmm(half_norms, chunk, codebook.T, alpha=-1)  # (rows, K)
            codes[start : start + rows] = scores.argmin(1)
    return codes

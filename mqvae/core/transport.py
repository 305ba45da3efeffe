"""Codewords carried along by their embeddings: the indirect term at its natural scale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.distributed import sums_across_processes
from mqvae.core.passes import full, without_autocast
from mqvae.errors import above_zero


@dataclass(frozen=True)
class Transport:
    """How far codewords go when a step of the encoder moves their embeddings by Δ.

        used k:      T_k = mean of Δ over the embeddings of code k
        unused j:    T_j = b + A c_j,    (A, b) the affine map that fits Δ best over all embeddings

    With codes frozen, the codebook loss is quadratic in C with curvature (2/ND) n_k, and a step Δ
    of the embeddings adds −(2/ND) Σ_k Δ to its gradient: T_k is Newton's answer to it, the indirect
    term of Eq. 13 at its natural scale. Nothing of the kind is known of codewords that no embedding
    chose; they follow the drift of all embeddings at where they are, so that an encoder which
    moves, turns or stretches its embeddings as a whole takes all codewords along.

    Args:
        ridge: Pull of A towards 0, in units of the embeddings' mean variance: what the fit does
            in directions in which embeddings hardly differ.

    Raises:
        ValueError: if `ridge` is not above 0.
    """

    ridge: float = 0.1

    def __post_init__(self) -> None:
        above_zero(ridge=self.ridge)

    @torch.no_grad()
    def __call__(self, table: Tensor, rows: Tensor, z_e: Tensor, change: Tensor) -> Tensor:
        """T, (K, d), the same in every process, in float32 at least.

        Args:
            table: Codewords of one codebook, (K, d).
            rows: Codes of this process's embeddings, (N,).
            z_e: The embeddings, (N, d).
            change: Δ, what the step did to them, (N, d).
        """
        with without_autocast(table.device):
            table = full(table.detach())
            return self._moved(table, rows, z_e.to(table.dtype), change.to(table.dtype))

    def _moved(self, table: Tensor, rows: Tensor, z_e: Tensor, change: Tensor) -> Tensor:
        dim = table.shape[1]
        origin = table.mean(0)  # of all processes alike; sums of squares want to be about something
        point = torch.cat([z_e - origin, z_e.new_ones(len(z_e), 1)], 1)  # (N, d + 1)
        counts = table.new_zeros(len(table)).index_add_(0, rows, table.new_ones(len(rows)))
        sums = torch.zeros_like(table).index_add_(0, rows, change)
        own = [counts, sums, point.T @ point, point.T @ change]
        counts, sums, moments, cross = sums_across_processes(own)
        number = moments[dim, dim]
        mean = moments[dim, :dim] / number
        drift = cross[dim] / number  # b at the embeddings' mean
        spread = moments[:dim, :dim] / number - torch.outer(mean, mean)
        # Embeddings that are all alike differ by rounding alone, which nothing is fitted to.
        limits = torch.finfo(table.dtype)
        least = limits.eps**0.5 * moments.diagonal()[:dim].mean() / number + limits.tiny
        spread.diagonal().add_(torch.maximum(self.ridge * spread.diagonal().mean(), least))
        drawn = cross[:dim] / number - torch.outer(mean, drift)
        # The ridge keeps it regular; looking at whether it is would wait for the device.
        fitted, _ = torch.linalg.solve_ex(spread, drawn)
        everywhere = drift + (table - origin - mean) @ fitted
        return torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], everywhere)

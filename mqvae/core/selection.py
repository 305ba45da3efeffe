"""Codewords selected and compared with their embeddings, in bounded memory, gradients included.

What `z_e + sg(z_q − z_e)`, `mean ‖z_e − sg(z_q)‖²` and `mean ‖sg(z_e) − z_q‖²` give by value and by
gradient (Eq. 3, 4, 5), without an array of differences as large as z_e.
"""

import functools
from typing import Any

import torch
from torch import Tensor

# Numbers taken at once: 1 MiB of float32 on a CPU, what stays in a cache; 32 MiB on a GPU.
PIECE = {"cpu": 2**18}
PIECE_ELSEWHERE = 2**23


def select(z_e: Tensor, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(ẑ, L_commit, L_codebook) of embeddings and the codewords they select.

    Args:
        z_e: Embeddings, (N, d).
        table: Codewords, (K, d).
        rows: Their codes, (N,) int64.

    Returns:
        ẑ, (N, d) in the dtype of `z_e`, codewords by value and z_e by gradient; the two losses,
        scalars in float32 or wider. The gradient of the table is a sum by row, which follows
        `torch.use_deterministic_algorithms`.
    """
    z_q, commitment = _StraightThrough.apply(z_e, table.detach(), rows)
    return z_q, commitment, _CodebookLoss.apply(table, z_e.detach(), rows, commitment.detach())


class _StraightThrough(torch.autograd.Function):
    """(ẑ, L_commit); gradients go to z_e alone."""

    @staticmethod
    def forward(z_e: Tensor, table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        wide = functools.reduce(torch.promote_types, [z_e.dtype, table.dtype], torch.float32)
        error = table.new_zeros((), dtype=wide)
        z_q = torch.empty_like(z_e, memory_format=torch.contiguous_format)
        for piece in _pieces(z_e):
            words = table.index_select(0, rows[piece])
            z_q[piece] = words
            error += (words.to(wide) - z_e[piece]).square_().sum()
        return z_q, error / z_e.numel()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(
        ctx: Any, g_q: Tensor | None, g_commitment: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if g_commitment is None:
            return g_q, None, None
        z_e, table, rows = ctx.saved_tensors
        factor = 2 / z_e.numel() * g_commitment
        g_e = torch.empty_like(z_e, memory_format=torch.contiguous_format)
        for piece in _pieces(z_e):
            pulled = factor * (z_e[piece] - table.index_select(0, rows[piece]))
            g_e[piece] = pulled if g_q is None else g_q[piece] + pulled
        return g_e, None, None

    @staticmethod
    def jvp(ctx: Any, t_e: Tensor, *_: None) -> tuple[Tensor, Tensor]:
        z_e, table, rows = ctx.saved_tensors
        return t_e.clone(), 2 * ((z_e - table[rows]) * t_e).mean()


class _CodebookLoss(torch.autograd.Function):
    """L_codebook, whose value is known; gradients go to the table alone."""

    @staticmethod
    def forward(table: Tensor, z_e: Tensor, rows: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        table, z_e, rows = ctx.saved_tensors
        return codebook_gradient(table, z_e, rows, g), None, None, None

    @staticmethod
    def jvp(ctx: Any, t_table: Tensor, *_: None) -> Tensor:
        table, z_e, rows = ctx.saved_tensors
        return 2 * ((table[rows] - z_e) * t_table[rows]).mean()


def codebook_gradient(table: Tensor, z_e: Tensor, rows: Tensor, g: Tensor) -> Tensor:
    """(2/Nd) · g · scatter_k(z_q − z_e), the gradient of g · L_codebook by the table, (K, d).

    It is summed in the type of the scalar g.
    """
    factor = 2 / z_e.numel() * g
    g_table = torch.zeros_like(table, dtype=g.dtype)
    for piece in _pieces(z_e):
        away = table.index_select(0, rows[piece]).to(g.dtype) - z_e[piece]
        g_table.index_add_(0, rows[piece], factor * away)
    return g_table.to(table.dtype)


def _pieces(z: Tensor) -> list[slice]:
    """Cuts (N, d) into rows to be taken at once."""
    at_once = PIECE.get(z.device.type, PIECE_ELSEWHERE)
    rows = max(1, at_once // max(1, z.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(z), rows)]

"""How a decoder's output answers to its input: JᵀJ between a position and its neighbours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mqvae.core.network import VQNetwork
from mqvae.core.passes import full
from mqvae.refine.choices import choices_of

PROBES = 32  # numbers of probes for each of the curvature's rows


@dataclass(frozen=True)
class Curvature:
    """JᵀJ of a decoder between a position and its neighbours, the mean over positions."""

    blocks: Tensor  # (D, D, 3, 3), or (D, D, 1, 1) where positions are no grid; in units of `scale`
    scale: float  # mean of the diagonal


@torch.no_grad()
def curvature_of(network: VQNetwork, shape: Sequence[int], *, at_once: int = 16) -> Curvature:
    """The curvature of a decoder by random probes Jᵀv, the same every time.

    No images are needed: codes are drawn at random, decoded and encoded again. The network, which
    gives images of a shape (C, H, W), is in eval mode; memory holds its graph for `at_once` images.
    """
    choices = choices_of(network.quantizer)
    weight = next(network.parameters())
    source = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        black = torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)
        grid = network.embed(black).shape[1:]  # (..., D)
        total: Tensor = torch.zeros(())
        count = max(2, -(-PROBES * grid[-1] // math.prod(grid[:-1])))
        for first in range(0, count, at_once):
            size = (min(at_once, count - first), *grid[:-1])
            drawn = [torch.randint(len(c.table), size, generator=source) for c in choices.each]
            codes = choices.join(torch.stack(drawn, -1).to(weight.device))
            codes = network.encode(network.decode(codes).clamp(0, 1).to(weight.dtype))
            z_q = full(network.quantizer.decode(codes)).requires_grad_()
            with torch.enable_grad():
                output = network.decoded(z_q)
                probe = torch.randn(output.shape, generator=source).to(output)
                (found,) = torch.autograd.grad((output * probe).sum(), z_q)
            total = total.to(found) + _products(found)
    blocks = total / count
    middle = blocks.shape[-1] // 2
    scale = blocks[:, :, middle, middle].diagonal().mean().clamp(min=torch.finfo(blocks.dtype).tiny)
    return Curvature(blocks / scale, float(scale))


def _products(rows: Tensor) -> Tensor:
    """Σ g_i g_jᵀ over positions i and their neighbours j, (D, D, 3, 3), of (B, h, w, D)."""
    dim = rows.shape[-1]
    if rows.ndim != 4:
        flat = rows.reshape(-1, dim)
        return (flat.T @ flat / (len(flat) // len(rows)))[:, :, None, None]
    padded = pad(rows, (0, 0, 1, 1, 1, 1))
    h, w = rows.shape[1:3]
    blocks = [
        rows.reshape(-1, dim).T @ padded[:, i : i + h, j : j + w].reshape(-1, dim)
        for i in range(3)
        for j in range(3)
    ]
    return torch.stack(blocks, -1).view(dim, dim, 3, 3) / (h * w)

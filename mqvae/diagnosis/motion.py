"""How embeddings and codewords move in a step, and what pulls at the codewords."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.bilevel import Batch, LossWeights
from mqvae.core.hypergradients.rule import codebook_gradient, scatter
from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import VectorQuantizer
from mqvae.diagnosis.subject import quantizer_of
from mqvae.errors import MqvaeError
from mqvae.metrics import evaluating
from mqvae.progress import watched
from mqvae.tasks import Task


@dataclass(frozen=True)
class Motion:
    """What some steps move, mean over them. With groups an embedding is its part of a group."""

    steps: int  # how many
    distance: float  # mean ‖z_e − z_q‖ over embeddings, before the step
    drift: float  # mean ‖Δ_n‖ over embeddings, Δ = z_e(φ') − z_e(φ) of the images stepped on
    # κ = Σ_k n_k ‖mean_k Δ‖² / Σ_n ‖Δ_n‖²: what share of the drift the embeddings of a code have in
    # common, and a codeword could follow. 1 / n_k on average if they have nothing in common, 1 if
    # they all move alike.
    coherence: float
    speed: float  # mean ‖ΔC_k‖ over embeddings, k the code of each
    # Median ‖ΔC_j‖ of codewords that no embedding had chosen; None if every one was.
    speed_of_unused: float | None
    # Cosine of the task's gradient at ẑ, summed by codeword, and the codebook loss's.
    alignment: float


def motion(
    network: VQNetwork,
    task: Task,
    batches: Iterable[tuple[Tensor, Tensor]],
    step: Callable[[Tensor, Tensor], object],
    number: int,
) -> Motion:
    """Take steps of a rule, and see what moves. Embeddings are compared in eval mode.

    The steps train the network: hand over a copy of one that is to stay. There must be `number`
    batches of images and labels or more.
    """
    quantizer = quantizer_of(network)
    if number < 1:
        raise MqvaeError(f"motion takes 1 step or more, got {number}.")
    sums = torch.zeros(5, dtype=torch.float64)
    still: list[float] = []
    taken = zip(range(number), batches, strict=False)
    for _, (x, y) in watched(taken, number, "taking steps of a copy"):
        z_e, codes, table = _seen(network, quantizer, x)
        alignment = _alignment(network, task, x, y)
        step(x, y)
        z_ahead, _, ahead = _seen(network, quantizer, x)
        rows = quantizer.rows(codes).flatten()
        parts = z_e.view(len(rows), -1)  # (N·G, D/G)
        delta = z_ahead.view_as(parts) - parts
        of_codewords = (ahead - table).norm(dim=1)  # (rows,)
        found = [
            (parts - table[rows]).norm(dim=1).mean(),
            delta.norm(dim=1).mean(),
            coherence(delta, rows, len(table)),
            of_codewords[rows].mean(),
            alignment,
        ]
        sums += torch.stack([f.double().cpu() for f in found])
        counts = rows.bincount(minlength=len(table))
        if (counts == 0).any():
            still.append(of_codewords[counts == 0].median().item())
    distance, drift, kappa, speed, cosine = (sums / number).tolist()
    unused = sum(still) / len(still) if still else None
    return Motion(number, distance, drift, kappa, speed, unused, cosine)


@torch.no_grad()
def coherence(delta: Tensor, rows: Tensor, number: int) -> Tensor:
    """κ = Σ_k n_k ‖mean_k Δ‖² / Σ_n ‖Δ_n‖² of Δ, (N, d), and k, (N,); 0 where nothing moves."""
    sums = delta.new_zeros(number, delta.shape[1]).index_add(0, rows, delta)
    counts = rows.bincount(minlength=number).clamp(min=1)
    common = (sums.square().sum(1) / counts).sum()
    return common / delta.square().sum().clamp(min=torch.finfo(delta.dtype).tiny)


@torch.no_grad()
def _seen(
    network: VQNetwork, quantizer: VectorQuantizer, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, their codes, and the table, apart from what trains on."""
    with evaluating(network):
        z_e = network.embed(x)
    table = quantizer.table().detach().clone()
    return z_e.to(table.dtype), quantizer.nearest_codes(z_e, table), table


def _alignment(network: VQNetwork, task: Task, x: Tensor, y: Tensor) -> Tensor:
    """cos(scatter_k ∂L_task/∂ẑ, g_C) on one batch, a scalar."""
    with evaluating(network, task), torch.no_grad():
        batch = Batch(network, task, LossWeights(0.0, 1.0), x, task.target(x, y))
        z_e = batch.embed()
        quantized, of_task = batch.task_gradient(z_e)
        of_task = scatter(batch, quantized.codes, of_task)
        with torch.enable_grad():
            of_codebook = codebook_gradient(batch, z_e, quantized.codes)
    return torch.cosine_similarity(of_task.flatten(), of_codebook.flatten(), 0)

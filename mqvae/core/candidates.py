"""Codes that an embedding may get instead of its nearest one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.gumbel import GumbelQuantizer
from mqvae.core.passes import full
from mqvae.core.quantizer import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from mqvae.errors import MqvaeError

SCORES = 2**22  # distances at once, 16 MiB of float32


@dataclass(frozen=True)
class Candidates:
    """M candidates for each of S choices that make up the code of an embedding.

    A choice is the code of a group; the codes of all residual stages together; or the level of one
    dimension, where there is no codebook. z_q is the chosen vectors side by side.

    Attributes:
        vectors: (N, S, M, D/S).
        codes: What a candidate stands for, (N, S, M, T) int64: T residual stages, else 1.
        costs: Squared distance, and what the quantizer adds to it for rare codes, (N, S, M).
        joined: Chosen codes, (N, S, T), as the quantizer writes them, (N,) or (N, G).
    """

    vectors: Tensor
    codes: Tensor
    costs: Tensor
    joined: Callable[[Tensor], Tensor]

    def mixed(self, weights: Tensor) -> Tensor:
        """z_q, (N, D), with each choice a mixture of its candidates by weights (N, S, M)."""
        return torch.einsum("nsm,nsmd->nsd", weights.to(self.vectors.dtype), self.vectors).flatten(
            1
        )

    def chosen(self, index: Tensor) -> Tensor:
        """Codes of candidates (N, S), as the quantizer writes them."""
        index = index[:, :, None, None].expand(-1, -1, -1, self.codes.shape[-1])
        return self.joined(self.codes.gather(2, index)[:, :, 0])


@torch.no_grad()
def candidates_of(quantizer: Quantizer, z_e: Tensor, count: int) -> Candidates:
    """The candidates of lowest cost.

    Args:
        quantizer: Whose codes they are.
        z_e: Placed embeddings, (N, D).
        count: Candidates of each choice; fewer where there are no more.

    Raises:
        MqvaeError: if the quantizer is of a kind that has no candidates.
    """
    z_e = full(z_e)
    if isinstance(quantizer, VectorQuantizer):
        return _of_groups(quantizer, z_e, count)
    if isinstance(quantizer, ResidualQuantizer):
        return _of_stages(quantizer, z_e, count)
    if isinstance(quantizer, GumbelQuantizer):
        logits = [part.topk(min(count, quantizer.num_codes)) for part in quantizer._logits(z_e)]
        values, codes = (torch.cat(each)[:, None] for each in zip(*logits, strict=True))
        vectors = full(quantizer.codebook)[codes]
        return Candidates(vectors, codes[..., None], -values, lambda chosen: chosen[:, 0, 0])
    if isinstance(quantizer, FiniteScalarQuantizer | LookupFreeQuantizer):
        return _of_levels(quantizer, z_e, count)
    raise MqvaeError(
        f"the codes of a {type(quantizer).__name__} cannot be refined: expected a quantizer with a "
        "codebook, with levels or with bits. Leave out the refinement."
    )


def bits_of(quantizer: Quantizer) -> Tensor | None:
    """What each code costs in bits, (G, K); None where the quantizer does not know."""
    if isinstance(quantizer, ResidualQuantizer):
        found = [bits_of(stage) for stage in quantizer._stages()]
        known = [bits for bits in found if bits is not None]
        return torch.cat(known) if len(known) == len(found) else None
    if isinstance(quantizer, VectorQuantizer) and quantizer.prices is not None:
        return quantizer.prices.bits().expand(quantizer.groups, -1)
    return None


def _of_groups(quantizer: VectorQuantizer, z_e: Tensor, count: int) -> Candidates:
    table = full(quantizer.table())
    prices = quantizer.prices
    price = table.new_zeros(len(table)) if prices is None else prices.price().flatten()
    groups = quantizer.groups
    books = 1 if quantizer.shared_codebook else groups
    tables = list(table.chunk(books)) * (groups // books)
    found = [
        _lowest(part, book, cost, count)
        for part, book, cost in zip(
            z_e.unflatten(1, (groups, -1)).unbind(1),
            tables,
            list(price.chunk(books)) * (groups // books),
            strict=True,
        )
    ]
    costs, codes = (torch.stack(each, 1) for each in zip(*found, strict=True))  # (N, G, M)
    vectors = torch.stack([t[codes[:, g]] for g, t in enumerate(tables)], 1)
    one = groups == 1
    return Candidates(
        vectors, codes[..., None], costs, lambda chosen: chosen[:, 0, 0] if one else chosen[..., 0]
    )


def _of_stages(quantizer: ResidualQuantizer, z_e: Tensor, count: int) -> Candidates:
    """Beam search: the best codes of all stages so far, each with the best of the next stage."""
    n, dim = z_e.shape
    vectors, paid = z_e.new_zeros(n, 1, dim), z_e.new_zeros(n, 1)
    codes = torch.empty(n, 1, 0, dtype=torch.int64, device=z_e.device)
    costs = paid
    for stage in quantizer._stages():
        table = full(stage.table())
        price = table.new_zeros(len(table)) if stage.prices is None else stage.prices.price()[0]
        left = (z_e[:, None] - vectors).flatten(0, 1)  # (N·M, D)
        further, chosen = _lowest(left, table, price, count)
        width = further.shape[1]
        every = (further.view(n, -1, width) + paid[..., None]).flatten(1)  # (N, M·width)
        costs, index = every.topk(min(count, every.shape[1]), largest=False)
        before, new = index // width, chosen.view(n, -1).gather(1, index)
        paid = paid.gather(1, before) + price[new]
        vectors = vectors.gather(1, before[..., None].expand(-1, -1, dim)) + table[new]
        codes = codes.gather(1, before[..., None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat([codes, new[..., None]], -1)
    one = quantizer.groups == 1
    return Candidates(
        vectors[:, None],
        codes[:, None],
        costs[:, None],
        lambda chosen: chosen[:, 0, 0] if one else chosen[:, 0],
    )


def _of_levels(
    quantizer: FiniteScalarQuantizer | LookupFreeQuantizer, z_e: Tensor, count: int
) -> Candidates:
    """Each dimension chooses by itself; a code is a number whose digits are the levels."""
    if isinstance(quantizer, LookupFreeQuantizer):
        corner = quantizer.corner.to(z_e.dtype)
        values, levels = torch.stack([-corner, corner], 1), [2] * quantizer.dim  # (D, L)
    else:
        levels = quantizer.levels.tolist()
        digits = torch.arange(max(levels), device=z_e.device)
        values = (digits - quantizer.levels[:, None] // 2) / quantizer.middle[:, None]
        values = values.to(z_e.dtype)
    away = (z_e[..., None] - values).square()  # (N, D, L)
    there = torch.arange(values.shape[1], device=z_e.device) < torch.tensor(
        levels, device=z_e.device
    ).unsqueeze(1)
    costs, codes = away.masked_fill(~there, torch.inf).topk(min(count, *levels), largest=False)
    vectors = values.expand(len(z_e), -1, -1).gather(2, codes)[..., None]
    places = quantizer.places
    return Candidates(
        vectors, codes[..., None], costs, lambda chosen: (chosen[..., 0] * places).sum(1)
    )


def _lowest(z_e: Tensor, table: Tensor, price: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The lowest ‖z − e_k‖² + price_k of embeddings (N, d), and which k: (N, M) each."""
    count = min(count, len(table))
    offsets = table.square().sum(1) + price
    costs, codes = [], []
    for part in z_e.split(max(1, SCORES // len(table))):
        near = torch.addmm(offsets, part, table.T, alpha=-2).topk(count, largest=False).indices
        # Anew, as the sum above loses digits where codewords are far from zero.
        costs.append((part[:, None] - table[near]).square().sum(-1) + price[near])
        codes.append(near)
    return torch.cat(costs), torch.cat(codes)

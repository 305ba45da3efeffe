"""What the code of an embedding is made of, each part with its vectors and bits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.passes import full
from mqvae.core.quantizers import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from mqvae.core.quantizers.gumbel import GumbelQuantizer
from mqvae.errors import MqvaeError


@dataclass(frozen=True)
class Choice:
    """One of the choices that make up a code: a group, a residual stage, or a dimension's level."""

    table: Tensor  # a vector for every option, (K, d)
    price: Tensor  # what the quantizer adds to the squared distance of every option, (K,)
    start: int  # first of the d dimensions of z_q that they are added to
    # What every option costs, (K,); None where the quantizer does not know.
    bits: Tensor | None = None

    @property
    def dims(self) -> slice:
        return slice(self.start, self.start + self.table.shape[1])


@dataclass(frozen=True)
class Choices:
    """All choices, and codes as options of each of them."""

    each: Sequence[Choice]  # the S choices; z_q is the sum of what they select
    # Codes as the quantizer writes them, (...) or (..., G), to options, (..., S).
    split: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]  # options back to codes
    by_distance: bool = True  # codes are chosen by the distance of embeddings to the vectors


@torch.no_grad()
def choices_of(quantizer: Quantizer) -> Choices:
    """The choices of a quantizer, as its codebook is now; an error if its kind has none."""
    if isinstance(quantizer, FiniteScalarQuantizer | LookupFreeQuantizer):
        return _of_levels(quantizer)
    if isinstance(quantizer, VectorQuantizer):
        books = 1 if quantizer.shared_codebook else quantizer.groups
        tables = list(quantizer.table().chunk(books)) * (quantizer.groups // books)
        width = quantizer.dim // quantizer.groups
        each = [_of_book(quantizer, t, g % books, g * width) for g, t in enumerate(tables)]
    elif isinstance(quantizer, ResidualQuantizer):
        stages = [stage for stage in quantizer.stages if isinstance(stage, VectorQuantizer)]
        each = [_of_book(stage, stage.table(), 0, 0) for stage in stages]
    elif isinstance(quantizer, GumbelQuantizer):
        table = full(quantizer.codebook.detach())
        each = [Choice(table, table.new_zeros(len(table)), 0)]
    else:
        raise MqvaeError(
            f"the codes of {type(quantizer).__name__} cannot be refined: expected a quantizer with "
            "a codebook, with levels or with bits. Leave out the refinement."
        )
    by_distance = not isinstance(quantizer, GumbelQuantizer)
    if quantizer.groups > 1:
        return Choices(each, lambda codes: codes, lambda options: options, by_distance)
    return Choices(
        each, lambda codes: codes[..., None], lambda options: options[..., 0], by_distance
    )


def _of_book(quantizer: VectorQuantizer, table: Tensor, book: int, start: int) -> Choice:
    table, prices = full(table.detach()), quantizer.prices
    if prices is None:
        return Choice(table, table.new_zeros(len(table)), start)
    return Choice(table, prices.price()[book], start, prices.bits()[book])


def _of_levels(quantizer: FiniteScalarQuantizer | LookupFreeQuantizer) -> Choices:
    """Each dimension chooses by itself; a code is a number whose digits are the levels."""
    places = quantizer.places
    if isinstance(quantizer, LookupFreeQuantizer):
        numbers = torch.full_like(places, 2)
        values = [torch.stack([-corner, corner]) for corner in quantizer.corner.unbind()]
    else:
        numbers = quantizer.levels
        values = [
            (torch.arange(int(number), device=places.device) - number // 2) / middle
            for number, middle in zip(numbers, quantizer.middle, strict=True)
        ]
    return Choices(
        [Choice(full(value)[:, None], full(value) * 0, dim) for dim, value in enumerate(values)],
        lambda codes: codes[..., None] // places % numbers,
        lambda options: (options * places).sum(-1),
    )

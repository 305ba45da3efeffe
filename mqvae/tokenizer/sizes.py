"""Images of several sizes in one tensor."""

from collections.abc import Iterable, Sequence

from torch import Tensor

Size = tuple[int, int]
"""Height and width of an image."""


def by_size(sizes: Sequence[Size]) -> Iterable[list[int]]:
    """The indices of each size."""
    found: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        found.setdefault(size, []).append(index)
    return found.values()


def cut(output: Tensor, size: Size) -> Tensor:
    """Images (B, C, H, W) without what is beyond a size; anything else as it is."""
    height, width = size
    return output[:, :, :height, :width] if output.ndim == 4 else output


def together(parts: Sequence[Tensor], *, fill: int) -> Tensor:
    """Tensors of several sizes as one, each at the start of its row."""
    largest = [max(sides) for sides in zip(*[part.shape for part in parts], strict=True)]
    result = parts[0].new_full((len(parts), *largest), fill)
    for row, part in zip(result, parts, strict=True):
        row[tuple(slice(side) for side in part.shape)] = part
    return result

"""Images held out of the training set."""

import torch

from mqvae.data.images import Images, Part
from mqvae.data.order import order_of
from mqvae.errors import MqvaeError

MOST = 1000


def usual_count(images: Images) -> int:
    """How many images to hold out where nobody said: a tenth, and 1,000 at most."""
    return min(MOST, len(images) // 10)


def hold_out(
    images: Images, count: int, *, seed: int, limit: int | None = None
) -> tuple[Images, Images]:
    """What is left of a training set, in its order, and `count` images drawn from it by the seed.

    Both are parts of the same images, by their indices. Those held out are the first of one order,
    those that a limit leaves are the next: with N held out and a limit of M, both together are what
    a limit of N + M has with nothing held out.

    Args:
        images: The training set.
        count: How many are held out.
        seed: Of the order.
        limit: How many of the others are left; None for all.

    Raises:
        ValueError: if nothing would be left, or fewer than the limit.
    """
    number = len(images)
    if not 0 <= count < number:
        raise MqvaeError(
            f"validation is out of range: expected 0 to {number - 1} of the {number} "
            f"training images of {images.name}, got {count} (--data.validation N)"
        )
    if limit is not None and limit > number - count:
        raise MqvaeError(
            f"data.limit is {limit}, but {images.name} has {number:,} training images, {count:,} "
            f"of them for validation: expected {number - count} at most."
        )
    if count == 0 and limit is None:
        return images, Part(images, torch.arange(0), split="validation")
    order = order_of(number, f"validation,{seed}")
    end = number if limit is None else count + limit
    held_out, left = order[:count].sort().values, order[count:end].sort().values
    return Part(images, left), Part(images, held_out, split="validation")

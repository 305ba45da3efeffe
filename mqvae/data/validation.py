"""Images held out of the training set."""

import torch

from mqvae.data.images import Images, Part
from mqvae.data.order import order_of

MOST = 1000


def usual_count(images: Images) -> int:
    """How many images to hold out where nobody said: a tenth, and 1,000 at most."""
    return min(MOST, len(images) // 10)


def hold_out(images: Images, count: int, *, seed: int) -> tuple[Images, Images]:
    """What is left of a training set, in its order, and `count` images drawn from it by the seed.

    Both are parts of the same images, by their indices.

    Raises:
        ValueError: if nothing would be left.
    """
    if count == 0:
        return images, Part(images, torch.arange(0), split="validation")
    if not 0 < count < len(images):
        raise ValueError(
            f"validation is out of range: expected 0 to {len(images) - 1} of the {len(images)} "
            f"training images of {images.name}, got {count} (--data.validation N)"
        )
    drawn = torch.zeros(len(images), dtype=torch.bool)
    drawn[order_of(len(images), f"validation,{seed}")[:count]] = True
    left = Part(images, (~drawn).nonzero().flatten())
    return left, Part(images, drawn.nonzero().flatten(), split="validation")

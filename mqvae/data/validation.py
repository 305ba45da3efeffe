"""Images held out of the training set."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from mqvae.data.images import Images, Part
from mqvae.data.order import order_of
from mqvae.errors import MqvaeError

MOST = 1000
_ALL = 2**64  # above all hashes


@dataclass(frozen=True)
class Bounds:
    """What decides by the hash of an image's name whether it is held out; kept with a run.

    Hashes are of name and seed. An image that is added or taken away moves no other across them.

    Attributes:
        validation: Images of lower hashes are for validation.
        limit: Images of this hash and above are left out; None for none.
    """

    validation: int
    limit: int | None = None


def usual_count(images: Images) -> int:
    """How many images to hold out where nobody said: a tenth, and 1,000 at most."""
    return min(MOST, len(images) // 10)


def bounds_of(images: Images, count: int, *, seed: int, limit: int | None = None) -> Bounds | None:
    """The bounds that hold out `count` of a training set's images; None of images without names.

    Fewer are held out, or more if there would be none, where many have one key, as samples of the
    same key in many shards.

    Args:
        images: The training set.
        count: How many to hold out.
        seed: Of the hashes.
        limit: How many of the others to leave; None for all.

    Raises:
        ValueError: if nothing would be left, or fewer than the limit.
    """
    _check(images, count, limit)
    hashes = _hashes(images, seed)
    if hashes is None:
        return None
    ordered = np.sort(hashes)
    bound = int(ordered[count])
    if count and bound == ordered[0]:  # the first `count` have one key
        above = ordered[ordered > bound]
        if not len(above):
            raise MqvaeError(
                f"no images of {images.name} can be held out for validation, as all have one key: "
                "give samples keys of their own, or leave validation out (--data.validation 0)"
            )
        bound = int(above[0])
    bound *= count > 0
    if limit is None:
        return Bounds(bound)
    end = int(np.searchsorted(ordered, np.uint64(bound))) + limit
    return Bounds(bound, int(ordered[end]) if end < len(ordered) else None)


def hold_out(
    images: Images, count: int, *, seed: int, limit: int | None = None, bounds: Bounds | None = None
) -> tuple[Images, Images]:
    """What is left of a training set, in its order, and `count` images drawn from it by the seed.

    Both are parts of the same images, by their indices. Those held out are the first of one order,
    those that a limit leaves are the next: with N held out and a limit of M, both together are what
    a limit of N + M has with nothing held out. The order is that of hashes of the images' names, or
    of chance where they have none; either follows from the seed.

    Args:
        images: The training set.
        count: How many are held out.
        seed: Of the order.
        limit: How many of the others are left; None for all.
        bounds: What decides in the place of `count` and `limit`, where images have names.

    Raises:
        ValueError: if nothing would be left, or fewer than the limit.
    """
    hashes = _hashes(images, seed)
    if hashes is not None:
        bounds = bounds or bounds_of(images, count, seed=seed, limit=limit)
        assert bounds is not None
        return _by_hash(images, hashes, bounds)
    _check(images, count, limit)
    number = len(images)
    if count == 0 and limit is None:
        return images, Part(images, torch.arange(0), split="validation")
    order = order_of(number, f"validation,{seed}")
    end = number if limit is None else count + limit
    held_out, left = order[:count].sort().values, order[count:end].sort().values
    return Part(images, left), Part(images, held_out, split="validation")


def draw(images: Images, count: int, *, seed: int, bound: int | None = None) -> tuple[Images, int]:
    """Images of a validation split, `count` of them or those below a bound; and the bound.

    Args:
        images: The split, of images with names.
        count: How many; all of them for their number.
        seed: Of the hashes.
        bound: What decides in the place of `count`.

    Raises:
        ValueError: if there are fewer.
    """
    if count > len(images):
        raise MqvaeError(
            f"validation is out of range: expected 0 to {len(images):,} of the validation images "
            f"of {images.name}, got {count} (--data.validation N)"
        )
    hashes = _hashes(images, seed)
    assert hashes is not None
    if bound is None:
        bound = _ALL if count == len(images) else int(np.sort(hashes)[count])
    chosen = _below(hashes, bound).nonzero()[0]
    return Part(images, torch.from_numpy(chosen), split="validation"), bound


def _below(hashes: np.ndarray, bound: int) -> np.ndarray:
    below: np.ndarray = hashes < np.uint64(bound) if bound < _ALL else np.ones(len(hashes), bool)
    return below


def _by_hash(images: Images, hashes: np.ndarray, bounds: Bounds) -> tuple[Images, Images]:
    held_out = _below(hashes, bounds.validation)
    left = ~held_out
    if bounds.limit is not None:
        left &= _below(hashes, bounds.limit)
    if not left.any():
        raise MqvaeError(
            f"none of the {len(images):,} training images of {images.name} is left to train on, as "
            f"{int(held_out.sum()):,} are for validation: add images"
        )
    validation = Part(images, torch.from_numpy(held_out.nonzero()[0]), split="validation")
    if left.all():
        return images, validation
    return Part(images, torch.from_numpy(left.nonzero()[0])), validation


def _check(images: Images, count: int, limit: int | None) -> None:
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


def _hashes(images: Images, seed: int) -> np.ndarray | None:
    """Of name and seed, (N,) uint64; None of images without names."""
    if images.files is None:
        return None
    salt = hashlib.blake2b(f"validation,{seed}".encode(), digest_size=8).digest()
    return _mixed(images.files.split_hashes ^ np.uint64(int.from_bytes(salt, "big")))


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's last step: each bit of a result depends on all bits of its value.

    The training images' own hashes are those above a bound; mixed, they are spread over all.

    Source:
        Steele, Lea and Flood (2014), Fast Splittable Pseudorandom Number Generators.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed

"""Orders that follow from a key alone."""

import hashlib

import torch
from torch import Tensor


def order_of(number: int, key: str) -> Tensor:
    """A permutation of 0 … number − 1, (number,) int64, the same for the same key everywhere.

    PyTorch's global random state is neither read nor changed.

    Args:
        number: How many there are.
        key: What it is the order of. Hashed, because seed + epoch would give run 1's second epoch
            to run 2 as its first.
    """
    return torch.randperm(number, generator=_generator(key), device="cpu")


def draws_of(shape: tuple[int, ...], key: str) -> Tensor:
    """Numbers of 0 to 1, float32, the same for the same key everywhere."""
    return torch.rand(shape, generator=_generator(key), device="cpu")


def _generator(key: str) -> torch.Generator:
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "big"))

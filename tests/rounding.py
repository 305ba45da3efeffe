"""Products and convolutions round by shape, as they do from one processor to the next.

A matrix product of five rows need not equal the first five rows of a product of fifty: which kernel
computes it, and in which order it sums, follows from shapes, threads and processor. A test that
takes the two for equal passes on the machine where they happen to be. Within `Rounding`, results of
other shapes differ by one unit in the last place, so that such a test fails on every machine:

    python -m pytest --rounding tests/metrics/test_diagnostics.py
"""

import zlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SUMS = {
    f"aten::{name}"
    for name in (
        *("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"),
        *("convolution", "convolution_backward"),
    )
}
WIDE = (torch.float32, torch.float64)  # a unit of half precision is more than any test allows


class Rounding(TorchDispatchMode):
    """Inside, the last bit of what `SUMS` give depends on the shapes that they get."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in SUMS:
            shapes = str([tuple(a.shape) for a in args if torch.is_tensor(a)])
            units = zlib.crc32(shapes.encode()) % 3 - 1
            for tensor in result if isinstance(result, tuple) else (result,):
                if torch.is_tensor(tensor) and tensor.dtype in WIDE:
                    tensor.mul_(1 + units * torch.finfo(tensor.dtype).eps)
        return result

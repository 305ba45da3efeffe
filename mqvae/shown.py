"""How what is returned looks when it is printed: what it is, not all its numbers."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


class Shown:
    """A dataclass whose tensors are shown by shape; of a scalar its number, of codes their use."""

    def __repr__(self) -> str:
        shown: Any = self
        values = {each.name: getattr(self, each.name) for each in fields(shown) if each.repr}
        found = {name: _text(value) for name, value in values.items() if value is not None}
        if "codes" in found:
            found["codes"] += _use(values["codes"])
        return f"{type(self).__name__}({', '.join(f'{name}={found[name]}' for name in found)})"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, Tensor):
        return repr(value)
    try:
        if value.ndim == 0:
            return f"{value.item():.4g}"
    except RuntimeError:  # it has no number yet: on "meta", or inside a transform of functions
        pass
    where = "" if value.device.type == "cpu" else f" {value.device}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{where}"


def _use(codes: Tensor) -> str:
    """How many different codes there are, and their perplexity; groups are not told apart."""
    try:
        chosen = codes.detach()
        _, counts = chosen[chosen >= 0].unique(return_counts=True)
        perplexity = torch.special.entr(counts.double() / counts.sum().clamp(min=1)).sum().exp()
        return f", {len(counts)} in use, perplexity {perplexity:.1f}"
    except RuntimeError:
        return ""

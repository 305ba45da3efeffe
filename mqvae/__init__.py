"""A quantizer layer, update rules, and a program for networks with a codebook."""

from typing import Any

import lazy_loader

MODULES = frozenset(
    (
        *("coding", "config", "core", "data", "diagnosis", "metrics", "networks", "prior"),
        *("report", "runs", "tasks", "tokenizer", "training", "weights"),
    )
)
"""Modules that `import mqvae` alone makes reachable, as in mqvae.training.begin."""

# Late, so that `mqvae --help` does not wait for torch; the names are in __init__.pyi.
_lazily, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in MODULES]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # of a checkout git is asked, and only when somebody wants to know
        from mqvae.provenance import code

        return code().version
    return _lazily(name)

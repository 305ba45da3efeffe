"""Vector-quantized networks whose codebook is learned by hypergradient."""

import lazy_loader

__version__ = "0.1.0"

MODULES = frozenset(
    (
        *("core", "data", "diagnosis", "metrics", "networks", "prior", "report", "runs"),
        *("settings", "tasks", "tokenizer", "trainer", "weights"),
    )
)
"""Modules that `import mqvae` alone makes reachable, as in mqvae.trainer.begin."""

# Late, so that `mqvae --help` does not wait for torch; the names are in __init__.pyi.
__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [name for name in _names if name not in MODULES]

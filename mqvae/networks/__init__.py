"""Architectures, one per file."""

import lazy_loader  # type: ignore[import-untyped]

# Which pages write without importing them.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["architecture"])

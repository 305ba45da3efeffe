"""Vector-quantized networks whose codebook is learned by hypergradient."""

import lazy_loader

__version__ = "0.1.0"

# Late, so that `mqvae --help` does not wait for torch; the names are in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The folders that runs leave behind."""

import lazy_loader

# Late, so that `mqvae.runs.results` is read without torch; the names are in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

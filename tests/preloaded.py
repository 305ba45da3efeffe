"""What the two processes of tests/pairs.py import together, before they are two."""

import sys
from importlib import import_module

sys.modules["torchmetrics"] = None  # Lightning imports it for its version, and transformers with it
for name in ("lightning_fabric", "torch._dynamo", "mqvae.cli.train", "mqvae.training"):
    import_module(name)
del sys.modules["torchmetrics"]

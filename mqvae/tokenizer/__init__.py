"""A trained run as an object: images to codes and back, shared and exported."""

import lazy_loader  # type: ignore[import-untyped]

from mqvae.tokenizer.codec import BATCH_SIZE as BATCH_SIZE
from mqvae.tokenizer.codes import Codes as Codes
from mqvae.tokenizer.codes import SizedCodes as SizedCodes
from mqvae.tokenizer.tokenizer import Tokenizer as Tokenizer

# Which pages write without importing it.
__getattr__, _, _ = lazy_loader.attach(__name__, ["export"])

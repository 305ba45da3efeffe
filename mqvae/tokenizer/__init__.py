"""A trained run as an object: images to codes and back, shared and exported."""

from mqvae.tokenizer.codes import Codes, SizedCodes
from mqvae.tokenizer.tokenizer import BATCH_SIZE, Tokenizer

__all__ = ["BATCH_SIZE", "Codes", "SizedCodes", "Tokenizer"]

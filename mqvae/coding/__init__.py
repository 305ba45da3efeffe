"""Codes in few bytes: an integer model of which codes come next, and the file they are kept in."""

from mqvae.coding.file import Compressed, SameSize

__all__ = ["Compressed", "SameSize"]

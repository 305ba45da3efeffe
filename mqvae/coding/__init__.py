"""Codes in few bytes: an integer model of which codes come next, and the file they are kept in."""

from mqvae.coding.file import Compressed as Compressed
from mqvae.coding.file import SameSize as SameSize

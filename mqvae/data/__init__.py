"""A name, a folder or shards -> batches."""

from mqvae.data.batches import Batches, fitting, in_order, these
from mqvae.data.files import Reading
from mqvae.data.folder import image_files, load_all, load_files
from mqvae.data.images import Images, InMemory, Part, first
from mqvae.data.listing import EXTENSIONS
from mqvae.data.named import DATASETS, load
from mqvae.data.places import DataNotFound, cache_folder
from mqvae.data.stored import Stored
from mqvae.data.validation import hold_out, usual_count

__all__ = [
    "DATASETS",
    "EXTENSIONS",
    "Batches",
    "DataNotFound",
    "Images",
    "InMemory",
    "Part",
    "Reading",
    "Stored",
    "cache_folder",
    "first",
    "fitting",
    "hold_out",
    "image_files",
    "in_order",
    "load",
    "load_all",
    "load_files",
    "these",
    "usual_count",
]

"""A name or a folder -> batches."""

from mqvae.data.batches import Batches, in_order
from mqvae.data.folder import EXTENSIONS, image_files, load_files
from mqvae.data.images import Images
from mqvae.data.named import DATASETS, load
from mqvae.data.places import DataNotFound, cache_folder
from mqvae.data.validation import hold_out, usual_count

__all__ = [
    "DATASETS",
    "EXTENSIONS",
    "Batches",
    "DataNotFound",
    "Images",
    "cache_folder",
    "hold_out",
    "image_files",
    "in_order",
    "load",
    "load_files",
    "usual_count",
]

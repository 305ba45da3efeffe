"""A name, a folder or shards -> batches."""

from mqvae.data.arrays import ArrayData
from mqvae.data.batches import Batches, fitting, in_order, these
from mqvae.data.datasets import HubData, OfDataset, TorchData
from mqvae.data.files import Reading
from mqvae.data.folder import has_validation, image_files, load_all, load_files
from mqvae.data.identity import Difference, Identity, identity_of
from mqvae.data.images import Images, InMemory, Part, first
from mqvae.data.listing import EXTENSIONS
from mqvae.data.look import Look, look
from mqvae.data.places import DataNotFound, cache_folder
from mqvae.data.registry import DATASETS, load
from mqvae.data.source import Data, ImageData
from mqvae.data.stored import Stored
from mqvae.data.validation import Bounds, bounds_of, draw, hold_out, usual_count

__all__ = [
    "DATASETS",
    "EXTENSIONS",
    "ArrayData",
    "Batches",
    "Bounds",
    "Data",
    "DataNotFound",
    "Difference",
    "HubData",
    "Identity",
    "ImageData",
    "Images",
    "InMemory",
    "Look",
    "OfDataset",
    "Part",
    "Reading",
    "Stored",
    "TorchData",
    "bounds_of",
    "cache_folder",
    "draw",
    "first",
    "fitting",
    "has_validation",
    "hold_out",
    "identity_of",
    "image_files",
    "in_order",
    "load",
    "load_all",
    "load_files",
    "look",
    "these",
    "usual_count",
]

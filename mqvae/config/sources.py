"""`--data VALUE` and `data: VALUE` to a data component."""

from torch.utils.data import Dataset

from mqvae.config.classes import canonical, find
from mqvae.config.options import Spec
from mqvae.data import ArrayData, Data, HubData, ImageData, TorchData


def source_of(value: str) -> Spec:
    """Settings of data that are said in one word.

    Args:
        value: A class of data, or what one of them takes: a dataset by name, a folder, a file.
    """
    kind = find(value)
    if kind is not None and issubclass(kind, Data):
        return {"class_path": canonical(value)}
    if kind is not None and issubclass(kind, Dataset):
        return {"class_path": "mqvae.TorchData", "init_args": {"train": {"class_path": value}}}
    taken = next((each for each in SOURCES if each.takes(value)), ImageData)
    return {"class_path": f"mqvae.{taken.__name__}", "init_args": {"name": value}}


SOURCES: tuple[type[Data], ...] = (ArrayData, HubData, TorchData)
"""Sources that are told by their names, the first that takes one; images are the rest."""

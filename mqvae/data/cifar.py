"""CIFAR, by torchvision."""

import functools
from pathlib import Path

import numpy as np
import torch

from mqvae.data.files import Reading
from mqvae.data.images import InMemory
from mqvae.data.places import by_torchvision, search


def _load(name: str, split: str, root: Path | None, reading: Reading, download: bool) -> InMemory:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]

    def read(folder: Path) -> InMemory:
        # Also right if the folder named is the one inside the archive.
        if folder.name == kind.base_folder and not (folder / kind.base_folder).is_dir():
            folder = folder.parent
        listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        files = {folder / kind.base_folder / file: md5 for file, md5 in listed}
        data = by_torchvision(
            lambda: kind(folder, train=split == "train"), files, kind.filename, folder, root
        )
        pixels = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        labels = torch.tensor(data.targets)  # pixels are (N, 3, 32, 32)
        return InMemory(name, split, pixels, labels, f"files in {folder}")

    advice = f"Its archive is {kind.filename}, to be unpacked there."
    fetch = functools.partial(kind, download=True) if download else None
    return search(name, read, root=root, download=fetch, advice=advice)


load_cifar10 = functools.partial(_load, "cifar10")
load_cifar100 = functools.partial(_load, "cifar100")

"""SVHN, cropped digits."""

import functools
from pathlib import Path

import numpy as np
import torch

from mqvae.data.files import Reading
from mqvae.data.images import InMemory
from mqvae.data.places import by_torchvision, search
from mqvae.optional import require


def load_svhn(split: str, root: Path | None, reading: Reading, download: bool) -> InMemory:
    """SVHN, by torchvision."""
    require("scipy")
    from torchvision.datasets import SVHN

    _, file, md5 = SVHN.split_list[split]

    def read(folder: Path) -> InMemory:
        files = {folder / file: md5}
        data = by_torchvision(lambda: SVHN(folder, split), files, file, folder, root)
        pixels = np.ascontiguousarray(data.data)  # (N, 3, 32, 32)
        labels = torch.from_numpy(data.labels)
        return InMemory("svhn", split, torch.from_numpy(pixels), labels, f"files in {folder}")

    fetch = functools.partial(SVHN, split=split, download=True) if download else None
    return search("svhn", read, root=root, download=fetch, advice=f"Its file is {file}.")

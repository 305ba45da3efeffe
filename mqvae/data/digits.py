"""scikit-learn's digits, which are in the package."""

from pathlib import Path

import numpy as np
import torch

from mqvae.data.files import Reading
from mqvae.data.images import InMemory

_FILE = Path(__file__).with_name("digits.npz")


def load_digits(split: str, root: Path | None, reading: Reading, download: bool) -> InMemory:
    """scikit-learn's 8×8 digits; inside the package, so there is no root and no download.

    Source:
        E. Alpaydin and C. Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine
        Learning Repository, licence CC BY 4.0: its test part, all of what scikit-learn ships.
    """
    with np.load(_FILE) as file:
        images, labels = file["images"], file["labels"]
    part = slice(0, 1500) if split == "train" else slice(1500, None)
    pixels = np.rint(images[part] * (255 / 16)).astype(np.uint8)  # (N, 8, 8), from 0..16
    return InMemory(
        name="digits",
        split=split,
        pixels=torch.from_numpy(pixels).unsqueeze(1),  # (N, 1, 8, 8)
        labels=torch.from_numpy(labels[part].astype(np.int64)),
        source="the digits of UCI, as scikit-learn has them",
    )

"""CIFAR, as torchvision has it or in its binary version: rows of labels and pixels, a byte each."""

import functools
from pathlib import Path

import numpy as np
import torch

from mqvae.data.files import Reading
from mqvae.data.images import InMemory
from mqvae.data.places import Absent, by_torchvision, mending, search
from mqvae.errors import MqvaeError

FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "cifar10": {
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    "cifar100": {"train": ("train.bin",), "test": ("test.bin",)},
}
LABELS = {"cifar10": (10,), "cifar100": (20, 100)}  # how many of each; the last one counts
COUNTS = {"train": 50_000, "test": 10_000}
PIXELS = 3 * 32 * 32


def load_cifar10(split: str, root: Path | None, reading: Reading, download: bool) -> InMemory:
    """CIFAR-10."""
    return _load("cifar10", split, root, download)


def load_cifar100(split: str, root: Path | None, reading: Reading, download: bool) -> InMemory:
    """CIFAR-100."""
    return _load("cifar100", split, root, download)


def _load(name: str, split: str, root: Path | None, download: bool) -> InMemory:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]

    def read(folder: Path) -> InMemory:
        # Also right if the folder named is the one inside the archive.
        if folder.name == kind.base_folder and not (folder / kind.base_folder).is_dir():
            folder = folder.parent
        binary = binary_folder(name, folder)
        if binary and not (folder / kind.base_folder).is_dir():
            found = read_binary(name, split, binary, mending(folder, root))
            both = [torch.from_numpy(each) for each in found]
            return InMemory(name, split, both[0], both[1], f"files in {binary}")
        meta = (kind.meta["filename"], kind.meta["md5"])
        files = {
            folder / kind.base_folder / file: md5
            for file, md5 in [*kind.train_list, *kind.test_list, meta]
        }
        data = by_torchvision(
            lambda: kind(folder, train=split == "train"), files, kind.filename, folder, root
        )
        pixels = np.ascontiguousarray(data.data.transpose(0, 3, 1, 2))  # (N, 3, 32, 32)
        return InMemory(
            name, split, torch.from_numpy(pixels), torch.tensor(data.targets), f"files in {folder}"
        )

    advice = f"Its archive is {kind.filename}, or the binary version, to be unpacked there."
    fetch = functools.partial(kind, download=True) if download else None
    return search(name, read, root=root, download=fetch, advice=advice)


def binary_folder(name: str, folder: Path) -> Path | None:
    """Where the files are, the folder itself or the one inside the archive; None if nowhere."""
    for place in (folder, folder / FOLDERS[name]):
        if any((place / file).is_file() for files in FILES[name].values() for file in files):
            return place
    return None


def read_binary(name: str, split: str, folder: Path, advice: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, (N, 3, 32, 32) uint8, and labels, (N,) int64.

    Args:
        name: "cifar10" or "cifar100".
        split: "train" or "test".
        folder: That of the files.
        advice: What to do about one that is damaged, a sentence.

    Raises:
        Absent: if a file is missing.
        ValueError: if one has another size, or labels that there are not.
    """
    files, classes = FILES[name][split], LABELS[name]
    width = len(classes) + PIXELS
    size = COUNTS[split] // len(files) * width
    parts = []
    for file in files:
        path = folder / file
        if not path.is_file():
            raise Absent(f"{folder.name}/{file} is missing")
        if (found := path.stat().st_size) != size:
            raise MqvaeError(
                f"{path} is cut short or was altered: expected {size:,} bytes, got {found:,}. "
                f"{advice}"
            )
        rows = np.fromfile(path, dtype=np.uint8).reshape(-1, width)
        highest = rows[:, : len(classes)].max(0)
        if (highest >= classes).any():
            raise MqvaeError(
                f"{path} was altered: expected labels below {classes[-1]}, got {highest[-1]}. "
                f"{advice}"
            )
        parts.append(rows)
    rows = np.concatenate(parts)
    pixels = np.ascontiguousarray(rows[:, len(classes) :]).reshape(-1, 3, 32, 32)
    return pixels, rows[:, len(classes) - 1].astype(np.int64)

"""CIFAR's binary version: files of rows, each its labels and its pixels, a byte each."""

from pathlib import Path

import numpy as np

from mqvae.data.places import Absent
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

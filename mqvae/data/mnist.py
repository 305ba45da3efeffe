"""MNIST and Fashion-MNIST, and the IDX files that they are in."""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from mqvae.data.files import Reading
from mqvae.data.images import InMemory
from mqvae.data.places import Absent, mending, search
from mqvae.errors import MqvaeError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_DEBIAN_PACKAGE = "dataset-fashion-mnist"


def load_fashion_mnist(split: str, root: Path | None, reading: Reading, download: bool) -> InMemory:
    """Fashion-MNIST, from MNIST's four files; also those of Debian's package."""
    return _load_idx(
        "fashion-mnist",
        "FashionMNIST",
        split,
        root,
        download,
        digests={  # SHA-256 of the unpacked files
            "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        shipped=(DEBIAN_FASHION_MNIST,),
        advice=f"Debian and Ubuntu have it: apt-get install {_DEBIAN_PACKAGE}.",
    )


def load_mnist(split: str, root: Path | None, reading: Reading, download: bool) -> InMemory:
    """MNIST, from its four files."""
    advice = "Its four files are named train-images-idx3-ubyte.gz and so on."
    return _load_idx("mnist", "MNIST", split, root, download, advice=advice)


def _load_idx(
    name: str,
    torchvision_name: str,
    split: str,
    root: Path | None,
    download: bool,
    *,
    digests: Mapping[str, str] = MappingProxyType({}),
    shipped: Sequence[Path] = (),
    advice: str,
) -> InMemory:
    """A data set of MNIST's four files; the digests of those that are known verify them."""

    def read(folder: Path) -> InMemory:
        prefix, count = {"train": ("train", 60_000), "test": ("t10k", 10_000)}[split]
        folders = [folder, folder / torchvision_name / "raw"]
        parts = []
        for part, shape in (("images", (count, 28, 28)), ("labels", (count,))):
            path = _find(folders, f"{prefix}-{part}-idx{len(shape)}-ubyte")
            digest = digests.get(f"{prefix}-{part}")
            advised = _mending(folder, root, advice)
            parts.append(read_idx(path, shape=shape, digest=digest, advice=advised))
        pixels, labels = parts[0].unsqueeze(1), parts[1].to(torch.int64)  # (N, 1, 28, 28), (N,)
        if labels.max() > 9:
            raise MqvaeError(
                f"{path} was altered: expected labels of 0 to 9, got {labels.max()}. {advised}"
            )
        package = f" (Debian package {_DEBIAN_PACKAGE})" if folder in shipped else ""
        return InMemory(name, split, pixels, labels, f"files in {folder}{package}")

    def fetch(folder: Path) -> object:
        import torchvision

        return getattr(torchvision.datasets, torchvision_name)(folder, download=True)

    return search(
        name, read, root=root, shipped=shipped, download=fetch if download else None, advice=advice
    )


def _find(folders: list[Path], name: str) -> Path:
    """The file `name` or `name`.gz in the first of the folders that has it."""
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    if not folders[0].is_dir():
        raise Absent("no such folder")
    raise Absent(f"{name}.gz is missing (also unpacked, and in {folders[1]})")


def _mending(folder: Path, root: Path | None, advice: str) -> str:
    if root is None and folder == DEBIAN_FASHION_MNIST:
        return f"Install it anew: apt-get install --reinstall {_DEBIAN_PACKAGE}."
    return mending(folder, root, advice)


def read_idx(path: Path, *, shape: tuple[int, ...], digest: str | None, advice: str) -> Tensor:
    """The bytes of an IDX file, gzipped if its name ends in .gz.

    Args:
        path: The file.
        shape: What it has to hold.
        digest: SHA-256 of the unpacked file in hexadecimal; None if not known.
        advice: What to do when it is damaged, a sentence.

    Returns:
        The bytes, `shape`, uint8.

    Raises:
        ValueError: if the file is cut short, too long, of another format or shape, or altered.
    """

    def damaged(what: str, expected: str, got: str) -> MqvaeError:
        return MqvaeError(f"{path} {what}: expected {expected}, got {got}. {advice}")

    magic = 0x0800 + len(shape)  # 08: unsigned bytes; then the number of dimensions
    header = 4 + 4 * len(shape)
    size = header + math.prod(shape)
    whole = f"{size:,} bytes" + (" once unpacked" if path.suffix == ".gz" else "")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # One byte more shows a file that is too long without unpacking all of it, and takes
            # gzip to the end of its data, where it checks the CRC.
            content = file.read(size + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise damaged("cannot be read", whole, f"an error ({error})") from error

    found = int.from_bytes(content[:4], "big")
    if len(content) >= 4 and found != magic:
        raise damaged("is not the file it should be", f"magic number {magic}", str(found))
    if len(content) >= header:
        dimensions = struct.unpack(f">{len(shape)}I", content[4:header])
        if dimensions != shape:
            raise damaged("has other dimensions", _times(shape), _times(dimensions))
    if len(content) < size:
        raise damaged("is cut short", whole, f"{len(content):,}")
    if len(content) > size:
        raise damaged("is too long", whole, "more")
    if digest is not None and (got := hashlib.sha256(content).hexdigest()) != digest:
        raise damaged("was altered", f"the SHA-256 {digest}", got)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))

"""Files in the IDX format of MNIST: a magic number, the dimensions, then bytes."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from mqvae.errors import MqvaeError


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

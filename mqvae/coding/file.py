"""The file that compressed codes are kept in."""

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mqvae.coding.model import order_of, pack, unpack
from mqvae.errors import MqvaeError
from mqvae.files import write_whole
from mqvae.optional import ExtraMissing

MAGIC = b"\x89mqv\r\n\x1a\n"  # as PNG's: what sends files as text changes it
VERSION = 1
# Magic, version, bytes of the header, of the codewords' order, and of the codes.
START = struct.Struct("<8sIIQQ")
DIGEST = 16  # bytes of SHA-256 at the end
MOST_CODES = 2**29  # in a file: 4 GiB in memory
MOST_HEADER = 2**28  # bytes of the header unpacked, most of them names
WORTH = 16  # codes for each codeword from which on the codewords' order is worth its room
FOREIGN = "pass a file that `mqvae compress` wrote."


@dataclass(frozen=True, eq=False)
class SameSize:
    """Codes of images of one size.

    Attributes:
        codes: (n, h, w, G) integers; G is 1 without groups.
        size: Height and width of the images in pixels.
    """

    codes: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Compressed:
    """Codes of images and what is needed to decode them, as a compressed file has them.

    Attributes:
        runs: The codes, in the order of the images.
        num_codes: K of the codebook that they index.
        channels: Channels of the images.
        model: Fingerprint of the weights that made the codes.
        names: A name for each image; empty where they are numbered.
    """

    runs: tuple[SameSize, ...]
    num_codes: int
    channels: int
    model: str
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """How many images there are."""
        return sum(len(run.codes) for run in self.runs)

    @property
    def count(self) -> int:
        """How many codes there are, of all groups."""
        return sum(run.codes.size for run in self.runs)

    @property
    def pixels(self) -> int:
        """How many pixels the images have together."""
        return sum(len(run.codes) * run.size[0] * run.size[1] for run in self.runs)

    def to_bytes(self, codewords: np.ndarray | None = None) -> bytes:
        """The content of the file.

        Args:
            codewords: (books, K, d), of all groups or of each. Codes of similar codewords share
                statistics then; the order that tells them is written where it is worth its room.

        Raises:
            MqvaeError: if codes are not in [0, num_codes), or are more than a file may hold.
            ExtraMissing: if the package constriction is not installed.
        """
        if self.count > MOST_CODES:
            raise MqvaeError(
                f"there are {self.count:,} codes, a file holds {MOST_CODES:,}: compress the images "
                "into several files."
            )
        for codes in (run.codes for run in self.runs if run.codes.size):
            if not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
                raise MqvaeError(
                    f"codes must lie in 0 … {self.num_codes - 1}, got {codes.min()} … "
                    f"{codes.max()}."
                )
        orders = None
        if codewords is not None and WORTH * codewords.shape[0] * self.num_codes <= self.count:
            orders = np.stack([order_of(book) for book in codewords])
        header = {
            "num_codes": self.num_codes,
            "channels": self.channels,
            "model": self.model,
            "runs": [[*run.codes.shape, *run.size] for run in self.runs],
            "books": 0 if orders is None else len(orders),
            "names": self.names,
        }
        parts = [
            zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9),
            b"" if orders is None else _to_bits(orders, self.num_codes),
            pack([_relabelled(run.codes, orders) for run in self.runs], self.num_codes),
        ]
        content = b"".join([START.pack(MAGIC, VERSION, *map(len, parts)), *parts])
        return content + hashlib.sha256(content).digest()[:DIGEST]

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "the content") -> "Compressed":
        """What `to_bytes` was called on.

        Args:
            content: What it returned.
            name: What messages call it.

        Raises:
            MqvaeError: if it is something else, cut short, damaged, or of a later version.
            ExtraMissing: if the package constriction is not installed.
        """
        if content[: len(MAGIC)] != MAGIC or len(content) < START.size:
            raise MqvaeError(f"{name} holds no compressed codes: {FOREIGN}")
        _, version, *lengths = START.unpack_from(content)
        expected = START.size + sum(lengths) + DIGEST
        if version == VERSION and len(content) < expected:
            raise MqvaeError(
                f"{name} is cut short or damaged: it has {len(content):,} bytes, and says that it "
                f"has {expected:,}. Get it again, or compress the images again."
            )
        if hashlib.sha256(content[:-DIGEST]).digest()[:DIGEST] != content[-DIGEST:]:
            raise MqvaeError(
                f"{name} is damaged: it is not what was written. Get it again, or compress the "
                "images again."
            )
        if version != VERSION:
            raise MqvaeError(
                f"{name} is of version {version} of this format, this mqvae reads version "
                f"{VERSION}: install a later mqvae."
            )
        try:
            return cls._of(content, lengths)
        except ExtraMissing:
            raise
        # With a digest that fits, somebody else wrote it; what that may do has no list.
        except Exception as error:
            raise MqvaeError(
                f"{name} holds no compressed codes ({error or type(error).__name__}): {FOREIGN}"
            ) from error

    @classmethod
    def _of(cls, content: bytes, lengths: Sequence[int]) -> "Compressed":
        ends = np.cumsum([START.size, *lengths]).tolist()
        packed, order, codes = (content[a:b] for a, b in pairwise(ends))
        if ends[-1] + DIGEST != len(content):
            raise MqvaeError("its length is another than it says")
        unpacking = zlib.decompressobj()
        header = json.loads(unpacking.decompress(packed, MOST_HEADER))
        shapes, num_codes = _checked(header)
        orders = None
        if header["books"]:
            orders = _from_bits(order, header["books"], num_codes)
        found = unpack(codes, [shape[:4] for shape in shapes], num_codes)
        pairs = zip((_labelled(run, orders, num_codes) for run in found), shapes, strict=True)
        runs = tuple(SameSize(codes, shape[4:]) for codes, shape in pairs)
        return cls(runs, num_codes, header["channels"], header["model"], tuple(header["names"]))

    def save(self, path: str | Path, codewords: np.ndarray | None = None) -> int:
        """Write the file, whole or not at all; returns its bytes. Arguments as of `to_bytes`."""
        content = self.to_bytes(codewords)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), content)
        return len(content)

    @classmethod
    def load(cls, path: str | Path) -> "Compressed":
        """Read what `save` wrote.

        Raises:
            MqvaeError: as `from_bytes`, or if there is no such file.
            ExtraMissing: if the package constriction is not installed.
        """
        if not Path(path).is_file():
            raise MqvaeError(f"there is no file {path}: {FOREIGN}")
        return cls.from_bytes(Path(path).read_bytes(), str(path))


def _checked(header: Any) -> tuple[list[tuple[Any, ...]], int]:
    """Shape and size of every run, and K; raises what comes of a header that is none."""
    shapes = [tuple(int(number) for number in run) for run in header["runs"]]
    num_codes, books, names = header["num_codes"], header["books"], header["names"]
    groups = {shape[3] for shape in shapes}
    images = sum(shape[0] for shape in shapes)
    fits = (
        all(len(shape) == 6 and min(shape) > 0 for shape in shapes)
        and len(groups) == 1
        and sum(np.prod([float(n) for n in shape[:4]]) for shape in shapes) <= MOST_CODES
        and isinstance(num_codes, int)
        and 1 <= num_codes <= 2**63
        and books in {0, 1, *groups}
        and isinstance(header["model"], str)
        and header["channels"] in (1, 3)
        and all(isinstance(name, str) for name in names)
        and len(names) in (0, images)
    )
    if not fits:
        raise MqvaeError("its header says what cannot be")
    return shapes, num_codes


def _levels(num_codes: int) -> int:
    return (num_codes - 1).bit_length()


def _to_bits(orders: np.ndarray, num_codes: int) -> bytes:
    """Orders of codewords, (books, K), in as many bits as a code has."""
    shifts = np.arange(_levels(num_codes))
    return np.packbits((orders[..., None] >> shifts & 1).astype(np.uint8)).tobytes()


def _from_bits(content: bytes, books: int, num_codes: int) -> np.ndarray:
    """What `_to_bits` was given."""
    levels = _levels(num_codes)
    if len(content) != -(-books * num_codes * levels // 8):
        raise MqvaeError("the order of its codewords is none")
    flat = np.unpackbits(np.frombuffer(content, np.uint8), count=books * num_codes * levels)
    bits = flat.reshape(books, num_codes, levels).astype(np.int64)
    return np.asarray((bits << np.arange(levels)).sum(-1))


def _relabelled(codes: np.ndarray, orders: np.ndarray | None) -> np.ndarray:
    """Codes (n, h, w, G) by the orders of their codewords."""
    if orders is None:
        return codes
    books = [orders[min(group, len(orders) - 1)] for group in range(codes.shape[3])]
    return np.stack([book[codes[..., group]] for group, book in enumerate(books)], -1)


def _labelled(codes: np.ndarray, orders: np.ndarray | None, num_codes: int) -> np.ndarray:
    """What `_relabelled` was given."""
    if orders is not None:
        back = np.full((len(orders), 1 << _levels(num_codes)), -1, np.int64)
        np.put_along_axis(back, orders, np.arange(num_codes)[None], 1)
        codes = _relabelled(codes, back)
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < num_codes:
        raise MqvaeError("its codes are none")
    return codes

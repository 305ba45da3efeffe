"""Broken images, data sets and shards by the thousand: each is read whole, or refused in one line.

    python -m campaigns.broken_data [--images 20 --every 1000 --folder FOLDER]

Breaks `--images` images in 25 ways, with and without a size to bring them to; cuts files in the
formats of IDX, CIFAR and SVHN, and shards, at every `--every`th byte; alters
bytes of shards; and makes shards that lead outside, folders that are empty and the like. Each is
loaded in this process, where any of these is counted as wrong: an exception that is neither
MqvaeError nor FileNotFoundError, a message of several lines or one that does not name the file, a
warning, fewer images than there are without a word, a file that was not there before. Prints
counts; the exit code is 1 if one is wrong.
"""

import argparse
import gzip
import hashlib
import io
import os
import pickle
import struct
import sys
import tarfile
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from mqvae.cli.terminal import quiet
from mqvae.data import Reading, load, load_all
from mqvae.errors import MqvaeError


@dataclass
class Counts:
    """What came of files, by kind.

    Attributes:
        read: How many were read.
        refused: How many were refused in one line that names the file.
        wrong: What was wrong with the others, a line each.
    """

    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A line for each kind."""
        kinds = sorted(self.read.keys() | self.refused.keys())
        width = max(map(len, kinds), default=0)
        lines = [f"{'':<{width}} {'read':>8} {'refused':>8}"]
        lines += [
            f"{kind:<{width}} {self.read[kind]:>8,} {self.refused[kind]:>8,}" for kind in kinds
        ]
        sums = sum(self.read.values()), sum(self.refused.values())
        return "\n".join([*lines, f"{'all':<{width}} {sums[0]:>8,} {sums[1]:>8,}"])


def tried(
    counts: Counts, kind: str, names: str, attempt: Callable[[], str | None], expected: str = "any"
) -> None:
    """One attempt: what comes back says what is wrong with what was read.

    Args:
        counts: Takes the outcome.
        kind: What it is counted as.
        names: What a message must name.
        attempt: Loads it.
        expected: "read" or "refused" where only that is right.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet()
        try:
            wrong = attempt()
            outcome = "read"
        except (MqvaeError, FileNotFoundError) as error:
            outcome, text = "refused", str(error)
            wrong = None
            if names not in text:
                wrong = f"names no {names}: {text}"
            elif "\n" in text or not text.isprintable():
                wrong = f"not one readable line: {text!r}"
        except Exception as error:
            counts.wrong.append(f"{kind}: {names}: {type(error).__name__}: {error}")
            return
    if said:
        wrong = f"a warning: {said[0].message}"
    if wrong is None and expected not in ("any", outcome):
        wrong = f"{outcome}, expected {expected}"
    if wrong is not None:
        counts.wrong.append(f"{kind}: {names}: {wrong}")
    else:
        (counts.read if outcome == "read" else counts.refused)[kind] += 1


def files_under(folder: Path) -> set[str]:
    """All files under a folder."""
    return {str(path) for path in folder.rglob("*") if path.is_file()}


# -- images ----------------------------------------------------------------------------------------


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png_of(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG file that declares a size, whatever its data is."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bomb_gif() -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x08\x02\x4c\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + frame + b"\x3b"


def bomb_bmp() -> bytes:
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6)


def bomb_jpeg(small: bytes) -> bytes:
    """Its frame header says 65,500 × 65,500."""
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", 65_500, 65_500) + small[at + 4 :]


def bomb_tiff(small: bytes) -> bytes:
    """Its first tags say 60,000 × 60,000."""
    content = bytearray(small)
    start = struct.unpack("<I", small[4:8])[0]
    for entry in range(struct.unpack("<H", small[start : start + 2])[0]):
        at = start + 2 + 12 * entry
        if struct.unpack("<H", small[at : at + 2])[0] in (256, 257):
            content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 60_000)
    return bytes(content)


def eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def broken(image: Image.Image, rng: np.random.Generator) -> Iterator[tuple[str, str, bytes, str]]:
    """25 broken or odd files of an image: what it is, its ending, its bytes, what is right."""
    png, jpeg = written(image, "PNG"), written(image, "JPEG", quality=90)
    gif, webp = written(image.convert("P"), "GIF"), written(image, "WEBP", lossless=True)
    tiff, bmp = written(image, "TIFF"), written(image, "BMP")

    def cut(content: bytes) -> bytes:
        return content[: int(rng.integers(1, len(content) // 2))]

    yield "PNG cut", "png", cut(png), "refused"
    yield "JPEG cut", "jpg", cut(jpeg), "any"  # within its last block it may be whole
    yield "GIF cut", "gif", cut(gif), "any"
    yield "WebP cut", "webp", cut(webp), "refused"
    yield "TIFF cut", "tif", cut(tiff), "refused"
    yield "BMP cut", "bmp", cut(bmp), "refused"
    yield "no bytes", "png", b"", "refused"
    yield "zeros", "png", bytes(len(png)), "refused"
    yield "noise", "jpg", rng.bytes(len(jpeg)), "refused"
    yield "text", "jpg", b"<html>404 Not Found</html>", "refused"
    yield "another kind's ending", "png", jpeg, "read"
    yield "PostScript as PNG", "png", eps(), "refused"
    altered = bytearray(png)
    altered[int(rng.integers(33, len(png) - 12))] ^= 0xFF
    yield "PNG with a byte altered", "png", bytes(altered), "any"
    altered = bytearray(jpeg)
    for place in rng.integers(2, len(jpeg), 5):
        altered[place] = int(rng.integers(256))
    yield "JPEG with 5 bytes altered", "jpg", bytes(altered), "any"
    yield "bomb: PNG", "png", png_of(60_000, 60_000), "refused"
    yield (
        "bomb: JPEG, GIF, BMP, TIFF",
        *(
            [
                ("jpg", bomb_jpeg(jpeg)),
                ("gif", bomb_gif()),
                ("bmp", bomb_bmp()),
                ("tif", bomb_tiff(tiff)),
            ]
        )[int(rng.integers(4))],
        "refused",
    )
    large = png_of(20_000, 5_000, 8, 0, bytes(1_000))
    yield "100 million pixels declared, few there", "png", large, "refused"
    yield "size 0", "png", png_of(0, 4), "refused"
    palette = image.convert("P")
    clear = written(palette, "PNG", transparency=bytes(range(256)))
    yield "palette with transparency", "png", clear, "read"
    cmyk = written(image.convert("CMYK"), "JPEG")
    yield "CMYK", "jpg", cmyk, "read"
    deep = Image.fromarray(rng.integers(0, 65_536, image.size[::-1], dtype=np.uint16))
    yield "16 bits", "png", written(deep, "PNG"), "read"
    floating = Image.fromarray(rng.random(image.size[::-1], dtype=np.float32))
    yield "floating point", "tif", written(floating, "TIFF"), "refused"
    frames = [image, image.rotate(90), image.rotate(180)]
    animated = written(image, "GIF", save_all=True, append_images=frames)
    yield "animated", "gif", animated, "read"
    yield "animated, its second frame cut", "gif", animated[: len(gif)], "any"
    exif = b"Exif\0\0" + rng.bytes(40)
    yield "damaged EXIF", "jpg", written(image, "JPEG", exif=exif), "any"


def images(folder: Path, count: int) -> Counts:
    """Broken images, each in a folder of its own and beside two good ones."""
    counts, rng = Counts(), np.random.default_rng(0)
    good = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for number in range(count):
        size = (int(rng.integers(9, 70)), int(rng.integers(9, 70)))
        size = (size[0], size[0]) if number % 2 else size
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        pixels[: size[0] // 2] = pixels[0, 0]
        for way, (kind, ending, content, expected) in enumerate(
            broken(Image.fromarray(pixels), rng)
        ):
            place = folder / f"{number:03}-{way:02}"
            place.mkdir(parents=True)
            path = place / f"b.{ending}"
            path.write_bytes(content)
            reading = Reading(16, 3)

            def alone(path: Path = path, reading: Reading = reading) -> str | None:
                found = load_all(path, reading)
                return None if tuple(found.shape) == (3, 16, 16) else f"shape {found.shape}"

            tried(counts, kind, path.name, alone, expected)
            good.save(place / "a.png")
            good.save(place / "c.png")

            def skipped(place: Path = place) -> str | None:
                found = load_all(place, Reading(16, 3, on_error="skip"))
                left = len(set(found.skipped))
                return None if len(found) == 3 and left <= 1 else f"{len(found)}, {left} skipped"

            tried(counts, f"{kind}, skipped", path.name, skipped, "read")
            # Without a side, all heads are looked at.
            tried(counts, f"{kind}, its own size", path.name, partial(_loaded, path))
    return counts


def _loaded(path: Path) -> None:
    load_all(path, Reading(None, 3))


# -- data sets -------------------------------------------------------------------------------------


def cuts(path: Path, every: int) -> Iterator[int]:
    """Cut a file at every so many bytes, from its end on; its sizes."""
    for size in range((path.stat().st_size - 1) // every * every, -1, -every):
        os.truncate(path, size)
        yield size


def idx(folder: Path, every: int) -> Counts:
    """MNIST's test files, whose official sizes the loader demands."""
    counts, rng = Counts(), np.random.default_rng(0)
    pixels = np.zeros((10_000, 28, 28), dtype=np.uint8)
    pixels[:, ::4, ::4] = rng.integers(0, 256, (10_000, 7, 7))
    parts = {"images-idx3": pixels, "labels-idx1": (np.arange(10_000) % 10).astype(np.uint8)}
    for packed in (False, True):
        place = folder / ("packed" if packed else "plain")
        place.mkdir(parents=True)
        whole = {}
        for part, array in parts.items():
            header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
            content = header + array.tobytes()
            path = place / f"t10k-{part}-ubyte{'.gz' * packed}"
            whole[path] = gzip.compress(content, 1) if packed else content
            path.write_bytes(whole[path])
        kind = f"IDX{', gzip' * packed}"
        tried(counts, f"{kind}, whole", "mnist", partial(_count, "mnist", place, 10_000), "read")
        for path, content in whole.items():
            for _ in cuts(path, every):
                tried(
                    counts,
                    f"{kind}, cut",
                    path.name,
                    partial(_count, "mnist", place, 10_000),
                    "refused",
                )
            path.write_bytes(content)
    return counts


def cifar(folder: Path, every: int) -> Counts:
    """Small files of CIFAR."""
    from torchvision import datasets

    counts, rng = Counts(), np.random.default_rng(0)
    for name, kind, labels in (
        ("cifar10", datasets.CIFAR10, 1),
        ("cifar100", datasets.CIFAR100, 2),
    ):

        def test(root: Path, name: str = name) -> str | None:
            return _count(name, root, 4)

        root = folder / name
        base = root / kind.base_folder
        base.mkdir(parents=True)
        key, known = ("labels", "fine_labels")[labels - 1], {}
        for file, _ in [*kind.train_list, *kind.test_list]:
            content = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), key: [0, 1, 2, 9]}
            (base / file).write_bytes(pickle.dumps(content, protocol=2))
            known[file] = hashlib.md5((base / file).read_bytes()).hexdigest()
        meta = base / kind.meta["filename"]
        meta.write_bytes(pickle.dumps({kind.meta["key"]: list("abcdefghij")}))
        digest = hashlib.md5(meta.read_bytes()).hexdigest()
        with mock.patch.multiple(
            kind,
            train_list=[[file, known[file]] for file, _ in kind.train_list],
            test_list=[[file, known[file]] for file, _ in kind.test_list],
            meta={**kind.meta, "md5": digest},
        ):
            tried(counts, "CIFAR, whole", name, partial(test, root), "read")
            for path in sorted(base.iterdir()):
                content = path.read_bytes()
                for _ in cuts(path, min(every, 1000)):
                    tried(
                        counts,
                        "CIFAR, cut",
                        path.name,
                        partial(test, root),
                        "refused",
                    )
                path.write_bytes(content)
    return counts


def svhn(folder: Path, every: int) -> Counts:
    """A small file of SVHN's format, as MATLAB writes it."""
    try:
        from scipy.io import savemat
    except ImportError:
        return Counts()
    from torchvision.datasets import SVHN

    counts, rng = Counts(), np.random.default_rng(0)
    folder.mkdir(parents=True)
    pixels = rng.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    path = folder / SVHN.split_list["test"][1]
    savemat(path, {"X": pixels, "y": np.arange(1, 6, dtype=np.uint8)[:, None]})
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    lists = {**SVHN.split_list, "test": [SVHN.split_list["test"][0], path.name, digest]}
    with mock.patch.object(SVHN, "split_list", lists):
        tried(counts, "SVHN, whole", "svhn", lambda: _count("svhn", folder, 5), "read")
        for _ in cuts(path, min(every, 1000)):
            tried(counts, "SVHN, cut", path.name, lambda: _count("svhn", folder, 5), "refused")
    return counts


def _count(name: str, root: Path, expected: int) -> str | None:
    found = len(load(name, "test", root=root, download=False))
    return None if found == expected else f"{found} images, expected {expected}"


# -- shards and folders ----------------------------------------------------------------------------


def shard(samples: list[tuple[str, bytes]], **fields: object) -> bytes:
    """A tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in fields.items():
                setattr(member, key, value)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def shards(folder: Path, every: int, altered: int = 500) -> Counts:
    """A shard cut, altered, and with members that lead outside."""
    counts, rng = Counts(), np.random.default_rng(0)
    folder.mkdir(parents=True)
    content = written(Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)), "PNG")
    samples = [
        (f"{i:03}.{kind}", content if kind == "png" else b"1")
        for i in range(60)
        for kind in ("png", "cls")
    ]
    whole = shard(samples)
    path = folder / "0.tar"
    path.write_bytes(whole)

    def read() -> str | None:
        found = load_all(folder, Reading())
        wrong = len(found) != 60 and not found.remarks
        return f"{len(found)} images, and nothing said" if wrong else None

    tried(counts, "shard, whole", "0.tar", read, "read")
    end = 120 * 1024 + 512  # the least that is whole: one block that marks its end
    for step in (every, 512):
        path.write_bytes(whole)
        for size in cuts(path, step):
            tried(counts, "shard, cut", "0.tar", read, "read" if size >= end else "refused")
    for _ in range(altered):
        content_now = bytearray(whole)
        content_now[int(rng.integers(end - 512))] ^= int(rng.integers(1, 256))
        path.write_bytes(content_now)
        tried(counts, "shard, a byte altered", "0.tar", read)
    path.write_bytes(whole + whole)
    tried(counts, "shard, two in one file", "0.tar", read, "refused")
    path.write_bytes(gzip.compress(whole))
    tried(counts, "shard, compressed", "0.tar", read, "refused")
    secret = folder.parent / "secret.png"
    secret.write_bytes(b"secret")
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    for name in ("../secret.png", str(secret), "a/../../secret.png", "/dev/zero.png"):
        path.write_bytes(shard([*samples, (name, content)]))

        def outside(name: str = name) -> str | None:
            found = load_all(folder, Reading())
            return None if len(found) == 61 else f"{len(found)} images"

        tried(counts, "shard, names that lead outside", "0.tar", outside, "read")
        for kind in kinds:
            links = shard([(name, b"")], type=kind, linkname=str(secret))
            path.write_bytes(shard(samples)[: 120 * 1024] + links)
            tried(counts, "shard, links and devices", "0.tar", read, "read")
    secret.unlink()
    return counts


def folders(folder: Path) -> Counts:
    """Folders with nothing, one image, or the same image many times."""
    counts = Counts()
    folder.mkdir(parents=True)
    constant = Image.new("RGB", (16, 16), (9, 9, 9))

    def split(place: Path) -> str | None:
        parts = [load(str(place), each) for each in ("train", "test")]
        return None if all(map(len, parts)) else "an empty split"

    for name, count, expected in (
        ("empty", 0, "refused"),
        ("one", 1, "refused"),
        ("two", 2, "read"),
        ("constant", 40, "read"),
    ):
        place = folder / name
        place.mkdir()
        for number in range(count):
            constant.save(place / f"{number}.png")
        tried(counts, f"folder: {name}", str(place), partial(split, place), expected)
    for name in ("missing", "train/test", "\n"):
        place = folder / name
        tried(counts, "folder: not there", "expected", partial(split, place), "refused")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20, metavar="N", help="images to break (20)")
    parser.add_argument("--every", type=int, default=1000, metavar="N", help="bytes between cuts")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        wrong = run(Path(scratch), options.images, options.every)
    return int(wrong > 0)


def run(folder: Path, count: int, every: int) -> int:
    """All of it in a folder; prints the counts, and returns how many were wrong."""
    cache, total = folder / "cache", Counts()
    quietly = mock.patch("mqvae.data.folder.say")  # what is said is in the images' remarks
    with mock.patch.dict(os.environ, MQVAE_CACHE=str(cache)), quietly:
        for part in (
            images(folder / "images", count),
            idx(folder / "idx", every),
            cifar(folder / "cifar", every),
            svhn(folder / "svhn", every),
            shards(folder / "shards", every),
            folders(folder / "folders"),
        ):
            total.read += part.read
            total.refused += part.refused
            total.wrong += part.wrong
    if left := files_under(cache):
        total.wrong.append(f"{len(left)} file(s) left in the cache: {min(left)}")
    print(total.table())
    print(f"\n{len(total.wrong):,} wrong", *total.wrong[:50], sep="\n  ")
    return len(total.wrong)


if __name__ == "__main__":
    sys.exit(main())

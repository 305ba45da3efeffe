"""A folder of a hundred thousand images, or a million: listed, listed again, trained on.

    python benchmarks/large_folder.py [--images 100000 --batches 50 --folder FOLDER]

Makes a folder of links to a few hundred small images (none are made where it is there already), and
says how long the first and the second listing take, and how much memory this process holds after
each and after many batches. The list is kept in a cache of its own beside the images.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mqvae.data import Batches, load


def make(folder: Path, count: int) -> None:
    """A thousand links a folder, to images that have no more than some systems allow."""
    if folder.exists():
        return
    originals = folder.parent / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(256):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(originals / f"{i}.png")
    for number in range(count):
        inside = folder / f"class-{number // 1000:04}"
        if number % 1000 == 0:
            inside.mkdir(parents=True)
        os.link(originals / f"{number % 256}.png", inside / f"image-{number:08}.png")
    for path, _, _ in os.walk(folder):  # as if it had been there for an hour
        os.utime(path, (time.time() - 3600, time.time() - 3600))


def held() -> str:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{pages * resource.getpagesize() / 2**20:.0f} MiB held, {most / 2**10:.0f} at most"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = options.folder or Path(scratch)
        os.environ["MQVAE_CACHE"] = str(Path(scratch) / "cache")
        began = time.perf_counter()
        make(base / "images", options.images)
        print(f"{options.images:,} links: made in {time.perf_counter() - began:.1f} s")
        print(f"before: {held()}")
        for what in ("listed", "listed again"):
            began = time.perf_counter()
            images = load(
                str(base / "images"),
                "train",
                side=64,
                channels=3,
                memory=False,
                workers=options.workers,
            )
            print(f"{what}: {time.perf_counter() - began:.2f} s, {held()}")
        batches = Batches(images, 64, seed=0)
        batches.next()
        for _ in range(4):
            began = time.perf_counter()
            for _ in range(options.batches):
                batches.next()
            rate = 64 * options.batches / (time.perf_counter() - began)
            print(f"{options.batches} batches of 64: {rate:.0f} images/s, {held()}")
        batches.close()


if __name__ == "__main__":
    main()

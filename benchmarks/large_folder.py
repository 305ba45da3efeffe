"""A folder of a hundred thousand images, or a million: listed, trained on, encoded.

    python -m benchmarks.large_folder [--images 100000 --steps 100 --encode 20000 --folder FOLDER]
    python -m benchmarks.large_folder --kills 6 --side 8

Makes a folder of links to a few hundred small images (none are made where it is there already), and
says how long the first and the second listing take, and how much memory this process holds after
each; then while a small network is trained on them, and while it encodes them into pieces, which it
does of all there are, or of as many of the pieces as hold `--encode` images. The list is kept in a
cache of its own.

With `--kills` it runs `mqvae encode` instead, on a hundredth and a tenth of the images and on all
of them, and prints its peak memory; then once more on all, ended by SIGKILL at random moments and
run again, and compares the codes with those of the run that nobody killed.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mqvae.config import Settings, load_preset
from mqvae.data import Reading, load, load_all
from mqvae.tokenizer import Tokenizer
from mqvae.tokenizer.shards import Shards, shards_of
from mqvae.training import begin


def make(folder: Path, count: int, side: int) -> None:
    """A thousand links a folder, to images that have no more than some systems allow."""
    if folder.exists():
        return
    originals = folder.parent / f"originals-{side}"
    originals.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(256):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels = pixels.repeat(side // 8, 0).repeat(side // 8, 1)
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


def train(images: Path, run: Path, options: argparse.Namespace) -> None:
    """Steps of a small network, none of which takes long enough to hide what data costs."""
    size: dict[str, Any] = {
        "steps": options.steps,
        "data": {"name": str(images), "side": options.side, "channels": 3, "batch_size": 64},
        "network": {"width": 8},
        "quantizer": {"init_args": {"num_codes": 64, "dim": 8}},
        "trainer": {"accelerator": "cpu"},
    }
    size["data"] |= {"memory": False, "workers": options.workers}
    training = begin(Settings.of(load_preset("fashion-mnist-demo", size)), run)
    print(f"ready to train: {held()}", flush=True)
    began = time.perf_counter()
    try:
        for step in range(1, options.steps + 1):
            x, y = training.parts.batches.next()
            training.parts.train(x, y)
            if step % max(1, options.steps // 4) == 0:
                rate = 64 * step / (time.perf_counter() - began)
                print(f"{step} steps of 64: {rate:.0f} images/s, {held()}", flush=True)
    finally:
        training.parts.close()


def encode(images: Path, scratch: Path, options: argparse.Namespace) -> None:
    """Shards, one after another."""
    tokenizer = Tokenizer.from_run(scratch / "run", device="cpu")
    reading = Reading(side=options.side, channels=3, memory=False, workers=options.workers)
    pieces = Shards(scratch / "codes", tokenizer, load_all(images, reading))
    pieces.begin(going_on=pieces.check(overwrite=False))
    count = len(pieces.index["pieces"])
    some = range(count) if options.encode is None else range(-(-options.encode // pieces.size))
    print(f"ready to encode: {held()}", flush=True)
    for rank in some[:count]:
        began = time.perf_counter()
        written = pieces.encode(rank=rank, world_size=count)
        rate = written / (time.perf_counter() - began)
        print(f"piece {rank + 1} of {count}: {rate:.0f} images/s, {held()}", flush=True)


def run_encode(run: Path, images: Path, out: Path, *, kill_after: float | None = None) -> float:
    """`mqvae encode` in a process of its own, killed or not; its peak memory in MiB."""
    command = [sys.executable, "-m", "mqvae", "encode", str(run), str(images), "--fit"]
    command += ["--out", str(out), "--accelerator", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        timer = None if kill_after is None else threading.Timer(kill_after, process.kill)
        if timer is not None:
            timer.start()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if timer is not None:
            timer.cancel()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"mqvae encode ended with {process.returncode}")
    return used.ru_maxrss / 2**10


def killed(base: Path, scratch: Path, options: argparse.Namespace) -> None:
    """Peak memory by the number of images; codes of a run that is killed again and again."""
    size: dict[str, Any] = {
        "steps": 1,
        "data": {"side": options.side, "channels": 3, "batch_size": 32},
        "network": {"width": 8},
        "quantizer": {"init_args": {"num_codes": 64, "dim": 8}},
        "trainer": {"accelerator": "cpu"},
    }
    sizes = [options.images // 100, options.images // 10, options.images]
    for count in sizes:
        make(base / f"images-{count}", count, options.side)
    size["data"] |= {"name": str(base / f"images-{sizes[0]}")}
    begin(Settings.of(load_preset("fashion-mnist-demo", size)), scratch / "run").fit()
    for count in sizes:
        began = time.perf_counter()
        peak = run_encode(scratch / "run", base / f"images-{count}", scratch / f"codes-{count}")
        seconds = time.perf_counter() - began
        print(f"{count:,} images: {seconds:.1f} s, {peak:.0f} MiB at most", flush=True)
    whole, again = scratch / f"codes-{sizes[-1]}", scratch / "codes-killed"
    rng = np.random.default_rng(0)
    for number in range(options.kills):
        moment = float(rng.uniform(0, seconds))
        images = base / f"images-{sizes[-1]}"
        run_encode(scratch / "run", images, again, kill_after=moment)
        there = len(list(again.glob("*.npz"))) if again.is_dir() else 0
        print(f"kill {number + 1} after {moment:.1f} s: {there} pieces", flush=True)
    run_encode(scratch / "run", images, again)
    names = [sorted(path.name for path in folder.iterdir()) for folder in (whole, again)]
    same = names[0] == names[1] and all(
        np.array_equal(one.codes, other.codes) and one == replace(other, codes=one.codes)
        for one, other in zip(shards_of(whole), shards_of(again), strict=True)
    )
    print(f"codes of {sizes[-1]:,} images after {options.kills} kills are the same: {same}")
    if not same:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--encode", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", type=int, default=64, help="a multiple of 8")
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = options.folder or Path(scratch)
        os.environ["MQVAE_CACHE"] = str(Path(scratch) / "cache")
        if options.kills:
            killed(base, Path(scratch), options)
            return
        began = time.perf_counter()
        make(base / "images", options.images, options.side)
        print(f"{options.images:,} links: made in {time.perf_counter() - began:.1f} s")
        print(f"before: {held()}")
        for what in ("listed", "listed again"):
            began = time.perf_counter()
            images = load(
                str(base / "images"),
                "train",
                side=options.side,
                channels=3,
                memory=False,
                workers=options.workers,
            )
            print(f"{what}: {time.perf_counter() - began:.2f} s, {held()}")
        del images
        train(base / "images", Path(scratch) / "run", options)
        encode(base / "images", Path(scratch), options)


if __name__ == "__main__":
    main()

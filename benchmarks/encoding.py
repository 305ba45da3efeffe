"""Codes per second of `mqvae encode` from a folder to pieces, beside the bare encoder.

    python -m benchmarks.encoding [--rounds 5 --images 2000 --side 64]

Both encode the same images with the same network; the bare encoder has them in memory as batches,
`encode` decodes them from PNG files, names and writes them. They take turns; the ratios are those
of their medians, of the time on the clock and of the processor's: as on a machine with no core to
spare, however busy this one is.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import alternate
from mqvae.config import Settings, load_preset
from mqvae.data import Reading, load_all
from mqvae.tokenizer import BATCH_SIZE, Tokenizer
from mqvae.tokenizer.shards import Shards
from mqvae.training import begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rng = np.random.default_rng(0)
        (folder / "images").mkdir()
        for i in range(options.images):
            small = rng.integers(0, 256, (options.side // 8, options.side // 8, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize((options.side, options.side))
            image.save(folder / "images" / f"{i:06}.png")
        size = {
            "steps": 1,
            "data": {"name": str(folder / "images"), "side": options.side, "batch_size": 8},
            "network": {"width": options.width},
            "quantizer": {"init_args": {"num_codes": 1024, "dim": 64}},
        }
        begin(Settings.of(load_preset("fashion-mnist-demo", size)), folder / "run")
        tokenizer = Tokenizer.from_run(folder / "run")
        images = load_all(folder / "images", Reading(side=options.side, channels=3, memory=False))
        pixels, _ = images.take(torch.arange(len(images)))
        batches = (pixels / 255).split(BATCH_SIZE)

        def bare() -> None:
            for x in batches:
                tokenizer.encode_batch(x).cpu()

        def pieces() -> None:
            shutil.rmtree(folder / "codes", ignore_errors=True)
            made = Shards(folder / "codes", tokenizer, images)
            made.begin(going_on=made.check(overwrite=False))
            made.encode()
            made.finish()

        used: dict[str, list[float]] = {"bare encoder": [], "encode": []}

        def counted(name: str, make: Callable[[], None]) -> Callable[[], None]:
            def call() -> None:
                began = time.process_time()
                make()
                used[name].append(time.process_time() - began)

            return call

        timings = alternate(
            {name: counted(name, make) for name, make in zip(used, (bare, pieces), strict=True)},
            rounds=options.rounds,
        )
        codes = len(images) * tokenizer.encode_batch(batches[0][:1]).numel()
        for name, timing in timings.items():
            print(
                f"{name}: {timing.seconds:.2f} s, {codes / timing.seconds:,.0f} codes/s, "
                f"{statistics.median(used[name]):.2f} s of the processor"
            )
        bare_seconds, seconds = (statistics.median(each) for each in used.values())
        print(
            f"codes per second against the bare encoder: {1 / timings['encode'].ratio:.3f}, by the "
            f"processor's time {bare_seconds / seconds:.3f}"
        )


if __name__ == "__main__":
    main()

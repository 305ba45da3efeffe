"""A long run at a tiny size: whether memory, open files, threads and step time stay flat.

    python -m benchmarks.long_run [--steps 20000 --method methods/mq-vae --folder FOLDER]

Trains on the digits with rows of metrics.csv, TensorBoard, validation and checkpoints as any run,
and looks at the process every 250 steps. What it prints is of the steps after the first 1,000.
Linux; ends with exit code 1 if something grew.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from mqvae.config import Settings, load_preset
from mqvae.training import Training, begin

EVERY = 250
SETTLED = 1000  # steps until allocators and caches have what they keep
SMALL = {
    "data": {"name": "digits", "side": 8, "batch_size": 16},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 32, "dim": 4}},
    "trainer": {"accelerator": "cpu", "log_every": 100, "checkpoint_every": 500},
}
MOST = {  # in all, over the settled steps
    "memory (MiB)": 16.0,
    "open files": 0.0,
    "threads": 0.0,
    "step time (ratio)": 0.2,
}


class Watch:
    """Looks at this process now and then.

    Args:
        every: Steps between two looks.
        settled: Steps before the first.
    """

    def __init__(self, every: int = EVERY, settled: int = SETTLED) -> None:
        self.every, self.settled = every, settled
        self.steps: list[int] = []
        self.found: dict[str, list[float]] = {name: [] for name in MOST}
        self.times: list[float] = []
        self.before = time.process_time()

    def __call__(self, training: Training) -> None:
        now = time.process_time()  # of the processor, which others on the machine disturb less
        self.times.append(now - self.before)
        self.before = now
        if training.step % self.every or training.step < self.settled:
            return
        self.steps.append(training.step)
        for name, value in (
            ("memory (MiB)", _held()),
            ("open files", len(os.listdir("/proc/self/fd"))),
            ("threads", len(os.listdir("/proc/self/task"))),
            # The quickest tenth: rows, checkpoints and what else the machine does are slower.
            ("step time (ratio)", statistics.quantiles(self.times[-self.every :], n=10)[0]),
        ):
            self.found[name].append(value)

    def report(self) -> bool:
        """Print what was found; whether all is flat."""
        flat = True
        times = self.found["step time (ratio)"]
        first = statistics.median(times[: -(-len(times) // 4)])
        self.found["step time (ratio)"] = [t / first for t in times]
        print(f"steps {self.steps[0]:,} to {self.steps[-1]:,}, {len(self.steps)} looks")
        print(f"quickest tenth of the steps: {1000 * first:.2f} ms in the first quarter of them")
        for name, values in self.found.items():
            slope = statistics.linear_regression(self.steps, values).slope
            grown = slope * (self.steps[-1] - self.steps[0])
            fits = grown <= MOST[name]
            flat &= fits
            print(
                f"{name}: {values[0]:.2f} first, {values[-1]:.2f} last, {max(values):.2f} at most, "
                f"trend {1000 * slope:+.4f} each 1,000 steps{'' if fits else ': GROWS'}"
            )
        return flat


def _held() -> float:
    """MiB that this process has written to, in memory or swapped out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {name: text.split() for name, _, text in (line.partition(":") for line in lines)}
    return sum(int(sizes[name][0]) for name in ("RssAnon", "VmSwap")) / 2**10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--method", default="methods/mq-vae", help="preset of the rule")
    parser.add_argument("--folder", type=Path, help="scratch (default: a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch = Watch()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        began = time.perf_counter()
        settings = Settings.of(load_preset(options.method, SMALL, {"steps": options.steps}))
        begin(settings, Path(scratch) / "run").fit(after_step=watch)
        print(f"{options.method}: {options.steps:,} steps, {time.perf_counter() - began:.0f} s")
    return 0 if watch.report() else 1


if __name__ == "__main__":
    sys.exit(main())

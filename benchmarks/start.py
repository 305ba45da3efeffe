"""Seconds to the first quantized batch, to the first update, and until a run is measured.

    python -m benchmarks.start [TREE...] [--rounds 5 --preset digits-tiny]

A tree is a folder with mqvae in it, as `git worktree add FOLDER COMMIT` makes; this one if none is
named. Several take turns, and each is started anew every time. Prints medians, of the time on the
clock and of the processor's, which others on the machine disturb less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = (
    "import mqvae, torch; "
    "mqvae.VectorQuantizer(num_codes=1024, dim=64)(torch.randn(64, 7, 7, 64)); "
    "open({done!r}, 'w').write('\\n\\n')"
)


def seconds(command: list[str], tree: Path, file: Path) -> tuple[float, float]:
    """On the clock and of the processor, until a process has written two lines."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (file.is_file() and len(file.read_text().splitlines()) > 1):
        if process.poll():
            raise RuntimeError(f"{command} ended early.")
        time.sleep(0.005)
    passed = time.perf_counter() - began
    process.kill()
    _, _, used = os.wait4(process.pid, 0)
    return passed, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="*", type=Path, default=[Path(__file__).parent.parent])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="digits-tiny")
    options = parser.parse_args()
    found: dict[tuple[str, Path], list[tuple[float, float]]] = {}
    program = ["-m", "mqvae"]
    train = [*program, "train", options.preset, "--trainer.accelerator", "cpu", "--out"]
    for _ in range(options.rounds):
        for tree in options.trees:
            with tempfile.TemporaryDirectory() as folder:
                done, run, short = (Path(folder) / name for name in ("done", "run", "short"))
                two_updates = [*train, str(short), "--steps", "2"]
                seconds(two_updates, tree.resolve(), short / "summary.json")
                first = [*train, str(run), "--trainer.log_every", "1"]
                # Training has measured the last checkpoint itself.
                evaluate = [*program, "evaluate", str(short), "--checkpoint", "best"]
                for what, command, file in (
                    ("first quantized batch", ["-c", BATCH.format(done=str(done))], done),
                    ("first update", first, run / "metrics.csv"),
                    ("run measured", evaluate, short / "evaluations" / "test-best.json"),
                ):
                    taken = seconds(command, tree.resolve(), file)
                    found.setdefault((what, tree), []).append(taken)
    for (what, tree), all_of_them in sorted(found.items(), key=lambda item: item[0][0]):
        clock, processor = (statistics.median(each) for each in zip(*all_of_them, strict=True))
        print(f"{what:<22} {clock:5.2f} s, {processor:5.2f} s of the processor  {tree}")


if __name__ == "__main__":
    main()

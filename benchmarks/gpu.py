"""All that there is to measure on a GPU, in one command; it resumes where it was stopped.

    python -m benchmarks gpu --out docs [--minutes 60]

The CUDA tests, then every section of `python -m benchmarks` that has no results of this GPU in DIR
yet, then Table 1 at the paper's sizes for so many minutes, which the same command continues. Writes
DIR/performance*.md and DIR/performance/, and the finished runs of Table 1 to the results that
`python -m reproduction table-1 --scale paper --published` shows.
"""

import argparse
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path

from benchmarks import CHECKS, ON_CPUS, SECTIONS, file_of, measure, write
from benchmarks.table import Cell, Table, hardware
from mqvae.errors import MqvaeError
from mqvae.files import read_json

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "reproduction" / "results"
TESTS = ("tests/test_cuda.py", "tests/core/test_maps.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code: 1 if a test fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR")
    parser.add_argument(
        "--minutes", type=float, default=60, metavar="N", help="of Table 1 (default: %(default)s)"
    )
    small = parser.add_argument_group("smaller, to see that it works")
    small.add_argument("--accelerator", default="cuda", choices=("cuda", "cpu"))
    small.add_argument("--scale", default="paper", choices=("paper", "debug"))
    small.add_argument("--sections", nargs="*", default=[s for s in SECTIONS if s != ON_CPUS])
    small.add_argument("--rounds", type=int, metavar="N", help="turns of each contestant")
    small.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this")
    small.add_argument("--results", type=Path, metavar="FILE", help="of Table 1")
    options = parser.parse_args(arguments)
    device = options.accelerator
    try:
        machine = hardware(device)
    except (AssertionError, RuntimeError) as error:
        print(f"benchmarks: error: PyTorch finds no GPU here: {error}", file=sys.stderr)
        return 2
    checks = [tested(device)]
    keep(options.out, device, checks)
    for section in options.sections:
        if known(file_of(options.out, section, device), machine):
            continue
        for table in measure(
            section, options.out, device=device, rounds=options.rounds, only=options.only
        ):
            print(table.text(), end="\n\n", flush=True)
    results = options.results or PUBLISHED / f"paper-{options.scale}.jsonl"
    checks.append(table_1(options.scale, device, results, 60 * options.minutes))
    keep(options.out, device, checks)
    print(options.out / "performance.md")
    return 1 if checks[0]["failed"] else 0


def known(file: Path, machine: dict[str, Cell]) -> bool:
    """Whether results of this hardware and these versions are there."""
    return file.is_file() and read_json(file)["hardware"] == machine


def keep(out: Path, device: str, checks: Sequence[dict[str, Cell]]) -> None:
    """What was checked, as a section of the page."""
    table = Table(CHECKS, "What was checked", {"device": device}, checks)
    write(CHECKS, [table], out, device=device, rounds=None, only="")


def tested(device: str) -> dict[str, Cell]:
    """The tests that are of a device: how many passed, failed and were skipped."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-k", device, f"--junitxml={report}"]
        done = subprocess.run([*command, *TESTS], cwd=ROOT, check=False)
        if not report.is_file():
            raise MqvaeError(f"the tests could not be run: pytest ended with {done.returncode}.")
        suite = next(xml.etree.ElementTree.parse(report).iter("testsuite"))
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return {
        "what": f"tests of {device}",
        "done": count["tests"] - failed - count["skipped"],
        "failed": failed,
        "skipped": count["skipped"],
        "minutes": (time.perf_counter() - began) / 60,
    }


def lines_of(results: Path) -> int:
    """Number of results in a file, which may not be there yet."""
    return len(results.read_text().splitlines()) if results.is_file() else 0


def table_1(scale: str, device: str, results: Path, seconds: float) -> dict[str, Cell]:
    """Some time of Table 1: how many results that added."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    began, before = time.perf_counter(), lines_of(results)
    command = [sys.executable, "-m", "reproduction", "table-1", "--scale", scale]
    runs = ["--out", f"runs/reproduce/{scale}", "--accelerator", device]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [*command, "--results", str(results), *runs], env={**os.environ, "PYTHONPATH": path}
    ) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # A training writes a checkpoint first. Ctrl-C is ignored where this was begun by nohup.
            process.terminate()
            code = process.wait()
    found = lines_of(results)
    return {
        "what": f"Table 1, scale {scale}: results added on {today}",
        "done": found - before,
        "failed": int(code not in (0, 130, -signal.SIGTERM)),
        "minutes": (time.perf_counter() - began) / 60,
    }


if __name__ == "__main__":
    sys.exit(main())

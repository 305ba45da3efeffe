"""The commands of a tokenizer's life in places that are not like the developer's machine.

    python -m benchmarks.everywhere [--environments NAME ...] [--folder FOLDER]

In each environment digits-tiny is trained for three steps, measured, reported, encoded and decoded,
by the program itself. Prints a line each, and ends with exit code 1 if a command failed or said
anything on the way that a user could not read. Without a network is, on Linux, in a network
namespace of its own, if that may be made; elsewhere proxies that nobody answers stand for it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

NOWHERE = "/proc/nonexistent" if Path("/proc").is_dir() else "/nonexistent"
HOME = dict.fromkeys(
    ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME", "HF_HOME", "MQVAE_CACHE"), NOWHERE
)
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
NAMED = "Größe und 大きさ"  # a folder with spaces and letters beyond ASCII

ENVIRONMENTS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "no writable home": (HOME, "plain"),
    "another locale": (ASCII, "plain"),
    "spaces and letters beyond ASCII": ({}, NAMED),
    "offline": (OFFLINE, "plain"),
    "all at once": ({**HOME, **ASCII, **OFFLINE}, NAMED),
}
TINY = [
    *["--steps", "3", "--network.width", "8", "--quantizer.num_codes", "8", "--data.side", "8"],
    *["--data.batch_size", "50", "--trainer.accelerator", "cpu"],
]


def commands(folder: Path) -> dict[str, list[str]]:
    run, codes, images = folder / "a run", folder / "codes.npz", folder / "decoded"
    return {
        "train": ["train", "digits-tiny", *TINY, "--out", str(run)],
        "resume": ["train", "--resume", str(run)],
        "evaluate": ["evaluate", str(run), "--accelerator", "cpu"],
        "report": ["report", str(run), "--out", str(folder / "report.html")],
        "encode": ["encode", str(run), "test", "--out", str(codes), "--accelerator", "cpu"],
        "decode": ["decode", str(run), str(codes), "--out", str(images), "--accelerator", "cpu"],
    }


def alone() -> list[str]:
    """What runs a command without a network, if this user may."""
    command = ["unshare", "--net"]
    may = (
        shutil.which("unshare")
        and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    )
    return command if may else []


def tried(environment: Mapping[str, str], folder: Path) -> list[str]:
    """What went wrong, a line each."""
    folder.mkdir(parents=True)
    without_network = alone() if "http_proxy" in environment else []
    wrong = []
    for name, arguments in commands(folder).items():
        done = subprocess.run(
            [*without_network, sys.executable, "-m", "mqvae", *arguments],
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            check=False,
            timeout=600,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode or "Traceback" in said or "Warning:" in said:
            wrong.append(f"{name}: exit code {done.returncode}\n{said}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(ENVIRONMENTS)
    parser.add_argument("--environments", nargs="*", default=names, choices=names, metavar="NAME")
    parser.add_argument("--folder", type=Path, help="scratch (default: a temporary folder)")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for number, name in enumerate(options.environments):
            environment, inside = ENVIRONMENTS[name]
            wrong = tried(environment, Path(scratch) / str(number) / inside)
            failed += len(wrong)
            of = len(commands(Path()))
            print(f"{name}: {of - len(wrong)} of {of} commands", *wrong, sep="\n  ", flush=True)
    print(f"wrong: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

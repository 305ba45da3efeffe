"""Runs killed at random moments, resumed, and compared with runs that were left alone.

    python -m campaigns.kills [--kills 25 --seed 0 --rules Joint Meta ... --processes 1]
                                       [--folder FOLDER] [--skip-disk]

A run is killed by SIGKILL at a moment drawn at random, resumed, killed again, until it ends by
itself; then its weights, moments, random state and metrics.csv, all but times, must be those of a
run that was not killed, to the bit. About every other kill falls on an operation on the disk drawn
at random, half of it done: most of them write a checkpoint. Then a run is asked to stop by SIGTERM,
and one runs out of disk: a small tmpfs that fills up, or is read-only when it is resumed (Linux,
root).

Prints counts, and ends with exit code 1 if anything was lost. Workers are forks of this process,
which never computes anything: starting Python anew would take most of the time.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from mqvae.config import Settings, load_preset
from mqvae.data import load
from mqvae.runs import Run
from mqvae.training import Interrupted, ProcessLost, begin, resume

STEPS = 40
SMALL = {
    "steps": STEPS,
    "data": {"name": "digits", "side": 8, "batch_size": 32, "validation": 40, "limit": 200},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 16, "dim": 4}},
    "trainer": {"accelerator": "cpu", "log_every": 2, "checkpoint_every": 4, "loggers": []},
}
REPLACED = {"class_path": "mqvae.ReplaceUnused", "init_args": {"after": 2}}
RULES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Joint": ("methods/vq-vae", {"trainer": {"ema_decay": 0.9}}),
    "Meta": ("methods/mq-vae", {}),
    "EMA": (
        "methods/ema-short",
        {"quantizer": {"init_args": {"num_codes": 80, "replacement": REPLACED}}},
    ),
    "VQ-GAN": (
        "methods/mq-vae",
        {
            "data": {"side": 16},
            "task": {
                "class_path": "mqvae.Adversarial",
                "init_args": {
                    "perceptual_weight": 0.0,
                    "start": 10,
                    "discriminator_layers": 2,
                    "discriminator_width": 4,
                },
            },
        },
    ),
}
TIMES = {"seconds", "waited"}
TIMED_COLUMNS = {"seconds", "data_wait"}


def settings_of(rule: str) -> Settings:
    preset, delta = RULES[rule]
    return Settings.of(load_preset(preset, SMALL, delta))


# -- workers ---------------------------------------------------------------------------------------


def train(settings: Settings, folder: Path) -> int:
    """Begin or resume, to the end; the exit code."""
    try:
        if Run.resumable(folder):
            training = resume(Run(folder))
        else:
            training = begin(settings, folder, overwrite=folder.exists())
        training.fit()
    except Interrupted as stop:
        return 128 + stop.signal_number
    except ProcessLost:
        return 3
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def forked(work: Callable[[], int], log: Path, environment: Mapping[str, str] | None = None) -> int:
    """The id of a process that works, its words in a file."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environment or {})
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def operations() -> Iterator[tuple[Any, str]]:
    """Functions by which a run's files are written."""
    for name in ("write_bytes", "write_text", "mkdir", "rename"):
        yield Path, name
    for name in ("fsync", "replace"):
        yield os, name
    yield shutil, "rmtree"


def dying_at(moment: int, count: list[int]) -> None:
    """From now on the operation of this number on the disk is this process's last, half done."""
    for owner, name in operations():
        original = getattr(owner, name)

        def operation(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] != moment:
                return original(*args, **kwargs)
            if name.startswith("write"):
                original(args[0], args[1][: len(args[1]) // 2])
            elif random.random() < 0.5:
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, operation)


# -- what must be alike ----------------------------------------------------------------------------


def content(folder: Path) -> dict[str, Any]:
    """All of a finished run but times, comparable."""
    found: dict[str, Any] = {}
    for name in ("last", "best"):
        checkpoint = Run(folder).load(name)
        for kind in ("model", "training", "average"):
            for key, tensor in (getattr(checkpoint, kind) or {}).items():
                found[f"{name} {kind} {key}"] = tensor.numpy().tobytes()
        found[f"{name} state"] = {k: v for k, v in checkpoint.state.items() if k not in TIMES}
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found["metrics.csv"] = [{k: r[k] for k in r.keys() - TIMED_COLUMNS} for r in rows]
    summary = json.loads((folder / "summary.json").read_text())
    found["summary.json"] = {name: summary[name] for name in summary["figures"]}
    for path in (folder / "evaluations").glob("*.csv"):
        found[path.name] = path.read_bytes()
    return found


def differences(folder: Path, other: Path) -> list[str]:
    one, two = content(folder), content(other)
    return sorted(k for k in one.keys() | two.keys() if one.get(k) != two.get(k))


# -- the campaign ----------------------------------------------------------------------------------


class Campaign:
    """Kills, and what came of them."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch = scratch
        self.random = random.Random(seed)
        self.wrong = 0

    def say(self, words: str) -> None:
        print(words, flush=True)

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong += 1
            self.say(f"  WRONG: {what}")

    def start(
        self, rule: str, folder: Path, processes: int = 1, dies_at: tuple[int, int] | None = None
    ) -> list[int]:
        """The processes of a training; the first argument of `dies_at` says which dies, by rank."""
        settings = settings_of(rule)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = str(taken.getsockname()[1])
        started = []
        for rank in range(processes):
            seed = self.random.random()

            def work(rank: int = rank, seed: float = seed) -> int:
                random.seed(seed)
                if dies_at is not None and dies_at[0] == rank:
                    dying_at(dies_at[1], [0])
                return train(settings, folder)

            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "TORCHELASTIC_RUN_ID": "campaign",
            }
            several = environment if processes > 1 else None
            started.append(forked(work, self.scratch / "workers.log", several))
        return started

    def end(self, processes: list[int]) -> list[int]:
        """Exit codes; negative ones are signals."""
        return [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in processes]

    def kills(self, rule: str, kills: int, processes: int) -> None:
        name = f"{rule}-{processes}"
        reference = self.scratch / f"{name}-reference"
        began = time.monotonic()
        codes = self.end(self.start(rule, reference, processes))
        whole = time.monotonic() - began
        self.expect(codes == [0] * processes, f"{rule}, not killed, ended with {codes}")
        again = self.scratch / f"{name}-again"
        self.end(self.start(rule, again, processes))
        self.expect(not differences(again, reference), "the same run again is another one")
        done = {"at a moment": 0, "in an operation on the disk": 0}
        in_a_checkpoint = runs = resumed = alike = too_late = 0
        while sum(done.values()) < kills:
            folder = self.scratch / f"{name}-{runs}"
            runs += 1
            while True:
                there = Run.resumable(folder)
                on_disk = self.random.random() < 0.5
                enough = sum(done.values()) >= kills
                at = self.random.randrange(1, 120) if on_disk and not enough else 0
                started = self.start(rule, folder, processes, (0, at) if at else None)
                resumed += there
                if not on_disk and not enough:
                    time.sleep(self.random.uniform(0, whole))
                    victim = self.random.choice(started)
                    os.kill(victim, signal.SIGKILL)
                codes = self.end(started)
                if -signal.SIGKILL not in codes:
                    too_late += not enough
                    break
                done["in an operation on the disk" if on_disk else "at a moment"] += 1
                in_a_checkpoint += any(folder.glob("checkpoints/*.partial"))
                others = set(codes) - {-signal.SIGKILL}
                self.expect(others <= {0, 3}, f"{folder.name} ended with {codes}")
            self.expect(codes == [0] * processes, f"{folder.name} ended with {codes}")
            different = differences(folder, reference)
            self.expect(not different, f"{folder.name} differs in {different[:5]}")
            alike += not different
            shutil.rmtree(folder)
        self.say(
            f"{rule}, {processes} process(es): {sum(done.values())} kills ("
            + ", ".join(f"{n} {what}" for what, n in done.items())
            + f"; {in_a_checkpoint} with a checkpoint half written), {resumed} resumed, {runs} "
            f"runs of {STEPS} steps, {alike} of them alike to the bit"
        )

    def sigterm(self, rule: str) -> None:
        slowest = 0.0
        for attempt in range(3):
            folder = self.scratch / f"{rule}-sigterm-{attempt}"
            [process] = self.start(rule, folder)
            while not Run.resumable(folder):
                time.sleep(0.01)
            time.sleep(self.random.uniform(0, 0.3))
            asked = time.monotonic()
            os.kill(process, signal.SIGTERM)
            [code] = self.end([process])
            slowest = max(slowest, time.monotonic() - asked)
            # Before its first step a run ends at once; after the last it has ended already.
            self.expect(code in (0, 143, -15), f"SIGTERM ended with {code}")
        self.expect(slowest < 10, f"SIGTERM took {slowest:.1f} s")
        self.say(
            f"{rule}: SIGTERM ends the run, its checkpoint written, in {slowest:.2f} s at most"
        )

    def disk(self, rule: str) -> None:
        """A disk that fills up while a run trains, and one that is read-only when it resumes."""
        reference = self.scratch / f"{rule}-disk-reference"
        self.end(self.start(rule, reference))
        mount = self.scratch / "disk"
        mount.mkdir()
        with mounted(mount):
            for what in ("full", "read-only"):
                folder = mount / what
                [process] = self.start(rule, folder)
                while not (folder / "checkpoints" / "last.previous").is_dir():
                    time.sleep(0.005)
                if what == "full":
                    with suppress(OSError), (mount / "filler").open("wb", buffering=0) as file:
                        while True:
                            file.write(b"\0" * 4096)
                else:
                    os.kill(process, signal.SIGKILL)
                    self.end([process])
                    remount(mount, "ro")
                    [process] = self.start(rule, folder)
                [code] = self.end([process])
                self.expect(code == 2, f"a {what} disk ended with {code}")
                step = Run(folder).load("last").state["step"]
                self.expect(step < STEPS, f"the {what} disk was met too late")
                if what == "full":
                    (mount / "filler").unlink()
                else:
                    remount(mount, "rw")
                [code] = self.end(self.start(rule, folder))
                self.expect(code == 0, f"resumed after a {what} disk it ended with {code}")
                different = differences(folder, reference)
                self.expect(not different, f"after a {what} disk differs in {different[:5]}")
                self.say(
                    f"{rule}: a disk that is {what}: exit code 2, the checkpoint of step {step} "
                    f"whole, resumed, {'not ' * bool(different)}alike to the bit"
                )
                shutil.rmtree(folder)


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Inside, a folder is a file system of its own of 4 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def remount(folder: Path, how: str) -> None:
    """Make a file system read-only, or writable again."""
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=25, help="of each rule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    parser.add_argument("--skip-disk", action="store_true")
    parser.add_argument("--folder", type=Path, help="scratch (default: a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load("digits", "train")  # what workers would import one by one
    if options.processes > 1:
        import lightning_fabric  # noqa: F401
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        campaign = Campaign(Path(scratch), options.seed)
        for rule in options.rules:
            campaign.kills(rule, options.kills, options.processes)
            if options.processes == 1:
                campaign.sigterm(rule)
        if options.processes == 1 and not options.skip_disk:
            if os.name == "posix" and os.geteuid() == 0 and shutil.which("mount"):
                campaign.disk(options.rules[0])
            else:
                campaign.say("disks: left out, since this is not root")
    campaign.say(f"wrong: {campaign.wrong}")
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

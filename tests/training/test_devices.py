"""Training in two processes: what one would have done with the whole batch, and what is lost."""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file
from small import settings_of

from mqvae.cli import main
from mqvae.config import Settings
from mqvae.data import Batches
from mqvae.runs import Run
from mqvae.training import NotFinite, Training, begin

STEPS = 10
SMALL = {
    "steps": STEPS,
    "data": {"name": "digits", "side": 8, "batch_size": 48},
    "network": {"width": 8, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 24, "dim": 8}},
    "optimizer": {"network_lr": 2e-3, "codebook_lr": 3e-3},
    "trainer": {"accelerator": "cpu", "log_every": 5, "checkpoint_every": 10, "loggers": []},
}
REPLACE = {
    "quantizer": {
        "init_args": {
            "num_codes": 80,
            "replacement": {"class_path": "mqvae.ReplaceUnused", "init_args": {"after": 2}},
        }
    }
}
# Every rule in two processes is in test_processes.py; here are whole runs: of one pass a step,
# of averages, of a look-ahead, and of steps that change on the way.
CASES = {
    "vq-vae": {},
    "ema-replace": REPLACE,
    "mq-vae-exact": {},
    "warm-start-gradual": {},
}


def settings(name):
    method = name.removesuffix("-replace")
    return settings_of(f"methods/{method}", SMALL, over=(CASES[name],))


def book_of(training):
    """The codebook to the bit."""
    table = training.parts.network.quantizer.table().detach()
    return hashlib.sha256(table.numpy().tobytes()).hexdigest()


def trained(name, folder):
    """A run, and its codebook after every step."""
    books = []

    def note(training):
        books.append(book_of(training))

    begin(settings(name), folder).fit(after_step=note)
    return books


def spoilt(on_nonfinite, folder):
    """What a run says whose second process meets NaN in the images of step 5, and its codebooks."""
    calls, books, next_ = [], [], Batches.next

    def next_with_nan(self):
        x, y = next_(self)
        calls.append(1)
        return (x * math.nan if self.rank and len(calls) == 5 else x), y

    def note(training):
        books.append(book_of(training))

    delta = {"trainer": {"on_nonfinite": on_nonfinite, "log_every": 2}}
    Batches.next = next_with_nan
    try:
        begin(Settings.of(settings("vq-vae").config(), delta), folder).fit(after_step=note)
        said = ""
    except NotFinite as error:
        said = str(error)
    finally:
        Batches.next = next_
    return said, books


def work(rank, folder):
    found = {name: trained(name, f"{folder}/{name}") for name in CASES}
    return found | {name: spoilt(name, f"{folder}/{name}") for name in ("stop", "skip")}


@pytest.fixture(scope="module")
def both(pair, tmp_path_factory):
    """Every case, trained by two processes: the folder, and what each has found."""
    folder = tmp_path_factory.mktemp("both")
    return folder, pair(work, str(folder))


def state(folder):
    return load_file(Path(folder) / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains_with_the_whole_batch(both, tmp_path, name):
    folder, _ = both
    begin(settings(name), tmp_path / "one").fit()
    one, two = state(tmp_path / "one"), state(folder / name)
    assert one.keys() == two.keys()
    for key, value in one.items():
        if not value.is_floating_point():
            continue  # counts of use: a tie may fall otherwise, and a row is a step older
        apart = (two[key] - value).norm() / value.norm().clamp(min=1e-3)
        assert apart < 1e-4, key
    figures = [
        json.loads((run / "summary.json").read_text()) for run in (tmp_path / "one", folder / name)
    ]
    for key in figures[0]["figures"]:
        assert figures[1][key] == pytest.approx(figures[0][key], rel=5e-3), key
    assert figures[1]["device"].startswith("2 × cpu")


def test_codebooks_are_the_same_to_the_bit_in_both_processes(both):
    trained = [{name: found[name] for name in CASES} for found in both[1]]
    assert trained[0] == trained[1]
    for name, found in trained[0].items():
        assert len(set(found)) == STEPS, name


def test_what_is_not_finite_in_one_process_stops_or_skips_in_both(both):
    folder, (one, other) = both
    for found in (one, other):
        assert re.match(r"the task loss is .* at step 5\. ", found["stop"][0])
        assert len(found["stop"][1]) == 5  # with the next row of metrics.csv, of step 6
        said, books = found["skip"]
        assert said == "" and len(books) == STEPS
        assert len(set(books)) == STEPS - 1 and books[3] == books[4]
    assert one["skip"][1] == other["skip"][1]
    assert json.loads((folder / "skip" / "summary.json").read_text())["skipped_steps"] == 1


# -- the command, and what is lost -----------------------------------------------------------------

LONG = [
    *["digits-tiny", "--data.side", "8", "--network.width", "8", "--quantizer.num_codes", "24"],
    *["--trainer.accelerator", "cpu", "--trainer.checkpoint_every", "10"],
    *["--data.batch_size", "48", "--trainer.loggers", "[]"],
]


def started(*command, hidden):
    """A process that finds the modules of a folder before all others."""
    paths = os.pathsep.join([str(hidden), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(process):
    """Processes that a process has started, the oldest first."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids]


def wait_for_step(folder, step, process):
    path = folder / "checkpoints" / "last" / "state.json"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        try:
            if json.loads(path.read_text())["step"] >= step:
                return
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within two minutes")


def ended(process, within):
    try:
        return process.communicate(timeout=within)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")


@needs_proc
def test_a_lost_process_ends_the_other_and_the_run_goes_on_with_one(tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["mqvae", "train", *LONG, "--steps", "100000", "--out", str(folder)]
    # Lightning would import it for its version, and transformers with it.
    (tmp_path / "torchmetrics.py").write_text("raise ImportError")
    every = ["--trainer.checkpoint_every", "5", "--trainer.devices", "2"]
    process = started(*command, *every, hidden=tmp_path)
    wait_for_step(folder, 5, process)
    (other,) = children(process)
    os.kill(other, signal.SIGKILL)
    began = time.monotonic()
    _, said = ended(process, within=60)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    assert "another of the" in said
    assert "processes has ended" in said
    assert "Traceback" not in said

    run = Run(folder)
    step = run.load("last").state["step"]
    (folder / "config.yaml").write_text(
        (folder / "config.yaml").read_text().replace("steps: 100000", f"steps: {step + 5}")
    )
    assert main(["train", "--resume", str(folder), "--trainer.devices", "1"]) == 0
    assert f"from step {step:,}" in capsys.readouterr().err
    assert json.loads((folder / "summary.json").read_text())["steps"] == step + 5


def started_by_torchrun(rank, folder, port, restarts, stop=None):
    """What a process does and says that torchrun's agent has started, whose store has that port."""
    os.environ |= {
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }

    def lost(training):
        if training.step == stop:
            raise KeyboardInterrupt

    fit, said = Training.fit, io.StringIO()
    Training.fit = lambda training: fit(training, after_step=lost)
    try:
        with contextlib.redirect_stderr(said):
            code = main(["train", *LONG, "--steps", "20", "--out", folder])
    finally:
        Training.fit = fit
    return code, said.getvalue()


def test_torchrun_goes_on_where_a_process_was_lost(pair, tmp_path):
    """Its agent starts all anew, beside the store that those before them met in."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = (str(tmp_path / "run"), store.port)
    assert [code for code, _ in pair(started_by_torchrun, *given, 0, 13)] == [130, 130]
    (code, said), (other, _) = pair(started_by_torchrun, *given, 1)
    assert (code, other) == (0, 0)
    assert "(from step 10" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 20
    assert summary["device"].startswith("2 × cpu")

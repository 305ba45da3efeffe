"""Small versions of the campaigns of benchmarks/, which have the counts of large ones."""

import os
import subprocess
import sys
from pathlib import Path

from test_kills import SMALL

from benchmarks.long_run import Watch
from mqvae.config import Settings, load_preset
from mqvae.training import begin

ROOT = Path(__file__).parents[2]


def test_a_small_campaign():
    """Two kills of two rules; by itself the script makes 25 of four."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "campaigns.kills",
            "--kills",
            "2",
            "--rules",
            "Joint",
            "EMA",
            "--skip-disk",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "wrong: 0"
    assert len([line for line in lines if "2 kills" in line]) == 2
    assert len([line for line in lines if "SIGTERM" in line]) == 2


def test_a_long_run_stays_flat(tmp_path):
    """So short that memory has hardly settled: files and threads must not grow all the same."""
    watch = Watch(every=10, settled=20)
    delta = {"steps": 60, "trainer": {"loggers": ["tensorboard"]}}
    settings = Settings.of(load_preset("methods/vq-vae", SMALL, delta))
    begin(settings, tmp_path / "run").fit(after_step=watch)
    assert watch.steps == [20, 30, 40, 50, 60]
    assert len(set(watch.found["open files"])) == 1
    threads = watch.found["threads"]  # one of a test before may end meanwhile
    assert threads == sorted(threads, reverse=True)


def test_commands_in_a_place_unlike_the_developers(tmp_path):
    """No home to write to, a locale of ASCII, no network, and a path with spaces and umlauts."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.everywhere", "--environments", "all at once"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 commands" in done.stdout


def test_settings_with_mistakes_by_the_dozen(tmp_path):
    """The campaign of campaigns/bad_settings.py, a small part of it."""
    done = subprocess.run(
        [
            *[sys.executable, "-m", "campaigns.bad_settings"],
            *["--count", "60", "--through-main", "8"],
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "'through the program': 8" in done.stdout
    assert not list(tmp_path.iterdir())

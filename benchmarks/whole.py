"""The whole program: the loop around the step, the start, evaluation and encoding."""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Cell, Table
from mqvae.config import Settings, load_preset
from mqvae.core.rules import Step
from mqvae.data import first
from mqvae.metrics import BATCH_SIZE, evaluate, evaluating
from mqvae.tokenizer import Tokenizer
from mqvae.training import Training, begin

PRESET = "fashion-mnist-demo"
UPDATES, SETTLED = 200, 20
LOOP_AT_MOST = 0.05  # of the time of a run
STARTS = 3
IMAGES = 4096
FIRST_ROW_PATIENCE = 300.0  # seconds


def run(*, device: str, rounds: int | None, only: str) -> list[Table]:
    """Both tables; `rounds` is how often the start is timed."""
    with tempfile.TemporaryDirectory() as folder:
        rows = loop_rows(Path(folder), device)
        rows += rate_rows(Path(folder) / "Joint")
    starts = sorted(start_seconds(device) for _ in range(rounds or STARTS))
    rows.append(
        {
            "what": "from `mqvae train` to the first update",
            "value": starts[len(starts) // 2],
            "unit": f"s ({starts[0]:.1f} to {starts[-1]:.1f} in {len(starts)} starts)",
        }
    )
    return [
        Table(
            "whole",
            "A whole run, and what is done with it",
            {"preset": PRESET, "updates": UPDATES},
            [row for row in rows if only in str(row["what"])],
            [
                "The share of the loop is what lies between two steps: input, schedules, counting, "
                "logging, the progress bar. A checkpoint, with its validation on 1,000 images, is "
                "a row of its own; the preset makes one every 300 updates."
            ],
        )
    ]


def loop_rows(folder: Path, device: str) -> list[dict[str, Cell]]:
    """The bare step and what surrounds it, timed within the same run."""
    rows: list[dict[str, Cell]] = []
    for rule in ("Joint", "Meta"):
        training, begun, ended = timed_run(folder / rule, rule, device)
        bare = sum(e - b for b, e in zip(begun, ended, strict=True))
        whole = ended[-1] - begun[0]
        share = 1 - bare / whole
        rows.append(
            {
                "what": f"{rule}: updates per second, bare step",
                "value": len(begun) / bare,
                "unit": "1/s",
            }
        )
        rows.append(
            {
                "what": f"{rule}: updates per second, whole run",
                "value": len(begun) / whole,
                "unit": "1/s",
            }
        )
        rows.append(
            {
                "what": f"{rule}: share of the loop",
                "value": 100 * share,
                "unit": "%",
                "at most": 100 * LOOP_AT_MOST,
                "held": "yes" if share <= LOOP_AT_MOST else "no",
            }
        )
        began = time.perf_counter()
        training.checkpoint(training.validation_loss())
        checkpoint = time.perf_counter() - began
        every = 300
        rows.append(
            {
                "what": f"{rule}: a checkpoint",
                "value": checkpoint,
                "unit": f"s, {100 * checkpoint / (every * whole / len(begun)):.1f}% of the run",
            }
        )
    return rows


def timed_run(folder: Path, rule: str, device: str) -> tuple[Training, list[float], list[float]]:
    """A run without checkpoints on the way, and when its settled steps began and ended."""
    settings = load_preset(
        PRESET,
        {
            "name": rule,
            "steps": UPDATES,
            "update": {"class_path": f"mqvae.{rule}"},
            "trainer": {"checkpoint_every": 10 * UPDATES, "accelerator": device},
        },
    )
    begun: list[float] = []
    ended: list[float] = []
    with contextlib.redirect_stderr(io.StringIO()):
        training = begin(Settings.of(settings), folder)
        step = training.parts.update.step

        def timed(*arguments: Any, **options: Any) -> Step:
            begun.append(time.perf_counter())
            result = step(*arguments, **options)
            if device != "cpu":
                torch.accelerator.synchronize()
            ended.append(time.perf_counter())
            return result

        training.parts.update.step = timed  # type: ignore[method-assign]
        training.fit()
    return training, begun[SETTLED:], ended[SETTLED:]


def rate_rows(folder: Path) -> list[dict[str, Cell]]:
    """Images per second of evaluation and encoding, beside bare passes of the network."""
    tokenizer = Tokenizer.from_run(str(folder))
    images = first(tokenizer.settings.data.load("test"), IMAGES)
    network, task = tokenizer.network, tokenizer.task
    pixels, _ = images.take(torch.arange(len(images)))

    @torch.no_grad()
    def bare(part: str) -> None:
        with evaluating(network):
            for x in pixels.split(BATCH_SIZE):
                x = x.to(tokenizer.device) / 255
                network.encode(x) if part == "encode" else network(x)

    def timed(function: Any) -> float:
        with contextlib.redirect_stderr(io.StringIO()):
            function()
            began = time.perf_counter()
            function()
        return time.perf_counter() - began

    codes = tokenizer.encode_images(first(images, 1)).codes[0].size
    rows: list[dict[str, Cell]] = []
    for what, whole, part in (
        ("evaluation", lambda: evaluate(network, task, images, device=tokenizer.device), "forward"),
        ("encoding", lambda: tokenizer.encode_images(images), "encode"),
    ):
        taken, passes = timed(whole), timed(lambda part=part: bare(part))
        per_image = codes if what == "encoding" else 1
        rows.append(
            {
                "what": f"{what}: {'codes' if what == 'encoding' else 'images'} per second",
                "value": per_image * len(images) / taken,
                "unit": f"1/s, {taken / passes:.2f} times the bare passes",
            }
        )
    return rows


def start_seconds(device: str) -> float:
    """Seconds from the command to its first row of metrics, which comes with its first update."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.csv"
        command = [sys.executable, "-m", "mqvae", "train", PRESET, "--out", str(metrics.parent)]
        command += ["--trainer.log_every", "1", "--trainer.accelerator", device]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            while time.perf_counter() - began < FIRST_ROW_PATIENCE:
                if metrics.is_file() and len(metrics.read_text(encoding="utf-8").splitlines()) > 1:
                    return time.perf_counter() - began
                if process.poll() is not None:
                    raise RuntimeError(f"`mqvae train` ended early: {process.communicate()[1]}")
                time.sleep(0.01)
            raise RuntimeError(f"no update within {FIRST_ROW_PATIENCE:.0f} s.")
        finally:
            process.kill()
            process.communicate()

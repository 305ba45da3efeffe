"""Runs that are killed, starved of disk, or fed numbers that are not finite."""

import csv
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from small import settings_of
from torch.utils._pytree import tree_map_only

from mqvae.core import look_ahead
from mqvae.data import Batches
from mqvae.runs import Run
from mqvae.tasks import Adversarial, Reconstruction
from mqvae.training import NotFinite, Training, begin, resume
from mqvae.training.checkpoints import Before
from mqvae.training.finite import Finite
from mqvae.training.loop import MOST_SKIPPED

SMALL = {
    "steps": 12,
    "data": {"name": "digits", "side": 8, "batch_size": 16, "validation": 16, "limit": 200},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 16, "dim": 4}},
    "trainer": {"accelerator": "cpu", "log_every": 2, "checkpoint_every": 5, "loggers": []},
}
REPLACED = {"class_path": "mqvae.ReplaceUnused", "init_args": {"after": 2}}
CASES = {
    "joint": ("methods/vq-vae", {"trainer": {"ema_decay": 0.9}}),
    "meta": ("methods/mq-vae", {}),
    "ema": ("methods/ema-short", {"quantizer": {"init_args": {"replacement": REPLACED}}}),
    "vq-gan": (
        "methods/mq-vae",
        {
            "data": {"side": 16},
            "task": {
                "class_path": "mqvae.Adversarial",
                "init_args": {
                    "perceptual_weight": 0.0,
                    "discriminator_layers": 2,
                    "discriminator_width": 4,
                },
            },
        },
    ),
}


def settings(case, *deltas):
    preset, own = CASES[case]
    return settings_of(preset, SMALL, own, over=deltas)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("lost", ["before", "after"])
def test_torchrun_restarts_a_run_that_was_lost(tmp_path, monkeypatch, lost):
    """Before its first checkpoint it begins anew, after it it is resumed; others stay."""
    from mqvae.cli import train

    folder = tmp_path / "run"
    arguments = [
        "digits-tiny",
        "--steps",
        "3",
        "--trainer.accelerator",
        "cpu",
        "--out",
        str(folder),
    ]
    run = Run.create(folder, settings("joint").config())
    if lost == "after":
        begin(settings("joint"), folder, overwrite=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    training = train._training(arguments)
    assert training.settings.steps == (3 if lost == "before" else 12)
    run.unlock()
    training.run.unlock()
    shutil.rmtree(folder / "checkpoints" / "last")
    training.run.start_metrics(after_step=0)
    with pytest.raises(ValueError, match="exists already"):
        train._training(arguments)


def test_what_is_no_text_in_this_locale(tmp_path, capsys):
    from mqvae.cli import main

    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    assert main(["train", "digits-tiny", "--out", name]) == 2
    said = capsys.readouterr().err
    assert r"caf\udce9' is no text in this locale" in said and "LC_ALL=C.UTF-8" in said


# -- numbers that are not finite -------------------------------------------------------------------

BAD_STEP = 8
STAGES = {
    # What is injected, into which cases, and what the message names.
    "input": (["joint", "meta", "ema", "vq-gan"], r"the task loss is (nan|inf)"),
    "loss": (["meta"], r"the task loss is (nan|inf)"),
    "gradient": (["joint", "ema"], "a weight of the encoder is nan"),
    "codebook gradient": (["joint"], "the codebook's gradient is (nan|inf)"),
    "look-ahead": (["meta"], "the norm of the direct hypergradient is (nan|inf)"),
    "discriminator": (["vq-gan"], "(the task loss|discriminator of the task) is (nan|inf)"),
}


@pytest.fixture
def injected(monkeypatch):
    """Makes a number of one stage, at some steps, another one."""

    def inject(stage, value, steps=(BAD_STEP,)):
        now = [0]
        update = Training._update

        def counted(self):
            now[0] = self.step + 1
            return update(self)

        monkeypatch.setattr(Training, "_update", counted)

        def spoilt(tensor):
            return tensor * value if now[0] in steps else tensor

        if stage == "input":
            next_ = Batches.next
            monkeypatch.setattr(Batches, "next", lambda self: (spoilt((b := next_(self))[0]), b[1]))
        elif stage == "loss":
            forward = Reconstruction.forward
            monkeypatch.setattr(
                Reconstruction, "forward", lambda self, *given: spoilt(forward(self, *given))
            )
        elif stage in ("gradient", "codebook gradient"):
            fit = Training.fit

            def hooked(self, **options):
                network = self.parts.network
                of = network.encoder if stage == "gradient" else network.quantizer
                next(of.parameters()).register_hook(spoilt)
                return fit(self, **options)

            monkeypatch.setattr(Training, "fit", hooked)
        elif stage == "look-ahead":
            answer = look_ahead.Undone.answer

            def spoiling(self, *given):
                here, ahead, slopes = answer(self, *given)
                return here, [spoilt(t) for t in ahead], slopes

            monkeypatch.setattr(look_ahead.Undone, "answer", spoiling)
        elif stage == "discriminator":
            logits = Adversarial._logits
            monkeypatch.setattr(
                Adversarial, "_logits", lambda self, images: spoilt(logits(self, images))
            )

    return inject


CASES_OF_STAGES = [(stage, case) for stage, (cases, _) in STAGES.items() for case in cases]


def all_finite(folder):
    checkpoints = list((folder / "checkpoints").iterdir())
    assert checkpoints
    for path in checkpoints:
        found = Run(folder).load(path.name)
        for tensors in (found.model, found.training, found.average or {}):
            assert all(torch.isfinite(t).all() for t in tensors.values())
    for row in rows(folder):
        assert all(math.isfinite(float(v)) for v in row.values() if v)


@pytest.mark.parametrize("stage", STAGES)
def test_it_stops_at_the_step_and_names_the_number(tmp_path, injected, stage):
    # One case and one kind of number each, by turns: the others are found below, to be skipped.
    case = STAGES[stage][0][0]
    injected(stage, (math.nan, math.inf)[list(STAGES).index(stage) % 2])
    with pytest.raises(NotFinite) as raised:
        begin(settings(case), tmp_path / "run").fit()
    assert re.match(rf"{STAGES[stage][1]} at step {BAD_STEP}\. ", str(raised.value))
    all_finite(tmp_path / "run")
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["step"] == BAD_STEP
    assert Run(tmp_path / "run").load().state["step"] == 5


def test_a_weight_that_is_not_finite(tmp_path):
    def spoil(training):
        if training.step == BAD_STEP - 1:
            with torch.no_grad():
                next(training.parts.network.decoder.parameters()).view(-1)[0] = math.inf

    with pytest.raises(NotFinite, match=rf"is (nan|inf) at step {BAD_STEP}\. "):
        begin(settings("joint"), tmp_path / "run").fit(after_step=spoil)
    all_finite(tmp_path / "run")


def test_an_average_that_is_not_finite_is_not_saved(tmp_path):
    training = begin(settings("joint"), tmp_path / "run")
    training.run.start_metrics(after_step=0)
    before = training.run.load().model
    with torch.no_grad():
        training.parts.measured.quantizer.codebook.weight[0, 0] = math.nan
    with pytest.raises(NotFinite, match="quantizer"):
        training.save("last")
    assert training.run.load().model.keys() == before.keys()
    all_finite(tmp_path / "run")


def test_where_nobody_waits_for_a_device_the_first_step_is_named_all_the_same(
    tmp_path, injected, monkeypatch
):
    """As on a GPU: looked at with a row of metrics.csv."""
    injected("look-ahead", math.nan, steps=(5,))
    require, looked = Finite.require, iter(range(1, 100))  # after every step of a CPU

    def only_at_rows(finite):
        if next(looked) % 4 == 0:
            require(finite)

    monkeypatch.setattr(Finite, "require", only_at_rows)
    delta = {"trainer": {"checkpoint_every": 12, "log_every": 4}}
    with pytest.raises(NotFinite, match=r"direct hypergradient is nan at step 5\. "):
        begin(settings("meta", delta), tmp_path / "run").fit()


SKIP = {"trainer": {"on_nonfinite": "skip"}}


@pytest.mark.parametrize(("stage", "case"), CASES_OF_STAGES)
def test_a_step_that_is_skipped_changes_nothing(tmp_path, injected, stage, case, capsys):
    injected(stage, math.nan, steps=(3, 4))
    known = {}

    def note(training):
        known[training.step] = Before(training.parts)

    summary = begin(settings(case, SKIP, {"steps": 6}), tmp_path / "run").fit(after_step=note)
    assert states(known[2]) == states(known[3]) == states(known[4])
    assert states(known[4]) != states(known[5])
    assert summary["skipped_steps"] == 2
    assert [row["skipped_steps"] for row in rows(tmp_path / "run")] == ["0", "2", "2"]
    [warning] = [w for w in summary["warnings"] if "skipped" in w]
    assert re.match(rf"step 3 was skipped: {STAGES[stage][1]}\. ", warning)
    assert f"mqvae: warning: {warning}" in capsys.readouterr().err
    all_finite(tmp_path / "run")
    assert Run(tmp_path / "run").load().state["skipped_steps"] == [2, 0]


def states(before):
    """All of it as bytes and numbers."""
    plain = tree_map_only(torch.Tensor, lambda t: t.numpy().tobytes(), before._states)
    for state in plain:  # all but learning rates, whose schedules go on
        for group in state.get("param_groups", ()):
            group["lr"] = None
    task = {name: t.numpy().tobytes() for name, t in before._task.items()}
    return plain, task, before._random.cpu.numpy().tobytes()


def test_skipping_changes_nothing_where_nothing_is_skipped(tmp_path):
    weights = []
    for name, delta in (("stop", {}), ("skip", SKIP)):
        begin(settings("meta", delta), tmp_path / name).fit()
        weights.append(Run(tmp_path / name).load().model)
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_too_many_in_a_row_end_the_run(tmp_path, injected):
    injected("input", math.nan, steps=range(3, 100))
    delta = {"steps": 40}
    said = rf"{MOST_SKIPPED} steps in a row were skipped: the task loss is nan at step 12\. "
    with pytest.raises(NotFinite, match=said):
        begin(settings("joint", SKIP, delta), tmp_path / "run").fit()
    all_finite(tmp_path / "run")


# -- images, codes and batches at their ends -------------------------------------------------------


# Every rule at every end of steps is in core/test_extremes.py; here are whole runs, which also
# cut batches, start a codebook and measure.
@pytest.mark.parametrize(
    ("case", "delta"),
    [
        ("joint", {"quantizer": {"init_args": {"num_codes": 1}}}),
        ("meta", {"quantizer": {"init_args": {"dim": 1}}}),
        ("ema", {"data": {"batch_size": 1}}),
        (
            "ema",
            {"data": {"limit": 3, "batch_size": 2}, "quantizer": {"init_args": {"num_codes": 200}}},
        ),
        ("meta", {"data": {"limit": 1, "batch_size": 1}}),
    ],
    ids=["K = 1", "D = 1", "batch of one", "fewer samples than codes", "one image"],
)
def test_the_smallest_of_all(tmp_path, case, delta):
    summary = begin(settings(case, delta, {"steps": 6}), tmp_path / "run").fit()
    assert all(math.isfinite(summary[name]) for name in summary["figures"])
    all_finite(tmp_path / "run")


@pytest.mark.parametrize("case", ["meta", "ema"])
def test_constant_images(tmp_path, monkeypatch, case):
    next_ = Batches.next
    monkeypatch.setattr(
        Batches, "next", lambda self: (torch.full_like((b := next_(self))[0], 0.5), b[1])
    )
    begin(settings(case, {"steps": 6}), tmp_path / "run").fit()
    all_finite(tmp_path / "run")


# -- two trainers ----------------------------------------------------------------------------------


def test_the_second_trainer_of_a_run_refuses(tmp_path):
    """What two processes say to each other is in test_runs.py; here a second file is the other."""
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "run"
    begin(settings("joint"), folder)
    with (folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for attempt in (
            lambda: resume(Run(folder)),
            lambda: begin(settings("joint"), folder, overwrite=True),
        ):
            with pytest.raises(ValueError, match=f"{folder} is being trained already"):
                attempt()
    training = resume(Run(folder))

    def locked(training):
        with (folder / ".lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    training.fit(after_step=locked)
    assert not (folder / ".lock").exists()
    assert training.run.load().state["step"] == 12


# -- a disk that takes no more ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["row", "checkpoint"])
def test_a_disk_that_is_full_ends_a_run_in_words(tmp_path, monkeypatch, what):
    folder, fails = tmp_path / "run", [False]
    error = OSError(28, os.strerror(28))

    def refusing(original):
        def call(self, *given, **options):
            if fails[0]:
                raise error
            return original(self, *given, **options)

        return call

    if what == "row":
        monkeypatch.setattr(Run, "log", refusing(Run.log))
    else:
        monkeypatch.setattr(Path, "write_bytes", refusing(Path.write_bytes))

    def fill(training):
        fails[0] = training.step >= 7

    with pytest.raises(ValueError, match="No space left on device") as raised:
        begin(settings("joint"), folder).fit(after_step=fill)
    assert "--resume" in str(raised.value)
    fails[0] = False
    assert Run(folder).load().state["step"] == 5
    resume(Run(folder)).fit()
    begin(settings("joint"), tmp_path / "whole").fit()
    one, two = (Run(f).load().model for f in (folder, tmp_path / "whole"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, capsys):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    begin(settings("meta"), whole).fit()

    class Killed(BaseException):
        pass

    def kill(training):
        if training.step == 11:
            raise Killed

    with pytest.raises(Killed):
        begin(settings("meta"), folder).fit(after_step=kill)
    path = folder / "checkpoints" / "last" / "training.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    training = resume(Run(folder))
    assert training.step == 5
    assert "the one before it is taken, of step 5." in capsys.readouterr().err
    training.fit()
    timed = {"seconds", "data_wait"}
    one, two = ([{k: r[k] for k in r.keys() - timed} for r in rows(f)] for f in (folder, whole))
    assert one == two
    for name in ("last", "best"):
        one, two = (Run(f).load(name) for f in (folder, whole))
        assert all(torch.equal(one.model[k], two.model[k]) for k in one.model)
        assert all(torch.equal(one.training[k], two.training[k]) for k in one.training)

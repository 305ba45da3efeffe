"""Runs that train on to another number of steps: `--resume RUN --steps MORE`."""

import csv
import json
import math
import shutil

import pytest
import torch
import yaml
from small import settings_of

from mqvae.cli import main
from mqvae.errors import MqvaeError
from mqvae.runs import Run
from mqvae.training import Interrupted, begin, resume, warmup_cosine

SMALL = {
    "steps": 6,
    "data": {"side": 8, "batch_size": 50},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 8, "dim": 4}},
    "trainer": {"accelerator": "cpu", "loggers": [], "checkpoint_every": 3, "log_every": 1},
}


def settings(*deltas):
    return settings_of("digits-tiny", SMALL, *deltas)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    begin(settings(), folder).fit()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_trains_on_with_the_schedule_of_its_new_length(run):
    training = resume(Run(run), steps=12)
    factor = warmup_cosine(12, 0.1)
    for level, lr in (("lower", 3e-4), ("upper", 6e-2)):
        rate = training.parts.levels[level].param_groups[0]["lr"]
        assert math.isclose(rate, lr * factor(6), rel_tol=1e-12)
    summary = training.fit()
    assert summary["steps"] == 12
    assert [int(row["step"]) for row in rows(run)] == list(range(1, 13))
    for row in rows(run)[6:]:
        assert math.isclose(
            float(row["network_lr"]), 3e-4 * factor(int(row["step"]) - 1), rel_tol=1e-6
        )
    assert yaml.safe_load((run / "config.yaml").read_text())["steps"] == 12
    assert json.loads((run / "summary.json").read_text())["steps"] == 12
    assert Run(run).load("last").state["steps"] == 12


def test_what_is_stopped_on_the_way_goes_on_bit_for_bit(run, tmp_path):
    shutil.copytree(run, tmp_path / "whole")
    resume(Run(tmp_path / "whole"), steps=12).fit()

    def interrupt(training):
        if training.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(Run(run), steps=12).fit(after_step=interrupt)
    resume(Run(run)).fit()
    assert weights(run) == weights(tmp_path / "whole")
    # Killed after config.yaml was written, before the first checkpoint of the longer schedule.
    shutil.rmtree(run)
    begin(settings(), run).fit()
    Run(run).write_config({**Run(run).config, "steps": 12})
    resume(Run(run)).fit()
    assert weights(run) == weights(tmp_path / "whole")


def test_the_same_number_of_steps_changes_nothing(run, tmp_path):
    def interrupt(training):
        if training.step == 4:
            raise Interrupted(4, 2)

    for name, steps in (("plain", None), ("said", 6)):
        with pytest.raises(Interrupted):
            begin(settings(), tmp_path / name).fit(after_step=interrupt)
        resume(Run(tmp_path / name), steps=steps).fit()
        assert weights(tmp_path / name) == weights(run)


def test_quantization_that_has_set_in_does_not_set_in_again(tmp_path):
    late = {"warm_start": {"unquantized": 0.5}, "update": {"class_path": "mqvae.Joint"}}
    begin(settings(late), tmp_path / "run").fit()
    training = resume(Run(tmp_path / "run"), steps=12)
    assert training._onset.first == 3  # and not 6, where k-means would replace the codebook
    codebook = training.parts.network.quantizer.table().detach().clone()
    training.fit()
    moved = training.parts.network.quantizer.table() - codebook
    assert moved.abs().max() < codebook.abs().max()  # trained on
    assert resume(Run(tmp_path / "run"), steps=18)._onset.first == 3


def test_schedules_of_a_task_are_stretched_too(tmp_path):
    task = {
        "class_path": "mqvae.Adversarial",
        "init_args": {
            "perceptual_weight": 0.0,
            "discriminator_width": 4,
            "discriminator_layers": 1,
        },
    }
    delta = {"task": task, "update": {"class_path": "mqvae.Joint"}, "data": {"side": 16}}
    begin(settings(delta), tmp_path / "run").fit()
    training = resume(Run(tmp_path / "run"), steps=12)
    (player,) = training.parts.auxiliary.values()
    (made,) = training.parts.task.auxiliary_optimizers(12).values()
    lr = made.optimizer.param_groups[0]["lr"]
    rate = player.optimizer.param_groups[0]["lr"]
    assert math.isclose(rate, lr / 2, rel_tol=1e-9)  # half of the cosine, and not its end
    training.fit()
    assert player.optimizer.param_groups[0]["lr"] < 0.1 * rate


def test_fewer_steps_than_are_done(run, capsys):
    with pytest.raises(MqvaeError, match=r"has made 6 training steps.*expected 6 or more, got 5"):
        resume(Run(run), steps=5)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["train", "--resume", str(run), "--steps", "5"]) == 2
    assert "steps is the new number in all" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_the_command_says_what_happens_to_the_learning_rates(run, capsys):
    assert main(["train", "--resume", str(run), "--steps", "9"]) == 0
    err = capsys.readouterr().err
    assert "trains on to 9 steps in all instead of 6; 6 are done." in err
    rate = 3e-4 * warmup_cosine(9, 0.1)(6)
    assert f"now network_lr {rate:.3g}, codebook_lr {200 * rate:.3g}" in err
    assert main(["train", "--resume", str(run)]) == 0
    assert "complete: all 9 steps" in capsys.readouterr().out
    # A summary of fewer steps than were made is not the run's.
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "steps": 6}))
    assert main(["train", "--resume", str(run)]) == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 9


def test_optimizers_keep_their_state(run):
    before = Run(run).load("last").training
    after = resume(Run(run), steps=12)
    assert Run(run).load("last").training.keys() == before.keys()
    state = after.parts.levels["lower"].state_dict()["state"]
    for index, entry in state.items():
        assert torch.equal(entry["exp_avg"], before[f"lower.{index}.exp_avg"])

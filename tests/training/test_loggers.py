"""Where figures go beside metrics.csv, and training that only asks whether it works."""

import csv
import json
import shlex
import sys
from types import ModuleType

import pytest

from mqvae.cli import main
from mqvae.config import Settings, load_preset
from mqvae.optional import ExtraMissing
from mqvae.runs import Run
from mqvae.training import begin, resume
from mqvae.training.loggers import chosen

TINY = [
    *["train", "digits-tiny", "--steps", "4", "--network.width", "8", "--quantizer.num_codes", "8"],
    *["--network.residual_blocks", "1", "--data.batch_size", "50", "--trainer.accelerator", "cpu"],
]


class Service(ModuleType):
    """A stand-in for wandb or trackio, which remembers what it is told."""

    def __init__(self, name):
        super().__init__(name)
        self.opened, self.rows, self.finished = [], [], 0

    def init(self, **options):
        self.opened.append(options)
        return self

    def log(self, figures, *, step):
        self.rows.append((step, figures))

    def finish(self):
        self.finished += 1


@pytest.fixture
def service(monkeypatch):
    def make(name):
        made = Service(name)
        made.__spec__ = sys.__spec__
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


def settings_of(*deltas):
    small = {
        "steps": 4,
        "network": {"init_args": {"width": 8, "residual_blocks": 1}},
        "quantizer": {"init_args": {"num_codes": 8}},
        "data": {"batch_size": 50},
    }
    return Settings.of(load_preset("digits-tiny", small, *deltas))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_gets_the_rows_of_metrics_csv(name, service, tmp_path):
    made, folder = service(name), tmp_path / "run"
    assert main([*TINY, "--trainer.loggers", f"{name},tensorboard", "--out", str(folder)]) == 0
    [options] = made.opened
    assert (
        options["project"] == "mqvae" and options["config"]["data"]["init_args"]["name"] == "digits"
    )
    assert options["name"].startswith("run-")
    with (folder / "metrics.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [step for step, _ in made.rows] == [int(row["step"]) for row in written] == [1, 2, 3, 4]
    for (_, figures), row in zip(made.rows, written):
        assert "step" not in figures
        assert {k: f"{v:.8g}" for k, v in figures.items()} == {
            k: v for k, v in row.items() if v and k != "step"
        }
    assert made.finished == 1
    assert any((folder / "tensorboard").iterdir())


def test_a_run_that_goes_on_is_the_same_one_there(service, tmp_path):
    made = service("wandb")
    training = begin(settings_of({"trainer": {"loggers": ["wandb"]}}), tmp_path / "run")

    def stop(training):
        if training.step == 2:
            training.save("last")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(after_step=stop)
    resume(Run(tmp_path / "run")).fit()
    first, second = made.opened
    assert first["id"] == second["id"] == first["name"]
    assert second["resume"] == "allow"
    assert [step for step, _ in made.rows] == [1, 2, 3, 4]
    assert made.finished == 2


def test_what_is_not_installed_is_said_before_anything_is_made(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = tmp_path / "run"
    assert main([*TINY, "--trainer.loggers", "wandb", "--out", str(folder)]) == 2
    assert "pip install 'mqvae[wandb]'" in capsys.readouterr().err
    assert not folder.exists()
    assert main([*TINY, "--trainer.loggers", "wanb", "--out", str(folder)]) == 2
    assert "tensorboard" in capsys.readouterr().err


def test_tensorboard_is_taken_where_it_is_installed(monkeypatch, tmp_path):
    assert chosen(settings_of().trainer) == ["tensorboard"]
    assert chosen(settings_of({"trainer": {"loggers": []}}).trainer) == []
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert chosen(settings_of().trainer) == []
    with pytest.raises(ExtraMissing):
        chosen(settings_of({"trainer": {"loggers": ["tensorboard"]}}).trainer)
    begin(settings_of(), tmp_path / "run").fit()
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 5


def test_fast_dev_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for value in ([], ["true"]):  # it replaces itself
        assert main([*TINY, "--trainer.fast_dev_run", *value, "--steps", "1000"]) == 0
    assert "everything works" in capsys.readouterr().out
    folder = tmp_path / "runs" / "fast_dev_run"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["protocol"]["images"] == 64
    assert not (folder / "tensorboard").exists()


def test_the_command_that_repeats_a_run_does(tmp_path, capsys):
    folder = tmp_path / "a run"
    assert main([*TINY, "--seed", "5", "--out", str(folder)]) == 0
    [line] = [s for s in capsys.readouterr().out.splitlines() if s.startswith("again: mqvae ")]
    assert main(shlex.split(line)[2:]) == 0
    runs = [folder, tmp_path / "a run-again"]
    one, other = (json.loads((f / "summary.json").read_text()) for f in runs)
    assert one["mse"] == other["mse"] and one["seed"] == other["seed"] == 5

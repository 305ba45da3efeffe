"""What is imported when, and what is said where a package is not installed."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from mqvae import data
from mqvae import optional as extras
from mqvae.cli import main
from mqvae.config import Settings, load_preset
from mqvae.metrics.inception import inception
from mqvae.metrics.registry import FURTHER, further_metrics
from mqvae.metrics.similarity import Ssim
from mqvae.report.charts import drawing
from mqvae.tasks import Reconstruction
from mqvae.training import begin
from mqvae.weights import Weights

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
SERVICES = {"datasets", "trackio", "wandb"}  # not in [all]


def modules_of(requirements):
    """torch-fidelity>=0.3 → torch_fidelity."""
    return {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in requirements}


@pytest.fixture
def hidden(monkeypatch):
    """Hides a module, as if it were not installed."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


# ---- the extras ----


def test_extras_are_those_that_pip_knows():
    for name, extra in extras.EXTRAS.items():
        assert modules_of(OPTIONAL[name]) == set(extra.modules)
    together = re.fullmatch(r"mqvae\[(.*)\]", *OPTIONAL["all"])
    assert set(together[1].split(",")) == set(extras.EXTRAS) - SERVICES
    assert "mqvae[all]" in OPTIONAL["dev"]
    assert not {m for e in extras.EXTRAS.values() for m in e.modules} & modules_of(
        PROJECT["dependencies"]
    )


def test_extras_that_are_there_ask_for_nothing(hidden):
    for name, extra in extras.EXTRAS.items():
        if name in SERVICES:
            continue
        assert extra.missing == []
        for module in extra.modules:
            extras.require(module)
            hidden(module)
        assert extra.missing == list(extra.modules)


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("matplotlib", "report", lambda: drawing(lambda axes: None, name="a", alt="b")),
        ("scipy", "svhn", lambda: data.load("svhn", "test", download=False)),
        ("torch_fidelity", "fid", lambda: inception(Weights({}, "a", "b"), "2048")),
    ],
)
def test_what_is_missing_is_named_with_its_extra(module, extra, use, hidden):
    hidden(module)
    said = rf"{module.replace('_', '-')} is not installed.*pip install 'mqvae\[{extra}\]'"
    with pytest.raises(extras.ExtraMissing, match=said):
        use()


def test_a_command_says_it_in_a_line(hidden, capsys, tmp_path):
    hidden("constriction")
    assert main(["compress", "run", "test", "--out", str(tmp_path / "codes")]) == 2
    assert capsys.readouterr().err == (
        "mqvae: error: the package constriction is not installed. It is for mqvae compress and "
        "mqvae decompress: pip install 'mqvae[compress]'.\n"
    )


def test_all_metrics_are_those_that_can_be_had(hidden, monkeypatch):
    hidden("torch_fidelity")
    images = data.load("digits", "test", side=32)

    class Missing(Ssim):
        def __init__(self, images, device):
            extras.require("torch_fidelity")

    said = []
    for name in ("lpips", "fid", "inception_score", "frechet_vgg16"):
        monkeypatch.setattr(FURTHER[name].path, Missing)
    found = further_metrics(["all"], ["mse"], Reconstruction(), images, left_out=said.append)
    assert set(found) == {"ssim"}
    assert sum("pip install 'mqvae[fid]'" in line for line in said) == 4
    with pytest.raises(extras.ExtraMissing):
        further_metrics(["fid"], ["mse"], Reconstruction(), images)


# ---- what is imported when ----

SLOW = {
    *["jinja2", "lightning", "lightning_fabric", "matplotlib", "pytorch_lightning", "scipy"],
    *["sklearn", "torch_fidelity", "torchmetrics", "torchvision"],
}
# A new process that says after each part which modules it has by now.
PARTS = """
import sys

def say():
    print("imported", *sys.modules)

import torch, mqvae
mqvae.VectorQuantizer(num_codes=8, dim=4)(torch.randn(16, 4))
say()

from mqvae.training.loop import Training
from mqvae.cli import main

def stop(training):
    raise KeyboardInterrupt

fit = Training.fit
Training.fit = lambda training: fit(training, after_step=stop)
small = ["--data.side", "8", "--network.width", "8", "--data.batch_size", "32"]
assert main(["train", "digits-tiny", *small, "--trainer.log_every", "1", "--out", "new"]) == 130
say()

assert main(["evaluate", "run"]) == 0
assert main(["prior", "run", "--steps", "1", "--width", "8", "--layers", "1"]) == 0
say()
"""


def test_nothing_slow_is_imported_before_it_is_needed(tmp_path):
    data = {"name": "digits", "side": 8, "batch_size": 32}
    small = {"steps": 2, "data": data, "network": {"width": 8}}
    begin(Settings.of(load_preset("methods/lfq", small)), tmp_path / "run").fit()
    done = subprocess.run(
        [sys.executable, "-c", PARTS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines() if line.startswith("imported ")]
    batch, update, opened = map(set, said)
    assert "torch" in batch
    rest = {*SLOW, "PIL", "jsonargparse", "rich", "safetensors", "tensorboard", "yaml"}
    assert not batch & rest
    ours = {name for name in batch if name.startswith("mqvae.")}
    assert {name for name in ours if not name.startswith("mqvae.core")} == {
        "mqvae.errors",
        "mqvae.shown",
    }
    assert len((tmp_path / "new" / "metrics.csv").read_text().splitlines()) == 2
    assert not update & SLOW
    assert not opened & SLOW


def test_the_digits_need_no_other_package(hidden):
    hidden("sklearn")
    assert data.load("digits", "train").pixels.dtype == torch.uint8

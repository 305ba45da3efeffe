"""The examples, each as somebody runs it, for a few steps."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mqvae.data import DataNotFound
from mqvae.runs import Run

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def shown(monkeypatch, capsys, tmp_path):
    """Runs an example in an empty folder; gives what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    before = torch.get_num_threads(), set(sys.modules)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(before[0])
    for name in {path.stem for path in EXAMPLES.iterdir()} - before[1]:
        sys.modules.pop(name, None)


def test_each_is_short_and_in_the_list():
    page = (ROOT / "docs" / "examples.md").read_text()
    for path in EXAMPLES.glob("*.*"):
        assert f"examples/{path.name}" in page
        assert len(path.read_text().splitlines()) < 100


@pytest.mark.parametrize("options", [[], ["--joint"]])
def test_plain_loop(shown, options):
    said = shown("plain_loop.py", "--steps", "3", *options)
    assert re.findall(r"^(\d): Step\(task=0\.\d+", said, re.MULTILINE) == ["1", "2", "3"]
    assert ("indirect_norm" in said) == (not options)
    assert re.search(r"^test: MSE 0\.\d+, Quantized\(z_q=\(297, 4, 4, 16\)", said, re.MULTILINE)


def test_their_codebook(shown):
    pytest.importorskip("vector_quantize_pytorch")
    assert shown("their_codebook.py", "--steps", "2").startswith("step    0: loss ")


# lightning_module.py is in core/test_generic.py.


def test_hugging_face_trainer_steps_once(shown, tmp_path):
    pytest.importorskip("transformers")
    train = runpy.run_path(str(EXAMPLES / "hugging_face_trainer.py"))["train"]
    trainer = train(3, str(tmp_path / "trainer"))
    steps = {state["step"].item() for state in trainer.optimizer.state_dict()["state"].values()}
    assert steps == {3}
    rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert len(rates) == 3 and rates[0] > rates[1] > rates[2]
    assert all("codes" in row for row in trainer.state.log_history if "loss" in row)


def test_sound(shown):
    said = shown("sound.py", "--steps", "2")
    assert re.search(r"^new notes: off by [\d.]+ dB at 3,500 bits a second$", said, re.MULTILINE)


def test_codebook_by_network(shown):
    lines = shown("codebook_by_network.py", "--steps", "2").splitlines()
    assert [line.partition("(")[0] for line in lines] == ["Table", "HyperNetwork", "FromGrid"]


def test_search(shown, tmp_path):
    pytest.importorskip("optuna")
    said = shown("search.py", "--trials", "2", "--steps", "2", "--out", "found")
    assert re.search(r"^trial [01]: optimizer.codebook_lr \d\.\d+e-\d+$", said, re.MULTILINE)
    rates = {
        Run(tmp_path / "found" / f"trial-{n}").config["optimizer"]["codebook_lr"] for n in range(2)
    }
    assert len(rates) == 2


def test_demo(shown, tmp_path, monkeypatch):
    def nowhere(*rest, **options):
        raise DataNotFound("it is not here.")

    monkeypatch.setattr("mqvae.data.load", nowhere)  # the demo then takes digits
    with pytest.raises(SystemExit) as left:
        shown("demo.py", "--steps", "2", "--out", "demo")
    assert left.value.code == 0
    assert (tmp_path / "demo" / "report.html").is_file()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_torchrun(tmp_path):
    """The line is torchrun's and mqvae's; test_devices.py lets torchrun train."""
    stand_in = tmp_path / "torchrun"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", EXAMPLES / "torchrun.sh", "digits-tiny", "--out", "a run"],
        env={**os.environ, "PROCESSES": "2", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *of_torchrun, module, name, command, preset, option, out = done.stdout.splitlines()
    assert of_torchrun == ["--nproc-per-node", "2", "--max-restarts", "3"]
    assert (module, name, command, preset) == ("-m", "mqvae", "train", "digits-tiny")
    assert (option, out) == ("--out", "a run")


def test_photographs(shown, tmp_path):
    from PIL import Image

    for name, size in (("a.png", (90, 70)), ("b.png", (64, 40))):
        Image.effect_noise(size, 50).save(tmp_path / name)
    said = shown("photographs.py", "a.png", "b.png", "--tokenizers", "photos-f8", "--size", "64")
    assert re.search(r"^photos-f8: 8 × 8 codes an image, PSNR \d", said, re.MULTILINE)
    with Image.open("photographs.jpg") as picture:
        assert picture.size == (3 * 68 + 4, 2 * 68 + 4)

"""`mqvae doctor`: what is here, what is missing."""

import sys

import pytest

from mqvae.cli import main
from mqvae.data import DATASETS
from mqvae.optional import EXTRAS
from mqvae.weights import NETWORKS


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """A machine without data, weights and optional packages."""
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("mqvae.data.mnist.DEBIAN_FASHION_MNIST", tmp_path / "debian")
    for extra in EXTRAS.values():
        for module in extra.modules:
            monkeypatch.setitem(sys.modules, module, None)
    return tmp_path


def answers(capsys, arguments=()):
    """name → (here or missing, what is said), of all sections."""
    assert main(["doctor", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith("  ")]
    return {name: (word, text) for name, word, text in lines}


def test_what_is_missing_comes_with_how_to_get_it(nothing_here, capsys):
    found = answers(capsys)
    assert {*DATASETS, *NETWORKS, *EXTRAS, "mqvae", "torch", "cpu"} <= set(found)
    assert found["digits"][0] == "here"
    for name in {*DATASETS, *NETWORKS, *EXTRAS} - {"digits"}:
        assert found[name][0] == "missing", name
    assert "downloaded when first asked for" in found["mnist"][1]
    assert str(nothing_here / "cache" / "imagenet") in found["imagenet"][1]
    assert "python -m benchmarks.photos" in found["photos"][1]
    assert found["vgg16"][1] == "mqvae weights vgg16 (for frechet_vgg16)"
    assert found["tensorboard"][1].startswith("pip install 'mqvae[tensorboard]' (for TensorBoard")


def test_what_is_here_comes_with_its_version(capsys):
    found = answers(capsys)
    assert found["report"][0] == "here"
    assert found["report"][1].startswith("matplotlib 3")


def test_damaged_data_are_told(nothing_here, capsys):
    folder = nothing_here / "cache" / "mnist"
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0]))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0]))
    word, text = answers(capsys)["mnist"]
    assert word == "missing" and "Delete it and run again" in text


def test_colours_on_a_terminal_alone(nothing_here, capsys, monkeypatch):
    main(["doctor"])
    assert "\x1b[" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["doctor"])
    out = capsys.readouterr().out
    assert "\x1b[33mmissing\x1b[0m" in out
    assert max(map(len, out.splitlines())) < 60 + 40  # the codes of colours take no room

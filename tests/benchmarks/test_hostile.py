"""Hostile files: some of those of campaigns/hostile_files.py, which has all of them."""

import os
from pathlib import Path

import pytest
from PIL import Image

from campaigns import hostile_files as hostile
from mqvae.data.decoding import decode, head
from mqvae.data.listing import EXTENSIONS
from mqvae.weights.pickled import read_torch


@pytest.fixture(scope="module")
def staged():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MARKER", "OUTSIDE", "MQVAE_CACHE", "TORCH_HOME"):
            patch.setenv(name, "")  # put back afterwards
        with hostile.stage() as place:
            yield place


@pytest.mark.parametrize("which", ["running", "elsewhere", "bombs"])
def test_hostile_files_do_nothing(staged, which):
    cases = list(getattr(hostile, which)())
    step = {"running": 37, "elsewhere": 2, "bombs": 3}[which]
    heavy = ("5 GiB", "4 GiB", "repeated")
    wrong = {}
    for case in cases[::step]:
        if not any(word in case.what for word in heavy):
            found = hostile.run_case(case, *staged)
            if found not in ("", "harmless"):
                wrong[case.place, case.what] = found
    assert not wrong


def test_the_campaign_would_notice(staged):
    """Its checks can fail: files that do run, write elsewhere, or are no error of the user's."""

    def act(wrong):
        return hostile.run_case(hostile.Case("here", "a test", wrong), *staged)

    assert "made {'marker'}" in act(lambda: os.mkdir(os.environ["MARKER"]) or 0)
    assert "changed what is outside" in act(lambda: Path("../../outside/x").touch() or 0)
    assert "wrote beside" in act(lambda: Path("../x").touch() or 0)
    assert "exit code 1" in act(lambda: 1)
    assert "no message" in act(lambda: 2)
    assert "raises" in act(lambda: 1 / 0)
    assert act(lambda: 0) == "harmless"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_what_is_an_image_by_its_name_is_read(tmp_path, extension):
    path = str(tmp_path / f"a{extension}")
    Image.new("RGB", (8, 8), (200, 0, 0)).save(path)
    assert head(path)[1:] == (8, 8)
    assert decode(path, 8, 3).shape == (3, 8, 8)


def test_no_program_is_started_for_an_image(tmp_path, monkeypatch):
    """Pillow draws EPS by ghostscript, whatever the file is called."""
    from PIL import EpsImagePlugin

    def start(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(Image.UnidentifiedImageError):
        decode(str(path), 8, 3)


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_files_without_an_end_are_not_read(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**33)
    for read in (lambda: head(str(path)), lambda: decode(str(path), 8, 1)):
        with pytest.raises(ValueError, match=r"no regular file|bytes, more than"):
            read()


def test_ordinary_checkpoints_are_read(tmp_path):
    import torch

    state = {"a": torch.zeros(1000, 1000), "b": [torch.ones(2)], "c": torch.zeros(1).expand(9)}
    for new in (True, False):
        torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        found = read_torch(tmp_path / "x.pt")
        assert torch.equal(found["a"], state["a"]) and torch.equal(found["c"], state["c"])

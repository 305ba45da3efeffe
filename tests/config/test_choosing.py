"""`mqvae train IMAGES`: a preset for images, where none is named."""

import shutil

import pytest
from PIL import Image

from mqvae.cli import main
from mqvae.config import from_arguments
from mqvae.config.choosing import completed
from mqvae.data import look


def folder_of(path, *sizes, mode="RGB", count=140):
    """A folder of noise, its images as large as these in turn."""
    path.mkdir()
    for size in sizes:
        Image.effect_noise(size, 50).convert(mode).save(path / f"{size[0]}.png")
    for i in range(len(sizes), count):
        width = sizes[i % len(sizes)][0]
        shutil.copy(path / f"{width}.png", path / f"{i:04}.png")
    return str(path)


def test_images_are_looked_at(tmp_path):
    found = look(folder_of(tmp_path / "photos", (90, 50), (60, 120)))
    assert (found.least, found.most, found.colour, found.count) == (50, 120, True, 140)
    assert str(found) == "colour, 50 to 120 pixels a side"
    assert str(look("digits")) == "grey, 8 pixels a side"
    (tmp_path / "photos" / "0.png").write_text("no image")
    with pytest.raises(ValueError, match=r"photos/0\.png"):
        look(str(tmp_path / "photos"))


def test_a_preset_is_chosen_by_the_images_and_said(tmp_path):
    recommended = ["--method", "recommended"]
    large = folder_of(tmp_path / "large", (90, 50))
    arguments, why = completed([large, "--out", "a"])
    assert arguments == ["images-64", *recommended, "--data", large, "--out", "a"]
    assert why.startswith(f"{large}: colour, 50 to 90 pixels a side. Preset images-64, method rec")
    assert len(why.splitlines()) == 2
    small = folder_of(tmp_path / "small", (28, 28), mode="L")
    assert completed([small])[0] == ["fashion-mnist-demo", *recommended, "--data", small]
    odd = folder_of(tmp_path / "odd", (30, 38))
    assert completed([odd])[0][-2:] == ["--size", "28"]
    assert completed([large, "--size", "32"])[0][0] == "fashion-mnist-demo"
    few = folder_of(tmp_path / "few", (50, 50), count=40)
    arguments, why = completed([few])
    assert arguments[-2:] == ["--batch-size", "20"] and "batches of 20" in why
    assert completed([few, "--batch-size", "3"])[0][-2:] == ["--batch-size", "3"]
    for typed in (["digits"], ["--data", "digits"], ["--data.name=digits"]):
        chosen = completed([*typed, "--method", "mq-vae"])[0]
        assert chosen[:5] == ["digits-tiny", "--method", "mq-vae", "--data", "digits"]
    settings = from_arguments(["--data", large, "--steps", "5", "--size", "64"])[0]
    assert (settings.name, settings.data.side, settings.steps) == ("recommended", 64, 5)


def test_what_has_a_preset_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    (tmp_path / "paper").mkdir()  # a preset's name is a preset
    for typed in (
        *(["paper", "--data", "digits"], ["recommended"], ["methods/ema"], ["my.yaml"]),
        *([str(run)], ["nowhere/"], [], ["--steps", "3"], ["--resume", "digits"]),
        *(["digits", "--help"], ["digits", "--update.help", "Meta"]),
    ):
        assert completed(typed) == (typed, "")


def test_images_alone_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "photos", (90, 50), count=40)
    options = ["--trainer.fast_dev_run", "--network.width", "4", "--quantizer.num_codes", "16"]
    assert main(["train", "photos/", "--accelerator", "cpu", *options, "--size", "16"]) == 0
    err = capsys.readouterr().err
    assert "Preset fashion-mnist-demo, method recommended, batches of 20." in err
    assert "\nrecommended: " in err

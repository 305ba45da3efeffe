"""Tokenizers by name: of the package, and of other projects on a hub that is not asked."""

import hashlib
import json
import shlex
import socket
from pathlib import Path

import foreign
import huggingface_hub
import pytest
import torch
from PIL import Image

import mqvae
from mqvae.cli import main
from mqvae.config import from_arguments
from mqvae.config.choosing import completed
from mqvae.data import load
from mqvae.runs import Run
from mqvae.tokenizer import Tokenizer, pretrained
from mqvae.tokenizer.convert import import_run
from mqvae.weights.packaged import FOLDER, config_of, packaged, packaged_names, weights_of

HUB_FILE = "FoundationVision/LlamaGen/vq_ds16_c2i.pt"


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, and a cache of the test's own."""

    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one file of LlamaGen's form; what it was asked."""
    torch.save({"model": foreign.llamagen()}, tmp_path / "vq.pt")
    asked = []

    def hf_hub_download(repository, file, **options):
        asked.append((repository, file, options))
        return str(tmp_path / "vq.pt")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return asked


# -- in the package --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", packaged_names())
def test_what_is_in_the_package_encodes_and_decodes(name):
    tokenizer = Tokenizer.from_pretrained(name, device="cpu")
    data, told = tokenizer.settings.data, config_of(FOLDER / name)
    assert list(tokenizer.code_shape) == told["codes"]
    codes = tokenizer.encode(torch.rand(2, data.channels, data.side, data.side))
    assert tokenizer.decode(codes).shape == (2, data.channels, data.side, data.side)
    assert {t.dtype for t in tokenizer.network.parameters()} == {torch.float32}
    card = (FOLDER / name / "README.md").read_text()
    assert all(f"## {part}\n" in card for part in ("Metrics", "Data", "Licences", "Recipe"))
    assert f'from_pretrained("{name}")' in card
    recipe = card.partition("## Recipe\n")[2].replace("\\\n", " ")
    typed = next(line for line in recipe.splitlines() if "mqvae train" in line)
    settings, *_ = from_arguments(shlex.split(typed)[2:])
    assert settings.trainer.ema_decay == tokenizer.settings.trainer.ema_decay


def test_the_metrics_are_those_of_the_weights_that_are_there():
    tokenizer = Tokenizer.from_pretrained("digits", device="cpu")
    images, _ = load("digits", "test", side=tokenizer.settings.data.side).take(range(297))
    x = images / 255
    y = tokenizer.decode(tokenizer.encode(x)).clamp(0, 1)
    psnr = (-10 * (y - x).square().flatten(1).mean(1).log10()).mean()
    # The weights are float16 now, which moves it by some 0.01 dB.
    assert psnr.item() == pytest.approx(config_of(FOLDER / "digits")["metrics"]["psnr"], abs=0.1)


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 8e6


def test_a_folder_goes_before_a_name(tmp_path):
    Tokenizer.from_pretrained("digits", device="cpu").save_pretrained(tmp_path / "photos-f4")
    assert Tokenizer.from_pretrained("photos-f4", device="cpu").settings.data.channels == 1
    assert packaged("photos-f4") is None
    # A folder of something else is in nobody's way.
    (tmp_path / "digits").mkdir()
    assert Tokenizer.from_pretrained("digits", device="cpu").step == 2000


def test_half_is_half(tmp_path):
    tokenizer = Tokenizer.from_pretrained("digits", device="cpu")
    sizes = []
    for half in (False, True):
        tokenizer.save_pretrained(tmp_path / str(half), half=half)
        sizes.append((tmp_path / str(half) / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    again = Tokenizer.from_pretrained(tmp_path / "True", device="cpu")
    assert again.model == tokenizer.model  # its weights were float16 already


def test_the_list(capsys):
    assert main(["pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[: lines.index("")]]
    assert names == [*packaged_names(), *pretrained.ELSEWHERE]
    assert {"digits"} <= set(names)
    digits = next(line for line in lines if line.startswith("digits "))
    assert "grey: 64 codes, 4 × 4 pixels each; PSNR " in digits


def test_a_run_of_one_is_measured_as_any(capsys):
    assert main(["pretrained", "digits", "--out", "run"]) == 0
    assert "mqvae evaluate run --data photos/" in capsys.readouterr().out
    assert main(["evaluate", "run"]) == 0
    mse = config_of(FOLDER / "digits")["metrics"]["mse"]
    measured = json.loads(Path("run/evaluations/test-last.json").read_text())
    assert measured["mse"] == pytest.approx(mse, rel=0.01)
    assert main(["pretrained", "digits", "--out", "run"]) == 2
    assert main(["pretrained", "digit", "--out", "other"]) == 2
    assert "no tokenizer 'digit'. Did you mean 'digits'" in capsys.readouterr().err
    assert main(["pretrained", "digits"]) == 2
    assert "mqvae pretrained digits --out RUN" in capsys.readouterr().err


def test_a_name_is_taken_where_a_run_is(capsys, monkeypatch):
    Image.new("L", (16, 16), 200).save("own.png")
    assert main(["evaluate", "digits", "--split", "test"]) == 0
    (kept,) = Path("cache/runs").glob("*/digits")
    mse = json.loads((kept / "evaluations/test-last.json").read_text())["mse"]
    assert mse == pytest.approx(config_of(FOLDER / "digits")["metrics"]["mse"], rel=0.01)
    monkeypatch.setattr(pretrained, "run_of", None)  # made once
    for command in (
        ["encode", "digits", "own.png", "--out", "codes.npz"],
        ["decode", "digits", "codes.npz", "--out", "decoded"],
        ["report", "digits", "--out", "report.html"],
    ):
        assert main(command) == 0, capsys.readouterr().err
    assert Path("decoded/own.png").is_file()
    assert ">digits<" in Path("report.html").read_text()


def test_what_save_pretrained_wrote_is_taken_where_a_run_is(tmp_path):
    Tokenizer.from_pretrained("digits", device="cpu").save_pretrained("mine")
    run = Run(pretrained.run_folder("mine"))
    assert run.folder.name == "mine" and run.load("last", training=False).state["step"] == 2000
    assert pretrained.run_folder(str(run.folder)) == str(run.folder)
    assert pretrained.run_folder("nowhere") == "nowhere"


# -- fine-tuning -----------------------------------------------------------------------------------


def test_fine_tuning_takes_network_and_method_from_what_it_starts_with():
    arguments, why = completed(["digits", "--from", "digits", "--steps", "3"])
    assert "Fine-tunes digits, with its network and its method" in why
    settings, _, _ = from_arguments(arguments)
    told = config_of(FOLDER / "digits")["settings"]
    assert settings.network == told["network"] and settings.quantizer == told["quantizer"]
    assert (settings.steps, settings.data.name, settings.data.batch_size) == (3, "digits", 16)
    assert settings.optimizer.network_lr == 3e-4 and settings.warm_start.unquantized == 0
    # A preset or a method that is named stays.
    assert completed(["digits", "--from", "digits", "--method", "ema"])[0][0] == "digits-tiny"


def test_fine_tuning_starts_from_the_weights_that_are_there(tmp_path):
    command = ["train", "digits", "--from", "digits", "--steps", "1", "--lr", "0"]
    command += ["--trainer.accelerator", "cpu", "--trainer.loggers", "[]", "--out", "tuned"]
    assert main(command) == 0
    before, after = weights_of(FOLDER / "digits"), Run("tuned").load().model
    decoder = [key for key in before if key.startswith("decoder.")]
    assert decoder and all(torch.equal(before[key], after[key]) for key in decoder)
    assert main([*command[:3], "tuned", *command[4:-1], "again"]) == 0


# -- on a hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llamagen-f16", HUB_FILE])
def test_a_file_of_the_hub_is_converted_on_arrival(hub, name, tmp_path, monkeypatch):
    found = Tokenizer.from_pretrained(name, revision="v1", local_files_only=True, device="cpu")
    repository, file, options = hub[0]
    assert f"{repository}/{file}" == HUB_FILE
    assert options == {
        "revision": "v1", "local_files_only": True, "token": None, "cache_dir": None,
    }  # fmt: skip
    run, _ = import_run("vq.pt", "run")
    same = Tokenizer.from_run(run.folder, device="cpu")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(found.network.encode(x), same.network.encode(x))
    # Converted once.
    monkeypatch.setattr(pretrained, "converted", None)
    assert Tokenizer.from_pretrained(name, device="cpu").model == found.model


def test_another_file_than_the_known_one_is_refused(hub, tmp_path, monkeypatch):
    digest = hashlib.sha256(Path("vq.pt").read_bytes()).hexdigest()
    for known in (digest, "0" * 64):
        row = pretrained.Elsewhere("", HUB_FILE, known)
        monkeypatch.setattr(pretrained, "ELSEWHERE", {"theirs": row})
        if known == digest:
            assert mqvae.Tokenizer.from_pretrained("theirs", device="cpu").step == 0
        else:
            with pytest.raises(mqvae.MqvaeError, match=rf"expected the SHA-256 000.*got {digest}"):
                Tokenizer.from_pretrained("theirs")


def test_a_run_of_a_file_of_the_hub(hub, capsys):
    assert main(["pretrained", "llamagen-f16", "--out", "run", "--data", "digits"]) == 0
    assert Run("run").config["data"]["init_args"]["name"] == "digits"
    assert "11 codes" in capsys.readouterr().out


def test_a_file_that_the_hub_does_not_give(monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(mqvae.MqvaeError, match=r"vq_ds16_c2i.pt of FoundationVision/LlamaGen coul"):
        Tokenizer.from_pretrained("llamagen-f16")

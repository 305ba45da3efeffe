"""Vectors as data: read, trained on, measured, encoded."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import mqvae
from mqvae import ArrayData, MqvaeError, Tokenizer
from mqvae.cli import main
from mqvae.config import from_arguments
from mqvae.config.choosing import completed
from mqvae.data import Batches, in_order
from mqvae.metrics.sharing import shared

SMALL = ["--accelerator", "cpu", "--network.width", "32", "--trainer.loggers", "[]"]


def clusters(count, dim=24, seed=0):
    """Vectors around 40 centres, (count, dim) float32."""
    centres = np.random.default_rng(7).normal(size=(40, dim))
    random = np.random.default_rng(seed)
    noise = 0.3 * random.normal(size=(count, dim))
    return (centres[random.integers(40, size=count)] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on vectors of length 1: three stages of 32 codes."""
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "vectors.npy", clusters(2000))
    typed = ["train", str(folder / "vectors.npy"), *SMALL, "--data.unit_length"]
    typed += ["--steps", "150", "--batch-size", "128", "--lr", "5e-3", "--out", str(folder / "run")]
    book = {
        "num_codes": 32,
        "dim": 16,
        "codebook": {"class_path": "mqvae.MovingAverage", "init_args": {"decay": 0.9}},
        "replacement": {"class_path": "mqvae.ReplaceUnused"},
    }
    stage = {"class_path": "mqvae.VectorQuantizer", "init_args": book}
    assert main([*typed, "--quantizer.stages", json.dumps([stage] * 3)]) == 0
    return folder / "run"


# -- reading ---------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_vectors(tmp_path):
    rows = clusters(50)
    np.save(tmp_path / "a.npy", rows.astype(np.float64))
    np.savez(tmp_path / "a.npz", rows)
    save_file({"embeddings": rows}, tmp_path / "a.safetensors")
    torch.save(torch.from_numpy(rows), tmp_path / "a.pt")
    found = [ArrayData(str(path)).load("train") for path in sorted(tmp_path.iterdir())]
    assert len(found) == 4 and found[0].shape == (24,)
    for images in found:
        assert torch.equal(images.pixels, found[0].pixels)
    x, _ = Batches(found[0], 5, seed=0).next()
    assert x.shape == (5, 24) and x.dtype == torch.float32


def test_splits_stay_where_rows_are_added(tmp_path):
    rows = clusters(300)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows[:200])
    more, fewer = (ArrayData(str(tmp_path / name)) for name in ("a.npy", "b.npy"))
    test = fewer.load("test").pixels
    assert 10 < len(test) < 40 and len(test) + len(fewer.load("train")) == 200
    assert torch.equal(more.load("test").pixels[: len(test)], test)
    np.savez(tmp_path / "c.npz", train=rows[:250], test=rows[250:], test_labels=np.arange(50))
    images = ArrayData(str(tmp_path / "c.npz")).load("test")
    assert images.labels.tolist() == list(range(50))
    assert torch.equal(images.pixels, torch.from_numpy(rows[250:]))
    assert len(ArrayData(str(tmp_path / "c.npz")).everything()) == 300


def test_vectors_of_length_one(tmp_path):
    np.save(tmp_path / "a.npy", clusters(50))
    data = ArrayData(str(tmp_path / "a.npy"), unit_length=True)
    lengths = data.load("train").pixels.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(len(lengths)))  # rounding of a sum of squares


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.array([[1.0, 2.0], [np.nan, 0.0], [3.0, 4.0]]), "row 1 of"),
        (np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]), "not all 0"),
        (np.zeros((4, 3), np.int64), "expected vectors"),
        (np.zeros((4, 8, 6), np.uint8), "square sides"),
        (np.zeros(4), "expected vectors"),
    ],
)
def test_arrays_that_are_refused(tmp_path, rows, said):
    np.save(tmp_path / "a.npy", rows)
    with pytest.raises(MqvaeError, match=said):
        ArrayData(str(tmp_path / "a.npy"), unit_length=True).everything()


def test_files_that_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(MqvaeError, match=r"a\.npy cannot be read"):
        ArrayData(str(tmp_path / "a.npy")).load("train")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ArrayData(str(tmp_path / "b.npy")).load("train")
    np.savez(tmp_path / "c.npz", one=np.zeros(3), two=np.zeros(3))
    with pytest.raises(MqvaeError, match="holds one, two: expected one array, or train and test"):
        ArrayData(str(tmp_path / "c.npz")).load("train")


@pytest.mark.parametrize("shape", [(20, 8, 8), (20, 8, 8, 3), (20, 3, 8, 8)])
def test_arrays_of_images_are_images(tmp_path, shape):
    rows = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", rows)
    images = ArrayData(str(tmp_path / "a.npy")).everything()
    assert images.shape == (3 if 3 in shape else 1, 8, 8)
    first = torch.from_numpy(rows[0]).reshape(shape[1:])
    first = first.movedim(-1, 0) if shape[-1] == 3 else first.reshape(images.shape)
    assert torch.equal(images.pixels[0], first)


# -- training --------------------------------------------------------------------------------------


def test_a_preset_is_chosen_for_vectors_and_said(tmp_path):
    file = str(tmp_path / "a.npy")
    np.save(file, clusters(50))
    typed, why = completed([file, "--steps", "5"])
    assert typed == ["vectors", "--method", "residual-ema", "--data", file, "--steps", "5"]
    assert why.startswith(f"{file}: vectors of 24 numbers. Preset vectors, method residual-ema.")
    settings = from_arguments(["vectors", "--data", file, "--method", "fsq"])[0]
    assert isinstance(settings.data, ArrayData) and settings.data.batch_size == 256
    assert settings.network["class_path"] == "mqvae.MLP"


@pytest.mark.parametrize("preset", ["digits-tiny", "vectors"])
def test_networks_for_other_data_are_refused(tmp_path, preset, capsys):
    file = str(tmp_path / "a.npy")
    np.save(file, clusters(50))
    data = file if preset == "digits-tiny" else "digits"
    typed = ["train", preset, "--data", data, "--accelerator", "cpu", "--batch-size", "8"]
    assert main([*typed, "--out", str(tmp_path / "run")]) == 2
    other = "MLP" if preset == "digits-tiny" else "VQVAE"
    assert f"--network {other}" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["residual", "recommended", "fsq", "mq-vae", "lfq"])
def test_methods_go_with_vectors(tmp_path, method):
    file = str(tmp_path / "a.npy")
    np.save(file, clusters(200))
    typed = ["train", file, *SMALL, "--method", method, "--steps", "3", "--batch-size", "16"]
    assert main([*typed, "--out", str(tmp_path / "run")]) == 0


def test_no_stage_collapses_on_vectors_of_length_one(run):
    tokenizer = Tokenizer.from_run(run, device="cpu")
    images = tokenizer.settings.data.load("train")
    codes = torch.cat([tokenizer.encode_batch(x) for x, _ in in_order(images, 500)])
    assert codes.shape == (len(images), 3)
    used = [len(codes[:, stage].unique()) for stage in range(3)]
    assert min(used) >= 29, used  # of 32
    # More stages are worth something.
    assert len(codes.unique(dim=0)) > 4 * len(codes[:, :1].unique(dim=0))


@pytest.mark.usefixtures("uncharted")
def test_collisions_are_counted_and_reported(run, tmp_path):
    codes = [torch.tensor([[1, 2], [1, 3], [1, 2]]), torch.tensor([[1, 2], [0, 0]])]
    found = shared(codes, 2, device="cpu", together=False)
    assert found == {"unique_codes": 3 / 5, "collisions": 3.0}
    summary = json.loads((run / "summary.json").read_text())
    data = Tokenizer.from_run(run, device="cpu")
    codes = data.encode_batch(next(in_order(data.settings.data.load("test"), 1000))[0])
    number = len(codes.unique(dim=0))
    assert summary["unique_codes"] == pytest.approx(number / len(codes))
    assert summary["collisions"] >= len(codes) - number
    assert "bits_per_pixel" not in summary and "psnr" not in summary
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page)]) == 0
    assert "Unique codes" in page.read_text() and "Collisions" in page.read_text()


def test_vectors_are_encoded_and_decoded(run, tmp_path):
    rows, file = clusters(70, seed=1), tmp_path / "new.npy"
    np.save(file, rows)
    out = str(tmp_path / "codes.npz")
    assert main(["encode", str(run), str(file), "--out", out, "--accelerator", "cpu"]) == 0
    with np.load(out) as found:
        codes = found["codes"].astype(np.int64)
    tokenizer = Tokenizer.from_run(run, device="cpu")
    assert codes.shape == (70, 3)
    assert np.array_equal(tokenizer.encode(rows).numpy(), codes)
    assert main(["decode", str(run), out, "--out", str(tmp_path / "back")]) == 0
    back = np.load(tmp_path / "back" / "vectors.npy")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    # Half of what the mean vector's is: the codes say something.
    assert np.square(back - unit).mean() < 0.5 * np.square(unit - unit.mean(0)).mean()
    pieces = ["encode", str(run), str(file), "--out", str(tmp_path / "pieces")]
    assert main([*pieces, "--accelerator", "cpu"]) == 0
    assert main(["decode", str(run), pieces[-1], "--out", str(tmp_path / "two")]) == 0
    assert np.array_equal(np.load(tmp_path / "two" / "vectors.npy"), back)
    for wrong in (rows[:, :5], rows.astype(np.int64), [1.0]):
        with pytest.raises(MqvaeError, match="24"):
            tokenizer.encode(wrong)


def test_a_run_on_vectors_is_evaluated_elsewhere(run, tmp_path, capsys):
    np.save(tmp_path / "other.npy", clusters(60, seed=2))
    typed = ["evaluate", str(run), "--accelerator", "cpu"]
    assert main([*typed, "--data", str(tmp_path / "other.npy")]) == 0
    assert main([*typed, "--split", "validation"]) == 0
    assert main([*typed, "--data", "digits", "--split", "test"]) == 2
    assert "expected (24,), as the run was trained on" in capsys.readouterr().err
    assert main([*typed, "--split", "validation"]) == 0
    assert "unique_codes" in capsys.readouterr().out
    saved = tmp_path / "shared"
    Tokenizer.from_run(run, device="cpu").save_pretrained(saved)
    again = Tokenizer.from_pretrained(saved, device="cpu")
    assert again.settings.data.name == "vectors.npy" and "vectors of 24 numbers" in repr(again)


def test_what_takes_images_alone_refuses_vectors(run, tmp_path, capsys):
    for typed in (
        ["prior", str(run), "--steps", "2"],
        ["diagnose", str(run)],
        ["compress", str(run), str(tmp_path), "--out", str(tmp_path / "x.bin")],
    ):
        assert main(typed) == 2, typed
    assert "codes of" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "e"), "--formats", "pt2"]) == 0
    program = torch.export.load(tmp_path / "e" / "encoder.pt2").module()
    rows = torch.nn.functional.normalize(torch.from_numpy(clusters(9, seed=1)), dim=1)
    expected = Tokenizer.from_run(run, device="cpu").encode_batch(rows)
    assert torch.equal(program(rows), expected)


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("vectors.npy", clusters(200))
    text = (Path(mqvae.__file__).parents[1] / "docs" / "vectors.md").read_text()
    lines = re.findall(r"^ {4}mqvae (.*?)(?: {2,}.*)?$", text, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line)
        words += [*SMALL, "--steps", "2", "--batch-size", "16"] * (words[0] == "train")
        assert main(words) == 0, line
    [block] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(block, "docs/vectors.md", "exec"), {})

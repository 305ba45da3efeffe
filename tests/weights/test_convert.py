"""Tokenizers of taming-transformers and LlamaGen, made into runs."""

import json
import os
import re
import shutil
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mqvae import Cosine, Euclidean
from mqvae.cli import main
from mqvae.networks.vqgan.keys import IN_BLOCKS, NAMES, imported
from mqvae.runs import Run
from mqvae.tokenizer import Tokenizer
from mqvae.tokenizer.convert import import_run, read_tensors

SIDE = 16
FORMS = {
    "taming-transformers": (foreign.taming, foreign.taming_pass, Euclidean),
    "LlamaGen": (foreign.llamagen, foreign.llamagen_pass, Cosine),
}
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder to work in, with images of the right size."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.png")
    return tmp_path


def saved(form: str, **beside) -> dict[str, torch.Tensor]:
    """The tokenizer's state, saved in its form's file."""
    state = FORMS[form][0]()
    place = "state_dict" if form == "taming-transformers" else "model"
    torch.save({place: state, "epoch": 3, **beside}, "tokenizer.ckpt")
    return state


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE)


# -- the network is theirs -------------------------------------------------------------------------


@every_form
def test_codes_and_images_are_theirs(form, there):
    state = saved(form)
    import_run("tokenizer.ckpt", "run", data="photos", side=SIDE)
    tokenizer = Tokenizer.from_run("run", device="cpu")
    tokenizer.network.double()
    x = images().double()
    codes, reconstructed = FORMS[form][1](state, 2 * x - 1)
    assert len(codes.unique()) > 3
    assert torch.equal(tokenizer.encode(x), codes)
    theirs = (reconstructed + 1) / 2
    assert torch.allclose(tokenizer.decode(codes), theirs, atol=1e-9)
    assert theirs.std() > 0.01


@every_form
def test_sizes_come_from_shapes(form):
    state = FORMS[form][0]()
    found = imported(state, side=SIDE)
    assert found.form.name == form
    sizes = found.network
    assert (sizes.width, sizes.multipliers) == (foreign.WIDTH, foreign.MULTIPLIERS)
    assert (sizes.residual_blocks, sizes.z_channels) == (foreign.BLOCKS, foreign.Z)
    assert sizes.attention_at == ((8,) if form == "taming-transformers" else (4,))
    assert (found.num_codes, found.dim) == (foreign.CODES, foreign.DIM)
    assert (found.inputs.channels, found.inputs.side, sizes.signed) == (3, SIDE, True)
    # Everything is used once, but what only training needs.
    used = {tensor.data_ptr() for tensor in found.weights.values()}
    rest = [key for key, tensor in state.items() if tensor.data_ptr() not in used]
    assert len(used) == len(found.weights)
    assert all(key.startswith(("loss.", "quantize.codebook_used")) for key in rest)


def test_attention_on_several_levels_or_none():
    assert imported(foreign.taming((0, 2)), side=SIDE).network.attention_at == (16, 4)
    assert imported(foreign.taming(()), side=SIDE).network.attention_at == ()
    assert imported(foreign.taming((1,)), side=256).network.attention_at == (128,)


def test_the_documented_names_are_the_code():
    text = (Path(__file__).parents[2] / "docs" / "import.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \| `([\w.]+)` \|$", text, re.MULTILINE)
    assert tuple(rows) == NAMES
    for ours, theirs in IN_BLOCKS.items():
        assert f"`{ours}` is `{theirs}`" in text


# -- files -----------------------------------------------------------------------------------------


class Callback:
    """What a trainer leaves in its checkpoints."""

    def __init__(self):
        self.best = 0.5


@pytest.mark.parametrize("beside", ["nothing", "objects"])
def test_only_tensors_are_read(there, beside, monkeypatch):
    more = {"callbacks": {Callback: {"best": 1}}, "args": Callback()} if beside == "objects" else {}
    state = saved("taming-transformers", **more)
    monkeypatch.setattr(Callback, "__init__", None)
    monkeypatch.setattr(Callback, "__new__", None)
    found = read_tensors("tokenizer.ckpt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("call", [shutil.copy, os.mkdir])
def test_what_would_be_run_is_not(there, call):
    class Call:
        def __reduce__(self):
            return call, ("ran", "ran") if call is shutil.copy else ("ran",)

    torch.save({"model": foreign.llamagen(), "args": Call()}, "tokenizer.pt")
    if call is shutil.copy:  # an object in its place, which is nothing
        assert read_tensors("tokenizer.pt")
    else:
        with pytest.raises(ValueError, match="holds objects that are not read"):
            read_tensors("tokenizer.pt")
    assert not Path("ran").exists()


@pytest.mark.parametrize("kind", ["safetensors", "plain", "average", "wrapped", "half", "old"])
def test_kinds_of_files(there, kind):
    state = foreign.llamagen()
    name = "tokenizer.safetensors" if kind == "safetensors" else "tokenizer.pt"
    if kind == "safetensors":
        save_file(state, name)
    elif kind == "average":
        torch.save({"model": foreign.llamagen(), "ema": state, "optimizer": {"lr": 1.0}}, name)
    elif kind == "wrapped":
        torch.save({"model": {f"module._orig_mod.{k}": v for k, v in state.items()}}, name)
    elif kind == "half":
        state = {k: v.to(torch.bfloat16) for k, v in state.items()}
        torch.save({"model": state}, name)
    else:
        torch.save(state, name, _use_new_zipfile_serialization=kind != "old")
    weights = imported(read_tensors(name), side=SIDE).weights
    assert torch.equal(
        weights["decoder.last_layer.weight"], state["decoder.conv_out.weight"].float()
    )
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"text", "cannot be read"),
        ([1, 2], "holds no weights by names, but a list"),
        ({}, "got nothing"),
        ({"model": {"features.0.weight": torch.zeros(1)}}, "got features.0.weight."),
    ],
)
def test_other_files_are_refused(there, content, message, capsys):
    if isinstance(content, bytes):
        Path("tokenizer.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, "tokenizer.pt")
    assert main(["import", "tokenizer.pt", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert message in error and "tokenizer.pt" in error
    assert not Path("run").exists()


# -- what does not fit -----------------------------------------------------------------------------


def without(*keys):
    return lambda state: [state.pop(key) for key in keys]


def shaped(key, *shape):
    return lambda state: state.update({key: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("encoder.mid.attn_1.q.weight"), "missing: encoder.mid.attn_1.q.weight$"),
        (without("decoder.up.2.block.0.conv1.bias"), "missing: decoder.up.2.block.0.conv1.bias$"),
        (without("quantize.embedding.weight"), "quantize.embedding.weight is missing"),
        (without("encoder.down.0.block.0.conv1.weight"), "down.0.block.0.conv1.weight is missing"),
        (shaped("decoder.up.3.block.0.conv1.bias", 4), "not known: decoder.up.3.block.0.conv1"),
        (shaped("quantize.used", 4), "not known: quantize.used"),
        (shaped("encoder.down.1.block.0.conv1.weight", 40, 32, 3, 3), "has 40 channels.*the 32 of"),
        (shaped("quantize.embedding.weight", 7), r"must have 2 dimensions, got shape \(7,\)"),
        (
            shaped("post_quant_conv.weight", 6, 4, 1, 1),
            r"post_quant_conv.weight: shape \(6, 4, 1, 1\), expected \(6, 5, 1, 1\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message):
    state = foreign.taming()
    change(state)
    with pytest.raises(ValueError, match=message):
        imported(state, side=SIDE)


def test_long_lists_are_cut():
    state = {k: v for k, v in foreign.taming().items() if not k.startswith("decoder.up.1")}
    with pytest.raises(ValueError, match=r"missing: (decoder\.up\.1[^ ]+ ){8}and 50 more$"):
        imported(state, side=SIDE)


@pytest.mark.parametrize("side", [2, 18])
def test_sides_that_cannot_be_are_refused(side):
    with pytest.raises(ValueError, match=f"3 levels, so sides are multiples of 4, got {side}"):
        imported(foreign.taming(), side=side)


def test_numbers_that_are_not_finite_are_refused(there):
    state = saved("LlamaGen")
    state["quant_conv.bias"][1] = torch.nan
    torch.save(state, "tokenizer.ckpt")
    with pytest.raises(ValueError, match="bias holds a number that is not finite"):
        import_run("tokenizer.ckpt", "run", side=SIDE)
    assert not Path("run").exists()


# -- the program -----------------------------------------------------------------------------------


@every_form
def test_import_evaluate_encode_decode(form, there, capsys):
    saved(form)
    command = ["import", "tokenizer.ckpt", "--out", "run", "--data", "photos", "--size", str(SIDE)]
    assert main(command) == 0
    assert f"{form}: width 32, multipliers [1, 2, 1], 11 codes of 5" in capsys.readouterr().out
    assert main(command) == 2
    assert "run exists already" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    settings = Tokenizer.from_run("run", device="cpu").settings
    assert settings.quantizer["init_args"]["distance"]["class_path"] == (
        f"mqvae.{FORMS[form][2].__name__}"
    )
    assert main(["evaluate", "run"]) == 0
    assert json.loads(Path("run/evaluations/test-last.json").read_text())["mse"] > 0
    assert main(["encode", "run", "photos", "--out", "codes.npz"]) == 0
    assert main(["decode", "run", "codes.npz", "--out", "back"]) == 0
    assert len(list(Path("back").iterdir())) == 40
    assert main(["report", "run", "--out", "report.html"]) == 0


def test_the_distance_can_be_said(there):
    saved("LlamaGen")
    run, _ = import_run("tokenizer.ckpt", "run", data="photos", side=SIDE, distance="euclidean")
    tokenizer = Tokenizer.from_run(run.folder, device="cpu")
    assert tokenizer.network.quantizer.distance == Euclidean()


def test_fine_tuning(there, capsys):
    saved("LlamaGen")
    options = ["--data", "photos", "--size", str(SIDE)]
    assert main(["import", "tokenizer.ckpt", "--out", "run", *options]) == 0
    (advice,) = re.findall(r"mqvae (train .*)", capsys.readouterr().out)
    small = ["--steps", "1", "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
    assert main([*advice.split(), *small]) == 0
    before, after = (Run(folder).load().model for folder in ("run", "runs/tuned"))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder"}
    # There is no training to go on with.
    capsys.readouterr()
    assert main(["train", "--resume", "run"]) == 2
    assert "was imported" in capsys.readouterr().err

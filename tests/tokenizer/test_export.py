"""`mqvae export`: programs that give what the tokenizer gives."""

import re
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mqvae.cli import main
from mqvae.config import Settings, load_preset
from mqvae.core.nearest import _at_once, nearest
from mqvae.core.quantizers import gumbel
from mqvae.optional import ExtraMissing
from mqvae.tokenizer import Tokenizer
from mqvae.tokenizer.export import FORMATS, export
from mqvae.training import begin, inputs_of

SMALL = {
    "steps": 3,
    "data": {"name": "digits", "side": 16, "channels": 1, "classes": 10, "batch_size": 100},
    "network": {"init_args": {"width": 8, "residual_blocks": 0}},  # each layer is traced
    "quantizer": {"init_args": {"num_codes": 20, "dim": 4}},
    "update": {"class_path": "mqvae.Joint"},
    "optimizer": {"codebook_lr": 1e-3},
    "trainer": {"accelerator": "cpu"},
}
GUMBEL = {
    "quantizer": {
        "class_path": "mqvae.GumbelQuantizer",
        "init_args": {"num_codes": 20, "dim": 4},
    },
}


def made():
    """A tokenizer whose codebook fits its embeddings, so that many codes are chosen."""
    settings = Settings.of(load_preset("digits-tiny", SMALL, GUMBEL))
    parts = settings.components()
    network = parts.network.build(inputs_of(settings.data), parts.quantizer)
    network.initialize_codebook(torch.rand(32, 1, 16, 16))
    return Tokenizer("nowhere", settings, network, parts.task, 0, "")


def images_of(tokenizer):
    """Of the run's size, of another, and one alone."""
    return [torch.rand(3, 1, 16, 16), torch.rand(2, 1, 24, 8), torch.rand(1, 1, 8, 16)]


# Every quantizer is exported in core/test_compile.py.
needed = ("onnx", "onnxruntime", "onnxscript")
absent = [name for name in needed if find_spec(name) is None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tokenizer and the folder of its programs, of both kinds where ONNX can be had."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")  # of the packages that ONNX takes
        patch.setattr(gumbel, "CACHED", 20 * 30)  # blocks, which a program has none of
        tokenizer = made()
        tokenizer.network.train()  # by mistake: programs are for evaluation, as `encode` is
        folder = tmp_path_factory.mktemp("exported")
        written = export(tokenizer, folder, formats=["pt2"] if absent else FORMATS)
    names = [f"{part}.{kind}" for part in ("encoder", "decoder") for kind in ("pt2", "onnx")]
    assert [p.name for p in written] == [n for n in names if n.endswith("pt2") or not absent]
    # The network may still be trained.
    assert all(p.requires_grad for p in tokenizer.network.parameters())
    assert all(part.training for part in tokenizer.network.modules())
    return tokenizer, folder


def test_programs_give_what_the_tokenizer_gives(exported):
    tokenizer, folder = exported
    encoder, decoder = (
        torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "decoder")
    )
    for x in images_of(tokenizer):
        codes = tokenizer.encode(x)
        assert len(codes.unique()) > 2
        assert torch.equal(encoder(x), codes)
        images = decoder(codes)
        assert torch.allclose(images, tokenizer.decode(codes), atol=1e-6)
        # A program is used, not trained: without no_grad it holds no graph.
        assert not images.requires_grad and not encoder(x.requires_grad_()).requires_grad


@pytest.mark.parametrize("shape", [(1, 1, 1), (500, 130, 6), (70, 1000, 3)])
def test_the_nearest_in_one_piece(shape):
    rows, codewords, dim = shape
    z_e, codebook = torch.randn(rows, dim) + 100, torch.randn(codewords, dim) + 100
    codebook[-1] = codebook[0]  # a tie goes to the lowest
    assert torch.equal(_at_once(z_e, codebook), nearest(z_e, codebook))


def test_formats_that_there_are_not(tmp_path):
    for formats, got in ((["pt2", "tflite"], "got pt2, tflite"), ([], "got none")):
        with pytest.raises(ValueError, match=f"formats are pt2 and onnx, {got}"):
            export(None, tmp_path, formats=formats)


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExtraMissing, match=r"onnx is not .*pt2 .*: pip install 'mqvae\[onnx\]'"):
        export(None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def page(number):
    """A block of the documentation's part on exports."""
    text = (Path(__file__).parents[2] / "docs" / "tokenizer.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text.partition("## Export")[2], re.DOTALL)
    assert len(blocks) == 2
    return compile(blocks[number], "docs/tokenizer.md", "exec")


def test_the_command(exported, tmp_path, capsys, monkeypatch):
    """The programs that it writes by itself are in test_docs.py, with the tutorial."""
    _, programs = exported
    run, asked = tmp_path / "runs" / "first", []
    begin(Settings.of(load_preset("digits-tiny", SMALL)), run)

    def copying(tokenizer, folder, *, formats):
        asked.append(formats)
        return [Path(p) for p in [shutil.copytree(programs, folder) / "decoder.pt2"]]

    monkeypatch.setattr("mqvae.tokenizer.export.export", copying)
    assert main(["export", str(run)]) == 0
    said = capsys.readouterr().out
    assert "sides multiples of 4 → 4 × 4 codes for 16 pixels" in said
    assert f"written: {run / 'export' / 'decoder.pt2'} (" in said
    assert main(["export", str(run), "--formats", "pt2"]) == 2
    assert "export exists already: choose another --out, or add --overwrite" in (
        capsys.readouterr().err
    )
    assert main(["export", str(run), "--formats", "pt2, onnx", "--out", str(tmp_path / "o")]) == 0
    assert asked == [["pt2", "onnx"]] * 2
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(page(0), names)
    assert names["images"].shape == (2, 1, 16, 24)
    if not absent:
        exec(page(1), {})


@pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)}: pip install 'mqvae[onnx]'")
@pytest.mark.filterwarnings("default")  # they are other packages' own
def test_onnxruntime_gives_what_the_tokenizer_gives(exported):
    import onnxruntime

    tokenizer, folder = exported
    encoder, decoder = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    for x in images_of(tokenizer):
        codes = tokenizer.encode(x)
        (found,) = encoder.run(["codes"], {"images": x.numpy()})
        assert torch.equal(torch.from_numpy(found), codes)
        (found,) = decoder.run(["images"], {"codes": codes.numpy()})
        assert torch.allclose(torch.from_numpy(found), tokenizer.decode(codes), atol=1e-5)

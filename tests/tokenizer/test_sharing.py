"""mqvae.tokenizer: what it takes for images, sizes cut back, and the folder to share."""

import copy
import dataclasses
import io
import json
import pickle
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL
from huggingface_hub import ModelCard
from PIL import Image

import mqvae
from mqvae.config import Settings, load_preset
from mqvae.errors import MqvaeError
from mqvae.optional import ExtraMissing
from mqvae.places import names_only, without_places
from mqvae.tokenizer import SizedCodes, Tokenizer
from mqvae.training import begin

KINDS = {
    "grey": {},
    "colour": {"data": {"channels": 3}},
    "groups": {"quantizer": {"init_args": {"groups": 2}}},
    "gan": {
        "data": {"channels": 3},
        "network": {
            "class_path": "mqvae.VQGAN",
            "init_args": {
                "width": 8,
                "multipliers": [1, 1],
                "residual_blocks": 1,
                "z_channels": 8,
                "attention_at": [],
            },
        },
    },
}


@pytest.fixture(scope="module")
def runs(trained):
    return lambda kind: trained(kind, SMALL, KINDS[kind])


@pytest.fixture
def tokenizer(runs):
    return Tokenizer.from_run(runs("grey"), device="cpu")


@pytest.fixture
def colour(runs):
    return Tokenizer.from_run(runs("colour"), device="cpu")


@pytest.fixture
def bytes_():
    """Three images of colour as bytes, (3, 8, 8, 3)."""
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


# -- what it takes ---------------------------------------------------------------------------------


def test_every_form_of_an_image_has_the_same_codes(colour, bytes_, tmp_path):
    tensor = torch.from_numpy(bytes_).permute(0, 3, 1, 2) / 255
    pictures = [Image.fromarray(image) for image in bytes_]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    codes = colour.encode(tensor)
    assert codes.shape == (3, 2, 2) and codes.dtype == torch.int64
    assert len(codes.unique()) > 2
    for same in (
        bytes_,
        bytes_ / np.float32(255),
        bytes_ / 255,  # float64
        bytes_[:, ::-1, :, ::-1][:, ::-1, :, ::-1],  # a view
        tensor.double(),
        (tensor * 255).round().byte(),
        pictures,
        paths,
        tuple(map(str, paths)),
        list(bytes_),
        list(tensor),
        [pictures[0], bytes_[1], tensor[2].double()],
        [str(paths[0]), tensor[1:2], bytes_[2] / 255],
    ):
        assert torch.equal(colour.encode(same), codes)
    for one in (pictures[0], bytes_[0], tensor[0], paths[0], str(paths[0])):
        assert torch.equal(colour.encode(one), codes[:1])


def test_pictures_become_grey_or_colour(tokenizer, colour, bytes_):
    picture = Image.fromarray(bytes_[0])
    grey = picture.convert("L")
    assert torch.equal(tokenizer.encode(picture), tokenizer.encode(grey))
    assert torch.equal(tokenizer.encode(np.asarray(grey)), tokenizer.encode(grey))
    assert torch.equal(colour.encode(grey), colour.encode(grey.convert("RGB")))
    palette = picture.convert("P")
    assert torch.equal(colour.encode(palette), colour.encode(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "expected a PIL image, .* got NoneType"),
        (3, "got int"),
        ((x for x in []), "got generator"),
        ({}, "got dict"),
        ([], "there are no images: expected a PIL image"),
        ([torch.zeros(1, 8, 8), None], "got NoneType"),
        ([torch.zeros(2, 1, 8, 8)], "entry 0 of the list holds 2 images"),
        (torch.zeros(8, 8), r"a tensor of images is \(C, H, W\) or .* C = 1, .* got \(8, 8\)"),
        (torch.zeros(3, 8, 8), r"C = 1, the channels that .* got \(3, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), r"got \(0, 1, 8, 8\)"),
        (np.zeros((1, 8, 8)), r"an array of images is \(H, W, C\) or .* got \(1, 8, 8\)"),
        (np.zeros((2, 3, 1, 8, 8)), r"got \(2, 3, 1, 8, 8\)"),
        (np.zeros((8, 8), dtype=int), r"are bytes \(uint8, 0 … 255\) or floats .* int64"),
        (np.zeros((8, 8), dtype=np.uint16), "an array of uint16"),
        (torch.zeros(1, 8, 8, dtype=torch.bool), "or floats .* torch.bool"),
        (torch.full((1, 8, 8), 255.0), r"floats in \[0, 1\], got floats from 255 to 255: scale"),
        (torch.linspace(-1, 1, 64).view(1, 8, 8), "got floats from -1 to 1: scale"),
        (torch.full((1, 8, 8), torch.nan), "got floats from nan to nan"),
    ],
)
def test_it_says_what_it_expects(tokenizer, given, said):
    with pytest.raises(ValueError, match=said):
        tokenizer.encode(given)


def test_files_that_are_no_images(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        tokenizer.encode(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is a folder: pass a list of files"):
        tokenizer.encode(tmp_path)
    (tmp_path / "a.png").write_text("a")
    with pytest.raises(ValueError, match=r"a\.png cannot be read: expected an image"):
        tokenizer.encode([tmp_path / "a.png"])


def test_a_decoders_output_may_be_encoded_again(tokenizer):
    images = tokenizer.decode(tokenizer.encode(torch.rand(2, 1, 8, 8)))
    tokenizer.encode(images - images.min() - 0.1)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 2), r"decodes codes \(B, h, w\), got \(2, 2\)"), ((1, 2, 2, 2), r"got \(1, 2, 2, 2\)")],
)
def test_codes_of_another_shape(tokenizer, shape, said):
    with pytest.raises(ValueError, match=said):
        tokenizer.decode(torch.zeros(shape, dtype=torch.int64))


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grey", "groups", "gan"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 4), (9, 14), (3, 1)])
def test_any_size_comes_back(runs, kind, height, width):
    tokenizer = Tokenizer.from_run(runs(kind), device="cpu")
    stride = {"grey": 4, "groups": 4, "gan": 2}[kind]
    assert tokenizer.stride == stride
    channels = tokenizer.settings.data.channels
    x = torch.rand(2, channels, height, width)
    found = tokenizer.encode(x)
    images = tokenizer.decode(found)
    if height % stride or width % stride:
        assert found.sizes == ((height, width),) * 2 and found.mask.all()
        codes = found.codes
    else:
        codes = found
    assert type(codes) is torch.Tensor
    assert codes.shape[:3] == (2, -(-height // stride), -(-width // stride))
    assert images.shape == x.shape
    # Filled up with the outermost pixels, then cut.
    rows = torch.arange(-(-height // stride) * stride).clamp(max=height - 1)
    columns = torch.arange(-(-width // stride) * stride).clamp(max=width - 1)
    filled = x[:, :, rows][:, :, :, columns]
    with torch.no_grad():
        whole = tokenizer.network(filled)
    assert torch.equal(codes, whole.quantized.codes)
    assert torch.equal(images, whole.output[:, :, :height, :width])
    # Plain codes know no size.
    assert torch.equal(tokenizer.encode_batch(x), codes)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        assert torch.equal(tokenizer.decode(codes.to(dtype)), whole.output)
    assert torch.equal(tokenizer.decode(codes.numpy().astype(np.uint16)), whole.output)
    assert torch.equal(tokenizer.decode(codes.numpy().astype(">i4")), whole.output)


@pytest.mark.parametrize("kind", ["grey", "groups"])
def test_images_of_several_sizes(runs, kind):
    tokenizer = Tokenizer.from_run(runs(kind), device="cpu")
    sizes = ((8, 8), (5, 13), (8, 8), (9, 2))
    given = [torch.rand(1, *size) for size in sizes]
    record = tokenizer.encode(given)
    codes = record.codes
    assert record.sizes == sizes and codes.shape[:3] == (4, 3, 4)
    images = tokenizer.decode(record)
    assert images.shape == (4, 1, 9, 13)
    for i, (x, (height, width)) in enumerate(zip(given, sizes)):
        alone = tokenizer.encode_batch(x[None])
        own = (i, slice(alone.shape[1]), slice(alone.shape[2]))
        assert torch.equal(codes[own], alone[0])
        assert record.mask[own].all() and record.mask[i].sum() == alone.numel()
        back = tokenizer.decode(tokenizer.encode(x))[0]
        assert torch.allclose(images[i, :, :height, :width], back, atol=1e-6)
        assert not images[i, :, height:].any() and not images[i, :, :, width:].any()
    with pytest.raises(ValueError, match="codes must lie in 0 … 19, got -1"):
        tokenizer.decode(codes)


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


KEPT = {
    "torch.save": saved,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "slice": lambda value: value[:],
    "to": lambda value: value.to("cpu", torch.int32),
}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT.keys())
@pytest.mark.parametrize(
    "sizes", [[(8, 8)], [(12, 4)] * 3, [(9, 14)] * 2, [(8, 8), (5, 13)]], ids=str
)
def test_codes_are_kept_in_any_way(tokenizer, keep, sizes):
    given = [torch.rand(1, *size) for size in sizes]
    codes = tokenizer.encode(given)
    images = tokenizer.decode(keep(codes))
    assert torch.equal(images, tokenizer.decode(codes))
    whole = len(set(sizes)) == 1 and not any(side % 4 for side in sizes[0])
    assert type(codes) is (torch.Tensor if whole else SizedCodes)
    for i, (height, width) in enumerate(sizes):
        one = tokenizer.decode(keep(codes)[i : i + 1])
        assert torch.allclose(one[0, :, :height, :width], images[i, :, :height, :width], atol=1e-6)


def test_a_record_of_codes_is_cut_like_a_list():
    codes = SizedCodes(torch.arange(12).view(3, 2, 2), ((7, 8), (8, 8), (8, 5)))
    assert codes[1:].sizes == ((8, 8), (8, 5)) and codes[1:].codes.tolist() == [
        [[4, 5], [6, 7]],
        [[8, 9], [10, 11]],
    ]
    assert codes[-1].sizes == ((8, 5),) and codes[-1].codes.shape == (1, 2, 2)
    assert codes[::-1].sizes == codes.sizes[::-1]
    assert [one.sizes for one in codes] == [(size,) for size in codes.sizes]
    with pytest.raises(IndexError):
        codes[3]
    with pytest.raises(dataclasses.FrozenInstanceError):
        codes.sizes = ()
    with pytest.raises(ValueError, match="codes of 2 images, but 1 sizes"):
        SizedCodes(torch.zeros(2, 1, 1), ((4, 4),))


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (np.zeros((1, 2, 2)), "whole numbers, got float64"),
        (np.array([[["0"]]]), "whole numbers, got <U1"),
        (np.array([[[None]]]), "whole numbers, got object"),
        ([[[0]]], "whole numbers, got list"),
        (None, "whole numbers, got NoneType"),
        (torch.zeros(1, 2, 2), "codes must be integers, got torch.float32"),
        (torch.zeros(1, 2, 2, dtype=torch.bool), "codes must be integers, got torch.bool"),
        (torch.full((1, 2, 2), 20), "codes must lie in 0 … 19, got 20"),
        (torch.full((1, 2, 2), -1), "codes must lie in 0 … 19, got -1"),
        (np.full((1, 2, 2), 2**64 - 1, np.uint64), "codes must lie in 0 … 19, got -1"),
        (torch.zeros(0, 2, 2, dtype=torch.int64), r"there are no codes to decode, got \(0, 2, 2\)"),
        (torch.zeros(1, 0, 2, dtype=torch.int64), r"there are no codes to decode, got \(1, 0, 2\)"),
    ],
)
def test_codes_that_are_none(tokenizer, codes, said):
    with pytest.raises(ValueError, match=said):
        tokenizer.decode(codes)


# -- the mode of the network -----------------------------------------------------------------------


def test_a_network_in_training_encodes_as_in_evaluation(tokenizer, monkeypatch):
    x = torch.rand(3, 1, 8, 8)
    codes = tokenizer.encode(x)
    images = tokenizer.decode(codes)
    seen = []
    tokenizer.network.encoder.register_forward_hook(lambda m, _, z: seen.append(m.training))
    tokenizer.network.decoder.register_forward_hook(lambda m, _, z: seen.append(m.training))
    tokenizer.network.train()
    tokenizer.network.decoder.eval()
    modes = [part.training for part in tokenizer.network.modules()]
    assert torch.equal(tokenizer.encode(x), codes)
    assert torch.equal(tokenizer.decode(codes), images)
    assert tokenizer.stride == 4
    with pytest.raises(ValueError, match="must lie in"):
        tokenizer.decode(codes + 20)
    assert seen and not any(seen)
    assert [part.training for part in tokenizer.network.modules()] == modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_codes_are_the_same_with_and_without_gradients(tokenizer, mode):
    x = torch.rand(3, 1, 8, 8, requires_grad=True)
    codes = tokenizer.encode(x)
    with mode():
        assert torch.equal(tokenizer.encode(x), codes)
        images = tokenizer.decode(codes)
    assert not images.requires_grad
    loss = tokenizer.network(x.detach()).output.sum()  # it may be trained afterwards
    loss.backward()


def test_autocast_is_the_callers_choice(tokenizer):
    x = torch.rand(3, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = tokenizer.encode(x)
        images = tokenizer.decode(codes)
    assert codes.dtype == torch.int64 and images.shape == x.shape
    assert torch.allclose(images.float(), tokenizer.decode(codes), atol=0.05)


@pytest.mark.parametrize("kind", ["grey", "groups"])
def test_a_quantizer_in_float32_in_a_network_of_bfloat16(runs, kind):
    tokenizer = Tokenizer.from_run(runs(kind), device="cpu")
    tokenizer.network.encoder.bfloat16()
    tokenizer.network.decoder.bfloat16()
    x = torch.rand(2, 1, 9, 8)
    record = tokenizer.encode(x)
    images = tokenizer.decode(record)
    assert record.codes.dtype == torch.int64
    assert images.shape == x.shape and images.dtype == torch.bfloat16
    with torch.no_grad():
        tokenizer.network(torch.rand(2, 1, 8, 8).bfloat16())


def test_threads_encode_at_once(tokenizer):
    tokenizer.network.train()
    given = [torch.rand(2, 1, 8 + 4 * (i % 3), 8) for i in range(12)]
    expected = [tokenizer.encode(x) for x in given]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(
                pool.map(
                    lambda x: (tokenizer.encode(x), tokenizer.decode(tokenizer.encode(x))), given
                )
            )
            for (codes, images), same in zip(found, expected):
                assert torch.equal(codes, same)
                assert torch.equal(images, tokenizer.decode(same))
    assert all(part.training for part in tokenizer.network.modules())


# -- a folder to share -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grey", "groups", "gan"])
def test_it_comes_back_the_same(runs, kind, tmp_path):
    tokenizer = Tokenizer.from_run(runs(kind), device="cpu")
    tokenizer.save_pretrained(tmp_path / "shared")
    assert sorted(p.name for p in (tmp_path / "shared").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "reconstructions.png",
    ]
    found = mqvae.Tokenizer.from_pretrained(tmp_path / "shared", device="cpu")
    assert (found.step, found.code_shape) == (3, tokenizer.code_shape)
    # The fingerprint too: codes of the run are codes of what is shared.
    assert found.model == tokenizer.model
    images = torch.rand(5, tokenizer.settings.data.channels, 8, 8)
    codes = tokenizer.encode(images)
    assert torch.equal(found.encode(images), codes)
    assert torch.equal(found.decode(codes), tokenizer.decode(codes))
    found.check_codes(tokenizer.encode_images(tokenizer.find_images("test")))


def test_what_was_shared_is_shared_again_with_its_card(tokenizer, runs, tmp_path):
    tokenizer.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("my own words")
    found = Tokenizer.from_pretrained(str(tmp_path / "a"))
    found.save_pretrained(tmp_path / "b")
    found.save_pretrained(tmp_path / "a")  # onto itself
    names = [p.name for p in sorted((tmp_path / "a").iterdir())]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.yaml"):
        _ = found.run
    # Another run's takes its place whole.
    bare = shutil.copytree(runs("groups"), tmp_path / "bare")
    (bare / "summary.json").unlink()
    shutil.rmtree(bare / "evaluations")
    Tokenizer.from_run(bare).save_pretrained(tmp_path / "a")
    assert "None were measured at step 3" in (tmp_path / "a" / "README.md").read_text()
    assert not (tmp_path / "a" / "reconstructions.png").exists()


def test_the_card_says_what_the_run_does(runs, tmp_path):
    run = shutil.copytree(runs("grey"), tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"] |= {"name": "/home/me/pictures", "root": "/home/me"}
    config["from"] = {"run": "/home/me/runs/other"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    Tokenizer.from_run(run, device="cpu").save_pretrained(tmp_path / "shared")
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert card.data.library_name == "mqvae" and "vector-quantization" in card.data.tags
    summary = json.loads((run / "summary.json").read_text())
    for text in (
        "# small on pictures\n",
        "8 × 8 pixels of grey become 2 × 2 codes of 20.",
        f"| MSE | {summary['mse']:.5g} | lower | mean over all numbers, images in [0, 1]",
        f"| Usage | {100 * summary['usage']:.4g} % | higher |",
        "split test, images 297",
        f"on {summary['device']}, with mqvae {mqvae.__version__}, torch {torch.__version__}",
        "| Network | VQVAE(width=8, residual_blocks=1, stride=4) |",
        "| Update rule | Joint(",
        "| Training steps | 3 of 3 |",
        "(reconstructions.png)",
    ):
        assert text in card.content, text
    with Image.open(tmp_path / "shared" / "reconstructions.png") as grid:
        strip = Image.open(run / "samples" / "test-last" / "originals.png")
        width, height = strip.size
        assert grid.size == (8 * width, 8 * (2 * height + 2))  # enlarged to 64 pixels a row
        first = grid.resize((width, 2 * height + 2), Image.Resampling.NEAREST)
        assert first.crop((0, 0, width, height)).tobytes() == strip.tobytes()
    # Nothing says where things were on this machine.
    for name in ("config.json", "README.md"):
        assert "/home/me" not in (tmp_path / "shared" / name).read_text()
    assert Tokenizer.from_pretrained(tmp_path / "shared").settings.data.name == "pictures"


@pytest.mark.parametrize("named", ["absolute", "relative", "home"])
def test_no_file_of_what_is_shared_names_a_place(tmp_path, monkeypatch, named):
    """Not in the card, nor in the settings, nor in the weights: paths, with spaces and letters."""
    monkeypatch.setenv("HOME", str(tmp_path / "jane"))
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    photos = tmp_path / "jane" / "my pictures" / "ferien été"
    photos.mkdir(parents=True)
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    monkeypatch.chdir(tmp_path / "jane")
    name = {
        "absolute": str(photos),
        "relative": "my pictures/ferien été",
        "home": "~/my pictures/ferien été",
    }[named]
    small = {"data": {"name": name, "channels": 1, "batch_size": 10, "validation": 5}}
    begin(Settings.of(load_preset("digits-tiny", SMALL, small)), tmp_path / "runs" / "one").fit()
    start = {"from": {"run": str(tmp_path / "runs" / "one")}, "data": {"root": None}}
    settings = Settings.of(load_preset("digits-tiny", SMALL, small, start))
    begin(settings, tmp_path / "runs" / "two").fit()
    tokenizer = Tokenizer.from_run(tmp_path / "runs" / "two", device="cpu")
    tokenizer.save_pretrained(tmp_path / "shared")
    assert len(list((tmp_path / "shared").iterdir())) == 4
    for path in (tmp_path / "shared").iterdir():
        content = path.read_bytes()
        for place in (str(tmp_path), "my pictures", "/runs", "jane", "~/"):
            assert place.encode() not in content, (path.name, place)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "image files in ferien été" in card
    assert Tokenizer.from_pretrained(tmp_path / "shared").settings.data.name == "ferien été"


def test_paths_in_a_text_become_names():
    for text, expected in (
        ("files in /usr/share/mnist (Debian)", "files in mnist (Debian)"),
        ("from '/data/x.pth', ~/y/z", "from 'x.pth', z"),
        ("[a](https://a.org/b/c) and/or 3 / 4, 1/2", "[a](https://a.org/b/c) and/or 3 / 4, 1/2"),
    ):
        assert names_only(text) == expected
    assert names_only("in /a b/c d: 3", "/a b/c d") == "in c d: 3"
    assert without_places({"a": ["/x/y", 3, {"b": "~/z"}], "c": "a/b"}) == {
        "a": ["y", 3, {"b": "z"}],
        "c": "a/b",
    }


def test_figures_of_another_step_are_left_out(runs, tmp_path):
    run = shutil.copytree(runs("grey"), tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    file = run / "evaluations" / "test-last.json"
    evaluation = {**json.loads(file.read_text()), "mse": 0.4321}
    file.write_text(json.dumps(evaluation))
    (run / "summary.json").write_text(json.dumps({**summary, "mse": 0.1234}))

    def card():
        Tokenizer.from_run(run, device="cpu").save_pretrained(tmp_path / "shared")
        return (tmp_path / "shared" / "README.md").read_text()

    assert "| MSE | 0.4321 |" in card()
    file.write_text(json.dumps({**evaluation, "weights": "of another step"}))
    assert "| MSE | 0.1234 |" in card()
    (run / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is damaged"):
        card()


def edit(folder, old, new):
    text = (folder / "config.json").read_text()
    assert old in text
    (folder / "config.json").write_text(text.replace(old, new))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json of a tokenizer: pass a"),
        (lambda f: (f / "config.json").write_text("{}"), "holds no config.json of a tokenizer"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no tokenizer that can be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\1" * 20), "no tokenizer that can be"),
        (lambda f: (f / "config.json").write_text("[" * 10**5), "holds no config.json of a token"),
        (lambda f: edit(f, '"width": 8', '"width": 10'), "does not fit"),
        (lambda f: edit(f, '"width": 8', '"width": 1000000000000'), "cannot be made"),
        (lambda f: edit(f, '"num_codes": 20', f'"num_codes": {10**15}'), "cannot be made"),
        (lambda f: edit(f, '"step": 3', '"step": "soon"'), "no tokenizer that can be read"),
        (lambda f: flip(f / "model.safetensors", -1), "model.safetensors is not what was written"),
        (lambda f: flip(f / "model.safetensors", 300), "model.safetensors is not what was writt"),
        (
            lambda f: (f / "config.json").write_text(
                (f / "config.json").read_text().replace("mqvae.VQVAE", "subprocess.Popen")
            ),
            "holds no tokenizer that can be read",
        ),
    ],
)
def test_folders_that_hold_no_tokenizer(tokenizer, tmp_path, change, said):
    tokenizer.save_pretrained(tmp_path / "shared")
    change(tmp_path / "shared")
    with pytest.raises(ValueError, match=said):
        Tokenizer.from_pretrained(tmp_path / "shared")


def test_names_that_are_none(runs):
    with pytest.raises(ValueError, match=r"it is a run: Tokenizer\.from_run"):
        Tokenizer.from_pretrained(runs("grey"))
    for name in ("./nowhere", "/nowhere/at/all", "nowhere", "a b/c"):
        with pytest.raises(ValueError, match=r"there is no folder .*: pass one that"):
            Tokenizer.from_pretrained(name)


# -- the Hub, which is not asked -------------------------------------------------------------------


def httpx_error(name):
    """As the Hub's client raises it where there is no network."""
    client = sys.modules[huggingface_hub.errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0]]
    return getattr(client, name)("Connection refused")


def test_what_the_hub_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="no folder me/mine, nor could it be had from the"):
        Tokenizer.from_pretrained("me/mine", cache_dir=tmp_path, local_files_only=True)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """What was sent to a hub that is a folder here."""
    there = {}

    class Api:
        def __init__(self, token):
            there["token"] = token

        def create_repo(self, repo_id, **options):
            there["repository"] = repo_id, options
            return SimpleNamespace(repo_id=f"me/{Path(repo_id).name}")

        def upload_folder(self, *, repo_id, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
            there["files"] = {p.name for p in Path(folder_path).iterdir()}
            there["options"] = options
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(name, **options):
        there["asked"] = name, options["revision"], options["local_files_only"]
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return there


OFFLINE = (
    ConnectionError("no route"),
    httpx_error("ConnectError"),
    httpx_error("ReadTimeout"),
    huggingface_hub.errors.OfflineModeIsEnabled("offline mode"),
    huggingface_hub.errors.HFValidationError("Repo id must"),
)


@pytest.mark.parametrize("error", OFFLINE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["create_repo", "upload_folder", "snapshot_download"])
def test_a_hub_that_cannot_be_asked_says_what_to_do(tokenizer, there, monkeypatch, call, error):
    def fail(*arguments, **options):
        raise error

    if call == "snapshot_download":
        monkeypatch.setattr(huggingface_hub, call, fail)
        with pytest.raises(MqvaeError, match=r"could not|could it be had.*check the name and the"):
            Tokenizer.from_pretrained("me/mine")
        return
    monkeypatch.setattr(huggingface_hub.HfApi, call, fail)
    with pytest.raises(MqvaeError, match=r"could not be pushed to .*mine.* save_pretrained"):
        tokenizer.push_to_hub("mine")


def test_a_fault_of_ours_is_not_said_to_be_the_hubs(tokenizer, there, monkeypatch):
    def fail(*arguments, **options):
        raise TypeError("a wrong call")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(TypeError, match="a wrong call"):
        tokenizer.push_to_hub("mine")


def test_to_the_hub_and_back(tokenizer, there):
    assert tokenizer.push_to_hub("mine", private=True) == "https://hub/me/mine/commit/1"
    assert there["repository"] == ("mine", {"private": True, "exist_ok": True})
    assert there["files"] == {
        "README.md",
        "config.json",
        "model.safetensors",
        "reconstructions.png",
    }
    assert there["options"]["revision"] is None
    found = Tokenizer.from_pretrained("me/mine", revision="v1", local_files_only=True)
    assert found.model == tokenizer.model
    assert there["asked"] == ("me/mine", "v1", True)


def test_without_huggingface_hub(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'mqvae\[hub\]'"):
        tokenizer.push_to_hub("mine")
    with pytest.raises(ExtraMissing, match=r"pip install 'mqvae\[hub\]'"):
        Tokenizer.from_pretrained("me/mine")
    tokenizer.save_pretrained(tmp_path)
    Tokenizer.from_pretrained(tmp_path)


# -- its page --------------------------------------------------------------------------------------


def test_the_page_runs(there, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "tokenizer.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text.partition("## Export")[0], re.DOTALL)
    assert len(blocks) == 6
    config = load_preset("digits-tiny", {"steps": 1, "trainer": {"accelerator": "cpu"}})
    begin(Settings.of(config), tmp_path / "runs" / "first").fit()
    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.new("RGB", (16, 16), (9 * i, 99, 0)).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/tokenizer.md", "exec"), names)
    assert names["there"].model == names["same"].model
    assert [tuple(image.shape) for image in names["each"]] == [(1, 16, 16), (1, 8, 32)]

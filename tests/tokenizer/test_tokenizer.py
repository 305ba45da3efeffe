"""mqvae.tokenizer: images to codes and back, and what is refused."""

import dataclasses
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image

import mqvae
from mqvae import NoQuantizer
from mqvae.data import load
from mqvae.runs import Run
from mqvae.tokenizer import Codes, Tokenizer
from mqvae.tokenizer import codec as module

KINDS = {
    "grey": {},
    "groups": {"quantizer": {"init_args": {"groups": 2}}},
    "shared": {"quantizer": {"init_args": {"groups": 2, "shared_codebook": True}}},
    "colour": {"data": {"channels": 3, "side": 12}},
    "other": {"seed": 1},
}


@pytest.fixture(scope="module")
def runs(trained):
    return lambda kind: trained(kind, SMALL, KINDS[kind])


@pytest.fixture
def tokenizer(runs):
    return Tokenizer.from_run(runs("grey"), device="cpu")


def picture(path, size=(8, 8), channels=1, seed=0):
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grey", "groups", "shared", "colour"])
def test_decoding_is_the_networks_own_reconstruction(runs, kind, monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 100)  # 297 are two of these and a rest
    tokenizer = Tokenizer.from_run(runs(kind), device="cpu")
    images = tokenizer.find_images("test")
    codes = tokenizer.encode_images(images)
    side = images.shape[1] // 4
    groups = (2,) if kind in ("groups", "shared") else ()
    assert codes.codes.shape == (297, side, side, *groups)
    assert len(np.unique(codes.codes)) > 5
    x = images.pixels / 255
    for part, indices in zip(x.split(100), torch.from_numpy(codes.codes).split(100)):
        with torch.no_grad():
            result = tokenizer.network(part)
        assert torch.equal(result.quantized.codes, indices)
        assert torch.equal(tokenizer.encode(part), indices)
        decoded = tokenizer.decode(indices)
        assert decoded.dtype == torch.float32
        assert torch.equal(decoded, result.output)


@pytest.mark.parametrize("kind", ["grey", "groups", "colour"])
def test_pictures_are_the_reconstruction_clamped_and_rounded(runs, kind, tmp_path):
    tokenizer = Tokenizer.from_run(runs(kind), device="cpu")
    images = tokenizer.find_images("test")
    path = tmp_path / "codes.npz"
    tokenizer.encode_images(images).save(path)
    assert tokenizer.decode_to_files(Codes.load(path), tmp_path / "out") == 297
    with torch.no_grad():
        parts = [tokenizer.network(x).output for x in (images.pixels / 255).split(256)]
    expected = (torch.cat(parts).clamp(0, 1) * 255).round().byte()
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == [f"{i:03}.png" for i in range(297)]
    for file, image in zip(files, expected):
        with Image.open(file) as shown:
            assert shown.mode == {1: "L", 3: "RGB"}[len(image)]
            pixels = torch.from_numpy(np.array(shown)).view(*image.shape[1:], len(image))
        assert torch.equal(pixels.movedim(-1, 0), image)


def test_no_more_images_are_decoded_at_once_than_memory_holds(tokenizer, monkeypatch):
    codes = torch.randint(0, 20, (9, 12, 12))  # images of 48 × 48, that the run has not seen
    whole = tokenizer.decode(codes)
    monkeypatch.setattr(module, "BATCH_SIZE", 2)  # 3 of 48 × 48 have the pixels, but no more than 2
    taken = []
    tokenizer.network.decoder.register_forward_pre_hook(lambda _, z: taken.append(len(z[0])))
    assert torch.allclose(tokenizer.decode(codes), whole, atol=1e-6)
    assert taken == [2, 2, 2, 2, 1]
    taken.clear()
    large = torch.randint(0, 20, (3, 24, 24))  # of 96 × 96
    assert tokenizer.decode(large).shape == (3, 1, 96, 96)
    assert taken == [1, 1, 1]


def test_outputs_beyond_the_range_are_clamped(tokenizer, tmp_path):
    codes = tokenizer.encode_images(tokenizer.find_images("test"))
    last = tokenizer.network.decoder.layers[-1]
    for value, shown in ((7.0, 255), (-7.0, 0)):
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(value)
        tokenizer.decode_to_files(codes, tmp_path / str(shown))
        with Image.open(tmp_path / str(shown) / "000.png") as image:
            assert (np.asarray(image) == shown).all()


def test_a_tokenizer_is_public_and_in_eval_mode(runs):
    tokenizer = mqvae.Tokenizer.from_run(runs("grey"))
    assert not tokenizer.network.training
    assert tokenizer.step == 3
    assert tokenizer.settings.name == "small"
    best = mqvae.Tokenizer.from_run(str(runs("grey")), checkpoint="best")
    assert best.model == Run(runs("grey")).load("best").digest


def test_without_quantization_there_is_nothing_to_encode_to(tokenizer):
    tokenizer.network.quantizer = NoQuantizer(tokenizer.network.quantizer.dim)
    with pytest.raises(ValueError, match="there are no codes to encode to"):
        tokenizer.encode(torch.zeros(1, 1, 8, 8))


def test_a_run_may_be_moved(runs, tmp_path):
    moved = shutil.copytree(runs("grey"), tmp_path / "elsewhere")
    codes = Tokenizer.from_run(runs("grey"), device="cpu").encode_images(load("digits", "test"))
    Tokenizer.from_run(moved, device="cpu").check_codes(codes)


# -- codes as a file -------------------------------------------------------------------------------


def test_codes_come_back(tokenizer, tmp_path):
    codes = tokenizer.encode_images(tokenizer.find_images("test"))
    path = tmp_path / "deep" / "codes.npz"
    codes.save(path)
    found = Codes.load(path)
    np.testing.assert_array_equal(found.codes, codes.codes)
    same = {f.name for f in dataclasses.fields(Codes)} - {"codes"}
    assert all(getattr(found, name) == getattr(codes, name) for name in same)
    assert (found.num_codes, found.side, found.channels) == (20, 8, 1)
    assert found.names[:2] == ("000", "001")
    assert [p.name for p in path.parent.iterdir()] == ["codes.npz"]
    # Readable without this library, and without pickle.
    with np.load(path, allow_pickle=False) as file:
        assert file["codes"].dtype == np.uint16
        assert {k: file[k].dtype.kind for k in file.files if file[k].dtype.kind == "O"} == {}


@pytest.mark.parametrize(("num_codes", "kind"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_large_codes_keep_their_value(tmp_path, num_codes, kind):
    array = np.array([[[0, num_codes - 1]]])
    Codes(array, num_codes, 8, 1, ("é",), "m").save(tmp_path / "c.npz")
    found = Codes.load(tmp_path / "c.npz")
    assert found.codes.dtype == kind
    np.testing.assert_array_equal(found.codes, array)
    assert found.names == ("é",)


def test_codes_are_written_whole_or_not_at_all(tokenizer, tmp_path, monkeypatch):
    codes = tokenizer.encode_images(tokenizer.find_images("test"))
    path = tmp_path / "codes.npz"
    codes.save(path)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        codes.save(path)
    assert path.read_bytes() == before


def data_of_codes(path):
    """Where the compressed codes begin in the file, and how long they are."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("codes.npy")
    name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
    return info.header_offset + 30 + name + extra, info.compress_size


def flipped(path):
    start, size = data_of_codes(path)
    content = bytearray(path.read_bytes())
    content[start + size // 2] ^= 0xFF
    path.write_bytes(content)


def no_stream(path):
    content = bytearray(path.read_bytes())
    content[data_of_codes(path)[0]] = 0xFF  # a block of a kind that there is not
    path.write_bytes(content)


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def pickled(path):
    with np.load(path) as file:
        rest = {k: file[k] for k in file.files if k != "codes"}
    np.savez(path, codes=np.array([Harmful()], dtype=object), **rest)


def single_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def without_model(path):
    with np.load(path) as file:
        rest = {k: file[k] for k in file.files if k != "model"}
    np.savez(path, **rest)


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        no_stream,
        pickled,
        without_model,
        lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"hello"),
        single_array,
        lambda p: np.savez(p, codes=np.zeros(3), num_codes=np.zeros(2)),
    ],
)
def test_files_that_hold_no_codes(tokenizer, tmp_path, damage):
    path = tmp_path / "codes.npz"
    tokenizer.encode_images(tokenizer.find_images("test")).save(path)
    damage(path)
    with pytest.raises(ValueError, match=r"codes\.npz does not hold codes \(.+\): pass a file"):
        Codes.load(path)


def test_a_file_of_codes_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        Codes.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="a folder of codes, which are read piece by piece"):
        Codes.load(tmp_path)


# -- codes that do not fit -------------------------------------------------------------------------


def changed(array, where, value):
    array = array.copy()
    array[where] = value
    return array


UNFIT = {
    "num_codes": (lambda c: {"num_codes": 21}, "the codes index 21 codewords, the run has 20"),
    "too large": (lambda c: {"codes": changed(c, (5, 1, 0), 20)}, "must lie in 0 … 19, got 0 … 20"),
    "negative": (lambda c: {"codes": changed(c, (5, 1, 0), -1)}, "must lie in 0 … 19, got -1 …"),
    "fewer names": (lambda c: {"names": ("a", "b")}, "297 rows of codes, but 2 names"),
    "fewer codes": (lambda c: {"codes": c[:5]}, "5 rows of codes, but 297 names"),
    "shape": (lambda c: {"codes": c[:, :1]}, r"1 × 2 codes decode to images of 4 × 8, the file"),
    "side": (lambda c: {"side": 12}, r"2 × 2 codes decode to images of 8 × 8, the file says 12"),
    "huge side": (lambda c: {"side": 10**9}, "the file says 1000000000"),
    "no side": (lambda c: {"side": 0}, "the file says 0 × 0"),
    "flat": (lambda c: {"codes": c.reshape(297, 4)}, r"decodes codes \(n, h, w\), got \(297, 4\)"),
    "groups": (lambda c: {"codes": c[..., None]}, r"decodes codes \(n, h, w\), got \(297, 2, 2, 1"),
    "floats": (
        lambda c: {"codes": c / 1.0},
        "must be whole numbers, and some, got 1188 of float64",
    ),
    "truths": (lambda c: {"codes": c > 0}, "must be whole numbers, and some, got 1188 of bool"),
    "none": (lambda c: {"codes": c[:0], "names": ()}, "must be whole numbers, and some, got 0"),
    "no positions": (lambda c: {"codes": c[:, :0]}, "must be whole numbers, and some, got 0"),
    "channels": (lambda c: {"channels": 3}, "inputs with 3 channels, the run has 1"),
    "weights": (lambda c: {"model": "0" * 64}, "made with other weights"),
}


@pytest.mark.parametrize(("change", "said"), UNFIT.values(), ids=UNFIT.keys())
def test_codes_that_do_not_fit(tokenizer, tmp_path, change, said):
    codes = tokenizer.encode_images(tokenizer.find_images("test"))
    tokenizer.check_codes(codes)
    unfit = dataclasses.replace(codes, **change(codes.codes))
    with pytest.raises(ValueError, match=said):
        tokenizer.decode_to_files(unfit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_codes_of_another_run(runs, tokenizer):
    codes = tokenizer.encode_images(tokenizer.find_images("test"))
    for kind, said in (
        ("other", "other weights"),
        ("groups", r"decodes codes \(n, h, w, 2\)"),
        ("colour", "1 channels, the run has 3"),
    ):
        with pytest.raises(ValueError, match=said):
            Tokenizer.from_run(runs(kind), device="cpu").check_codes(codes)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_groups(runs, count):
    tokenizer = Tokenizer.from_run(runs("groups"), device="cpu")
    codes = tokenizer.encode_images(tokenizer.find_images("test"))
    array = np.repeat(codes.codes[..., :1], count, axis=-1)
    with pytest.raises(ValueError, match=r"\(n, h, w, 2\)"):
        tokenizer.check_codes(dataclasses.replace(codes, codes=array))


# -- names -----------------------------------------------------------------------------------------


def decoded_names(tokenizer, names, folder):
    codes = tokenizer.encode_images(tokenizer.find_images("test"))
    few = dataclasses.replace(codes, codes=codes.codes[: len(names)], names=tuple(names))
    tokenizer.decode_to_files(few, folder)
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a.jpg", "deep/er/b.png"], ["a.png", "deep/er/b.png"]),
        (["a.b.c.jpg", "0"], ["0.png", "a.b.c.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["same", "same"], ["000000.png", "000001.png"]),
        (["", "b"], ["000000.png", "000001.png"]),
        (["../../out.png", "b"], ["000000.png", "000001.png"]),
        (["/tmp/evil.png", "b"], ["000000.png", "000001.png"]),
        (["deep/../../out.png", "b"], ["000000.png", "000001.png"]),
        (["a\0b.png", "b"], ["000000.png", "000001.png"]),
        (["a" * 300, "b"], ["000000.png", "000001.png"]),
        (["\ud800", "b"], ["000000.png", "000001.png"]),
    ],
)
def test_names_are_kept_inside_the_folder(tokenizer, tmp_path, names, files):
    assert decoded_names(tokenizer, names, tmp_path / "in" / "out") == files
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["out"]


# -- images ----------------------------------------------------------------------------------------


def test_one_file(tokenizer, tmp_path):
    pixels = picture(tmp_path / "one.png")
    images = tokenizer.find_images(str(tmp_path / "one.png"))
    codes = tokenizer.encode_images(images)
    assert codes.names == ("one.png",)
    x = torch.from_numpy(pixels)[None, None] / 255
    np.testing.assert_array_equal(codes.codes, tokenizer.encode(x).numpy())


def test_a_folder_with_subfolders(tokenizer, tmp_path):
    files = ["b/one.png", "a.png", "b/c/two.png"]
    all_pixels = {name: picture(tmp_path / name, seed=i) for i, name in enumerate(files)}
    codes = tokenizer.encode_images(tokenizer.find_images(str(tmp_path)))
    assert sorted(codes.names) == sorted(files)
    for name, array in zip(codes.names, codes.codes):
        x = torch.from_numpy(all_pixels[name])[None, None] / 255
        np.testing.assert_array_equal(array, tokenizer.encode(x)[0].numpy())
    assert decoded_names(tokenizer, codes.names, tmp_path / "out") == sorted(files)


def test_a_split(tokenizer):
    for split, count in (("train", 1500), ("validation", 150), ("test", 297)):
        assert len(tokenizer.find_images(split)) == count


def test_images_of_another_side(tokenizer, tmp_path):
    picture(tmp_path / "wide.png", (16, 16))
    codes = tokenizer.encode_images(tokenizer.find_images(str(tmp_path / "wide.png")))
    assert codes.codes.shape == (1, 4, 4) and codes.side == 16
    tokenizer.decode_to_files(codes, tmp_path / "out")
    with Image.open(tmp_path / "out" / "wide.png") as image:
        assert image.size == (16, 16)


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_fit(runs, kind, tmp_path):
    tokenizer = Tokenizer.from_run(runs(kind), device="cpu")
    picture(tmp_path / "a.png", (9, 31), channels=3)
    picture(tmp_path / "b.png", (5, 4))
    images = tokenizer.find_images(str(tmp_path), fit=True)
    data = tokenizer.settings.data
    assert images.shape == (data.channels, data.side, data.side)
    assert tokenizer.encode_images(images).codes.shape[0] == 2


@pytest.mark.parametrize(
    ("size", "channels", "said"),
    [
        ((9, 9), 1, r"one\.png: .*multiples of 4, got 9 × 9: 8 × 8 or 12 × 12.*--fit .* to 8"),
        ((8, 8), 3, r"one\.png has images of 3 channels, the run was trained on 1: --fit"),
        ((8, 12), 1, r"one\.png is not square.*8 × 12; --fit resizes and crops to 8"),
    ],
)
def test_images_that_do_not_fit(tokenizer, tmp_path, size, channels, said):
    picture(tmp_path / "one.png", size, channels)
    with pytest.raises(ValueError, match=said):
        tokenizer.find_images(str(tmp_path / "one.png"))


def test_images_that_differ(tokenizer, tmp_path):
    picture(tmp_path / "a.png", (8, 8))
    picture(tmp_path / "b.png", (12, 12))
    with pytest.raises(ValueError, match=r"b\.png has another size.*; --fit"):
        tokenizer.find_images(str(tmp_path))


def test_an_image_that_cannot_be_read(tokenizer, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    for fit in (False, True):
        with pytest.raises(ValueError, match=r"b\.png cannot be read") as raised:
            tokenizer.encode_images(tokenizer.find_images(str(tmp_path), fit=fit))
        assert "--fit" not in str(raised.value)


def test_what_is_no_image(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"there is no '.*nowhere': IMAGES is an image file"):
        tokenizer.find_images(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="holds no images"):
        tokenizer.find_images(str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="is not an image by its name"):
        tokenizer.find_images(str(tmp_path / "a.txt"))

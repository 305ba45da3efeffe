"""Compressed codes: there and back bit for bit, on every machine, and what is refused."""

import math
import struct

import numpy as np
import pytest
import torch
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mqvae.cli import main
from mqvae.coding import Compressed, SameSize
from mqvae.coding import file as file_module
from mqvae.coding import model as model_module
from mqvae.coding.mixture import BITS, Mixture, probabilities
from mqvae.coding.model import order_of, pack, walk
from mqvae.errors import MqvaeError
from mqvae.tokenizer import SizedCodes, Tokenizer

KINDS = {
    "grey": {},
    "other": {"seed": 1},
    "groups": {"quantizer": {"init_args": {"groups": 2}}},
    "shared": {"quantizer": {"init_args": {"groups": 2, "shared_codebook": True}}},
    "residual": {
        "quantizer": {
            "class_path": "mqvae.ResidualQuantizer",
            "init_args": {
                "stages": [
                    {
                        "class_path": "mqvae.VectorQuantizer",
                        "init_args": {"num_codes": 20, "dim": 4},
                    }
                ]
                * 2
            },
        }
    },
    "colour": {"data": {"channels": 3, "side": 12}},
}


@pytest.fixture(scope="module")
def runs(trained):
    return lambda kind: trained(kind, SMALL, KINDS[kind])


def of(codes, num_codes, sizes=None, **others):
    """A compressed file of (n, h, w, G) arrays."""
    given = [codes] if isinstance(codes, np.ndarray) else codes
    made = tuple(SameSize(each, (4 * each.shape[1], 4 * each.shape[2])) for each in given)
    return Compressed(made, num_codes, 1, "model", **others)


def smooth(shape, num_codes, seed=0):
    """Codes that their neighbours say something of."""
    n, h, w, groups = shape
    draw = np.random.default_rng(seed)
    steps = draw.integers(-1, 2, (n, h, w, groups))
    return (
        steps.cumsum(1) + steps.cumsum(2) + draw.integers(0, num_codes, (n, 1, 1, 1))
    ) % num_codes


def entropy(codes):
    p = np.bincount(codes.ravel()) / codes.size
    return -sum(q * math.log2(q) for q in p if q)


# -- there and back --------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    num_codes=st.sampled_from([1, 2, 3, 20, 256, 1000, 2**18, 2**63]),
    shapes=st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=3),
    groups=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_codes_come_back(num_codes, shapes, groups, seed):
    draw = np.random.default_rng(seed)
    codes = [draw.integers(0, num_codes, (*shape, groups)) for shape in shapes]
    found = Compressed.from_bytes(of(codes, num_codes).to_bytes())
    assert (found.num_codes, found.channels, found.model, found.names) == (
        num_codes,
        1,
        "model",
        (),
    )
    for run, array in zip(found.runs, codes, strict=True):
        assert run.codes.dtype == np.int64 and run.size == (4 * array.shape[1], 4 * array.shape[2])
        np.testing.assert_array_equal(run.codes, array)


@pytest.mark.parametrize("books", [1, 2])
@pytest.mark.parametrize("num_codes", [20, 64])
def test_codes_come_back_from_the_order_of_their_codewords(num_codes, books):
    codes = smooth((40, 8, 8, 2), num_codes)
    codewords = np.random.default_rng(0).normal(size=(books, num_codes, 3))
    content = of(codes, num_codes).to_bytes(codewords)
    found = Compressed.from_bytes(content)
    np.testing.assert_array_equal(found.runs[0].codes, codes)
    # The order is there, in as many bits as a code has.
    levels = (num_codes - 1).bit_length()
    assert file_module.START.unpack_from(content)[3] == -(-books * num_codes * levels // 8)
    few = of(codes[:1, :2], num_codes).to_bytes(codewords)  # which do not pay for it
    assert file_module.START.unpack_from(few)[3] == 0


def test_orders_are_of_all_codes_and_keep_neighbours_together():
    points = np.random.default_rng(0).normal(size=(20, 3))
    order = order_of(points)
    assert len(set(order.tolist())) == 20 and order.min() >= 0 and order.max() < 32
    line = order_of(np.arange(16.0)[:, None])
    assert line.tolist() in (list(range(16)), list(range(15, -1, -1)))
    assert sorted(order_of(np.zeros((5, 2))).tolist()) == sorted(set(order_of(np.zeros((5, 2)))))


@pytest.mark.parametrize("kind", ["grey", "groups", "shared", "residual", "colour"])
def test_a_tokenizer_compresses_what_it_encodes(runs, kind):
    tokenizer = Tokenizer.from_run(runs(kind), device="cpu")
    x = tokenizer.find_images("test").pixels[:40] / 255
    codes = tokenizer.encode(x)
    content = tokenizer.compress(codes)
    assert torch.equal(tokenizer.decompress(content), codes)
    larger = tokenizer.encode(torch.cat([x, x], 2))
    assert torch.equal(tokenizer.decompress(tokenizer.compress(larger)), larger)


def test_images_of_several_sizes_keep_them(runs):
    tokenizer = Tokenizer.from_run(runs("groups"), device="cpu")
    draw = np.random.default_rng(0)
    images = [
        draw.integers(0, 256, (h, w), np.uint8) for h, w in [(9, 30), (9, 30), (4, 4), (9, 30)]
    ]
    record = tokenizer.encode(images)
    found = tokenizer.decompress(tokenizer.compress(record))
    assert isinstance(found, SizedCodes) and found.sizes == record.sizes
    assert torch.equal(found.codes, record.codes)
    one = tokenizer.encode(images[:2])
    assert tokenizer.decompress(tokenizer.compress(one)).sizes == ((9, 30),) * 2


def test_what_is_no_codes_is_not_compressed(runs):
    tokenizer = Tokenizer.from_run(runs("grey"), device="cpu")
    for wrong in (torch.zeros(3, 4), torch.zeros(1, 2, 2), torch.zeros(0, 2, 2, dtype=torch.int64)):
        with pytest.raises(MqvaeError, match=r"whole numbers \(B, h, w\), and some, got"):
            tokenizer.compress(wrong)
    with pytest.raises(MqvaeError, match="must lie in 0 … 19, got 0 … 20"):
        tokenizer.compress(torch.tensor([[[0, 20]]]))


# -- how few ---------------------------------------------------------------------------------------


def ideal_bits(runs, num_codes):
    """What the model's probabilities of the codes make together."""
    bits = 0.0

    def coder(given, said):
        nonlocal bits
        ones = said / 2**BITS
        bits -= np.log2(np.where(given == 1, ones, 1 - ones)).sum()
        return given

    walk([run.astype(np.uint64) for run in runs], num_codes, coder)
    return bits


@pytest.mark.parametrize("groups", [1, 2])
def test_a_file_is_within_a_hundredth_of_its_model(groups):
    codes = smooth((80, 7, 7, groups), 64)
    content = of(codes, 64).to_bytes()
    assert 8 * len(pack([codes], 64)) <= ideal_bits([codes], 64) + 64
    assert 8 * len(content) <= 1.01 * ideal_bits([codes], 64) + 8 * 200  # of header and digest


def test_codes_without_any_pattern_are_within_a_hundredth_of_their_entropy():
    p = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.01, 0.01])
    codes = np.random.default_rng(0).choice(8, (3000, 7, 7, 1), p=p)
    bits = 8 * len(of(codes, 8).to_bytes()) / codes.size
    assert 0.99 * entropy(codes) < bits < 1.01 * entropy(codes)


def test_neighbours_and_positions_make_codes_cheaper():
    codes = smooth((300, 7, 7, 1), 64)
    assert 8 * len(of(codes, 64).to_bytes()) / codes.size < 0.6 * entropy(codes)
    placed = np.tile(np.arange(49).reshape(1, 7, 7, 1), (300, 1, 1, 1))
    assert 8 * len(of(placed, 64).to_bytes()) / placed.size < 0.1 * entropy(placed)


# -- the same on every machine ---------------------------------------------------------------------


def test_probabilities_are_as_exactly_as_they_can_be_told():
    table = probabilities()
    assert len(table) == 4096 and table[2048] == 2**15 and table[0] > 0 and table[-1] < 2**BITS
    for step in range(-2048, 2048, 37):
        exact = 2**BITS / (1 + math.exp(-step / 256))
        assert table[step + 2048] in (math.floor(exact - 1e-6), math.floor(exact + 1e-6))


def test_constriction_is_given_integers_and_keeps_them():
    """Its coder against integers of Python, which cannot round."""
    import constriction

    draw = np.random.default_rng(0)
    said = np.concatenate([draw.integers(1, 2**BITS, 3000), [1, 2**BITS - 1, 21, 2**BITS - 21]])
    bits = draw.integers(0, 2, len(said))
    coder = constriction.stream.stack.AnsCoder()
    _, family = model_module._constriction()
    coder.encode_reverse(bits.astype(np.int32), family, model_module._frequencies(said))
    words, state = [], 0
    for bit, share in zip(bits[::-1].tolist(), (said[::-1] << (24 - BITS)).tolist()):
        start, share = (2**24 - share, share) if bit else (0, 2**24 - share)
        if state >> 40 >= share:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // share << 24) | (start + state % share)
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    assert coder.get_compressed().tolist() == words


def test_counts_stay_in_range_however_often_a_context_is_met():
    mixture = Mixture(2, 1, 4)
    contexts = np.zeros((2, 5000), np.uint64)
    for bit in (0, 1, 0, 1):
        said = mixture.predict(contexts, 0)
        assert (said > 0).all() and (said < 2**BITS).all()
        mixture.learn(np.full(5000, bit))
        often = mixture.counts >> 32
        assert often.max() <= 1023 and ((mixture.counts & 0xFFFFFFFF) <= often).all()


GOLDEN = (
    "896d71760d0a1a0a01000000720000000000000000000000400000000000000078da2d8c510a83301044ef32df"
    "434db416f12a6990186d0b359bd292afe2dddd800ccbccdb5de60f29698a79597f18ad25e22b88ac5b2522e97e"
    "c3783af12da207e73a5ed9b3a5bdb1359ece6aae1a38784fcc39bff5cf1012522d7608978f3cb5616eeec59847"
    "3c31ea2cf0fb019ee426b4d348d53f97f4c0b8d8d6edb90ee33bbc80c490413e48861216e62a5f164554a09ae4"
    "3c82e07e5138e2da5b5013f3702d9b73b2327bc4c0e5cbbb069464e36b7d1e528b8ded35dd421b69002071c7c3"
    "c8"
)


def golden_codes():
    """Made of integers alone, without a random generator of any library."""
    number = np.arange(3 * 4 * 5 * 2).reshape(3, 4, 5, 2)
    return (number * number // 7 + number % 5) % 11, (number[:1, :2, :2] * 3) % 11


def test_a_file_written_long_ago_on_another_machine_is_read():
    found = Compressed.from_bytes(bytes.fromhex(GOLDEN))
    for run, codes in zip(found.runs, golden_codes(), strict=True):
        np.testing.assert_array_equal(run.codes, codes)
    assert found.names == ("a.png", "b/ü.png", "c", "d") and found.num_codes == 11
    # And its codes would be written as they were, whatever zlib makes of the header today.
    _, _, header, order, _ = file_module.START.unpack_from(bytes.fromhex(GOLDEN))
    start = file_module.START.size + header + order
    assert pack(golden_codes(), 11).hex() == bytes.fromhex(GOLDEN)[start:-16].hex()


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content():
    return of(smooth((20, 4, 4, 1), 16), 16, names=tuple("abcdefghijklmnopqrst")).to_bytes(
        np.random.default_rng(0).normal(size=(1, 16, 2))
    )


def test_damage_to_any_byte_is_refused(content):
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(
            MqvaeError, match=r"is damaged|cut short or damaged|no compressed codes"
        ):
            Compressed.from_bytes(bytes(damaged), "f")


def test_what_is_cut_short_or_too_long_is_refused(content):
    for length in range(0, len(content), 7):
        with pytest.raises(MqvaeError, match=r"f is cut short|f holds no compressed codes"):
            Compressed.from_bytes(content[:length], "f")
    with pytest.raises(MqvaeError, match="damaged"):
        Compressed.from_bytes(content + b"\0", "f")


def sealed(content):
    """The content with the digest that fits it."""
    import hashlib

    return content[:-16] + hashlib.sha256(content[:-16]).digest()[:16]


def rewritten(content, **changes):
    """With another header, and a digest that fits."""
    import json
    import zlib

    start = file_module.START
    magic, version, header, order, codes = start.unpack_from(content)
    there = json.loads(zlib.decompress(content[start.size : start.size + header]))
    made = zlib.compress(json.dumps({**there, **changes}).encode())
    head = start.pack(magic, version, len(made), order, codes)
    return sealed(head + made + content[start.size + header :])


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": []},
        {"runs": [[20, 4, 4, 1, 16]]},
        {"runs": [[0, 4, 4, 1, 16, 16]]},
        {"runs": [[-20, 4, -4, 1, 16, 16]]},
        {"runs": [[2**40, 4, 4, 1, 16, 16]]},
        {"runs": [[10, 4, 4, 1, 16, 16], [10, 4, 4, 2, 16, 16]]},
        {"runs": "many"},
        {"num_codes": 0},
        {"num_codes": 2**70},
        {"num_codes": 17},
        {"num_codes": "16"},
        {"books": 2},
        {"books": None},
        {"channels": 2},
        {"model": 3},
        {"names": ["a"]},
        {"names": [1] * 20},
        {"names": None},
    ],
)
def test_headers_that_somebody_made_up_are_refused(content, changes):
    with pytest.raises(MqvaeError, match="f holds no compressed codes"):
        Compressed.from_bytes(rewritten(content, **changes), "f")
    Compressed.from_bytes(rewritten(content, model="another"), "f")


def test_content_that_somebody_made_up_does_no_harm(content):
    for place in range(file_module.START.size, len(content) - 16, 3):
        made = bytearray(content)
        made[place] ^= 0x55
        try:
            found = Compressed.from_bytes(sealed(bytes(made)), "f")
        except MqvaeError:
            continue
        assert all(run.codes.min() >= 0 and run.codes.max() < 16 for run in found.runs)


def test_another_version_is_named(content):
    later = bytearray(content)
    struct.pack_into("<I", later, 8, 2)
    with pytest.raises(MqvaeError, match="f is of version 2 of this format, this mqvae reads"):
        Compressed.from_bytes(sealed(bytes(later)), "f")


def test_files_hold_no_more_than_memory(monkeypatch):
    monkeypatch.setattr(file_module, "MOST_CODES", 10)
    with pytest.raises(MqvaeError, match="there are 16 codes, a file holds 10"):
        of(smooth((1, 4, 4, 1), 16), 16).to_bytes()


def test_codes_of_other_weights_are_refused(runs):
    one, other = (Tokenizer.from_run(runs(kind), device="cpu") for kind in ("grey", "other"))
    content = one.compress(one.encode(torch.zeros(1, 1, 8, 8)))
    with pytest.raises(MqvaeError, match="made with other weights"):
        other.decompress(content)
    groups = Compressed.from_bytes(content)
    lying = Compressed(groups.runs, 21, 1, one.model).to_bytes()
    with pytest.raises(MqvaeError, match="they were not made with it"):
        one.decompress(lying)


# -- commands --------------------------------------------------------------------------------------


def pictures(folder, sizes):
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        pixels = draw.integers(0, 256, (height, width), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def run_command(*arguments):
    return main([*map(str, arguments), "--accelerator", "cpu"])


def images_in(folder):
    return {
        p.relative_to(folder).as_posix(): np.array(Image.open(p)) for p in folder.rglob("*.png")
    }


@pytest.mark.parametrize("kind", ["grey", "groups"])
def test_a_split_there_and_back(runs, kind, tmp_path, capsys):
    run = runs(kind)
    file = tmp_path / "deep" / "test.mqv"
    assert run_command("compress", run, "test", "--out", file) == 0
    said = capsys.readouterr().out
    size = file.stat().st_size
    codes = 297 * 4 * (1 + (kind == "groups"))
    assert f"297 images, {codes:,} codes" in said and f"{size:,} bytes" in said
    assert f"{8 * size / codes:.3f} bits a code ({math.log2(20):.3f} nominal)" in said
    assert f"{8 * size / (297 * 64):.4f} bits a pixel" in said
    assert (
        run_command("decompress", run, tmp_path / "deep" / "test.mqv", "--out", tmp_path / "a") == 0
    )
    # The same as of codes that encode wrote, in a file and in a folder.
    for out in ("codes.npz", "codes"):
        assert run_command("encode", run, "test", "--out", tmp_path / out) == 0
        assert run_command("compress", run, tmp_path / out, "--out", tmp_path / f"{out}.mqv") == 0
        assert (tmp_path / f"{out}.mqv").read_bytes() == file.read_bytes()
    assert run_command("decode", run, tmp_path / "codes.npz", "--out", tmp_path / "b") == 0
    one, other = images_in(tmp_path / "a"), images_in(tmp_path / "b")
    assert one.keys() == other.keys() and len(one) == 297
    # Decoded in other batches, a number may be rounded to the next.
    assert max(np.abs(one[k].astype(int) - other[k]).max() for k in one) <= 1


def test_images_of_any_size_there_and_back(runs, tmp_path, capsys):
    sizes = [(8, 8), (9, 30), (9, 30), (21, 5)]
    folder = pictures(tmp_path / "in" / "sub", sizes).parent
    assert run_command("compress", runs("grey"), folder, "--out", tmp_path / "f") == 0
    assert run_command("decompress", runs("grey"), tmp_path / "f", "--out", tmp_path / "out") == 0
    found = images_in(tmp_path / "out")
    assert {name: array.shape for name, array in found.items()} == {
        f"sub/{i}.png": (height, width) for i, (width, height) in enumerate(sizes)
    }
    # One file alone, and fitted ones.
    assert run_command("compress", runs("grey"), folder / "sub/1.png", "--out", tmp_path / "g") == 0
    assert Compressed.load(tmp_path / "g").names == ("1.png",)
    assert run_command("compress", runs("grey"), folder, "--fit", "--out", tmp_path / "h") == 0
    assert {run.size for run in Compressed.load(tmp_path / "h").runs} == {(8, 8)}


def test_what_is_there_stays(runs, tmp_path, capsys):
    folder, out = pictures(tmp_path / "in", [(8, 8)] * 3), tmp_path / "f"
    assert run_command("compress", runs("grey"), folder, "--out", out) == 0
    before = out.read_bytes()
    assert run_command("compress", runs("grey"), folder, "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert (
        run_command("compress", runs("grey"), tmp_path / "none", "--out", out, "--overwrite") == 2
    )
    assert out.read_bytes() == before
    assert run_command("compress", runs("grey"), folder, "--out", out, "--overwrite") == 0
    # Nothing is written of what is refused.
    cut = tmp_path / "cut"
    cut.write_bytes(before[:-5])
    for run, file, said in (
        (runs("other"), out, "made with other weights"),
        (runs("grey"), cut, f"{cut} is cut short or damaged"),
        (
            runs("grey"),
            folder / "0.png",
            "holds no compressed codes: pass a file that `mqvae compress",
        ),
        (runs("grey"), tmp_path / "none", "there is no file"),
    ):
        assert run_command("decompress", run, file, "--out", tmp_path / "images") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "images").exists()


def test_a_file_is_written_whole_or_not_at_all(runs, tmp_path, monkeypatch):
    made = of(smooth((3, 4, 4, 1), 16), 16)
    made.save(tmp_path / "f")
    before = (tmp_path / "f").read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError):
        of(smooth((4, 4, 4, 1), 16), 16).save(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_the_missing_package_is_named(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    for command, what in (("compress", "test"), ("decompress", tmp_path / "f")):
        assert run_command(command, runs("grey"), what, "--out", tmp_path / "out") == 2
        assert "pip install 'mqvae[compress]'" in capsys.readouterr().err

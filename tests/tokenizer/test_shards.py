"""`mqvae encode` into a folder: what changed is encoded anew, what was altered is recognised."""

import json
import os
import signal
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from pairs import typed
from PIL import Image

from mqvae.cli import main
from mqvae.data import InMemory
from mqvae.tokenizer import Codes, Tokenizer, shards
from mqvae.tokenizer.shards import Shards, decode_shards, shards_of


@pytest.fixture(scope="module")
def run(trained):
    return trained("grey", SMALL)


@pytest.fixture
def tokenizer(run):
    return Tokenizer.from_run(run, device="cpu")


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    for i in range(30):
        picture(tmp_path / "photos" / f"{i:02}.png", seed=i)
    return tmp_path / "photos"


def encode(tokenizer, photos, out, size=10):
    """How many images were encoded, and how many have codes."""
    images = tokenizer.find_images(str(photos), fit=True, on_error="skip")
    pieces = Shards(out, tokenizer, images, size=size)
    pieces.begin(going_on=pieces.check(overwrite=False))
    return pieces.encode(), pieces.finish()


def by_name(folder):
    return {
        name: codes.tolist()
        for piece in shards_of(folder)
        for name, codes in zip(piece.names, piece.codes, strict=True)
    }


def right(tokenizer, photos):
    """The codes that each image gets alone."""
    found = {}
    for path in sorted(photos.rglob("*.png")):
        try:
            found[path.relative_to(photos).as_posix()] = tokenizer.encode(path)[0].tolist()
        except ValueError:
            continue
    return found


def replaced(photos):
    picture(photos / "13.png", seed=99)


def replaced_by_one_of_the_same_size(photos):
    """As many bytes, written a moment later."""
    path = photos / "13.png"
    size = path.stat().st_size
    seed = 100
    while True:
        picture(path, seed)
        if path.stat().st_size == size:
            return
        seed += 1


def added_before_all(photos):
    picture(photos / "-.png", seed=77)


def added_after_all(photos):
    picture(photos / "z.png", seed=77)


def removed(photos):
    (photos / "13.png").unlink()


def renamed(photos):
    (photos / "13.png").rename(photos / "131.png")


def broken(photos):
    (photos / "13.png").write_bytes(b"no image")


def fewer(photos):
    for i in range(4, 30):
        (photos / f"{i:02}.png").unlink()


@pytest.mark.parametrize(
    ("change", "anew", "count"),
    [
        (lambda photos: None, 0, 30),
        (replaced, 10, 30),
        (replaced_by_one_of_the_same_size, 10, 30),
        (added_before_all, 31, 31),
        (added_after_all, 1, 31),
        (removed, 19, 29),
        (renamed, 10, 30),
        (broken, 10, 29),
        (fewer, 4, 4),
    ],
)
def test_what_changed_is_encoded_anew(tokenizer, photos, tmp_path, change, anew, count):
    assert encode(tokenizer, photos, tmp_path / "codes") == (30, 30)
    change(photos)
    assert encode(tokenizer, photos, tmp_path / "codes") == (anew, count)
    assert by_name(tmp_path / "codes") == right(tokenizer, photos)
    index = json.loads((tmp_path / "codes" / "index.json").read_text())
    assert (index["codes"], index["complete"]) == (count, True)
    files = sorted(p.name for p in (tmp_path / "codes").iterdir())
    assert files == [*index["pieces"], "index.json"]
    assert encode(tokenizer, photos, tmp_path / "codes") == (0, count)


def test_a_repaired_image_gets_its_codes(run, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = (photos / "13.png").read_bytes()
    (photos / "13.png").write_bytes(content[:40])
    command = ["encode", str(run), "photos", "--out", "codes", "--on-error", "skip", "--fit"]
    for there in ("", ", all there before"):
        assert main(command) == 0
        said = capsys.readouterr()
        assert f"29 images, 1 shard(s){there}: codes" in said.out
        assert "1 image(s) could not be read and have no codes: 13.png" in said.err
    assert next(iter(shards_of("codes"))).skipped == ("13.png",)
    # It is tried again under "stop".
    assert main([*command[:5], "--fit"]) == 2
    assert "13.png cannot be read" in capsys.readouterr().err
    (photos / "13.png").write_bytes(content)
    assert main(command) == 0
    said = capsys.readouterr()
    assert "30 images, 1 shard(s): codes" in said.out and not said.err
    assert by_name("codes") == right(Tokenizer.from_run(run, device="cpu"), photos)


def test_an_image_that_may_be_read_now_gets_its_codes(tokenizer, photos, tmp_path, monkeypatch):
    """Its name, size and time are the same: a disk that was away, or rights that it lacked."""
    from mqvae.data import stored

    def away(file, *arguments, **options):
        if str(file).endswith("13.png"):
            raise PermissionError(13, "Permission denied", str(file))
        return decode(file, *arguments, **options)

    decode = stored.decode
    with monkeypatch.context() as patch:
        patch.setattr(stored, "decode", away)
        assert encode(tokenizer, photos, tmp_path / "codes") == (30, 29)
        assert encode(tokenizer, photos, tmp_path / "codes") == (0, 29)
    assert encode(tokenizer, photos, tmp_path / "codes") == (10, 30)
    assert by_name(tmp_path / "codes") == right(tokenizer, photos)


def test_a_shard_that_is_written_anew_is_encoded_anew(tokenizer, photos, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()

    def write(name, numbers):
        with tarfile.open(shards / name, "w") as shard:
            for i in numbers:
                shard.add(photos / f"{i:02}.png", f"{i:02}.png")

    write("a.tar", range(10))
    write("b.tar", range(10, 20))
    assert encode(tokenizer, shards, tmp_path / "codes") == (20, 20)
    picture(photos / "13.png", seed=99)
    write("b.tar", range(10, 20))
    assert encode(tokenizer, shards, tmp_path / "codes") == (10, 20)
    found = by_name(tmp_path / "codes")
    assert found["b/13.png"] == right(tokenizer, photos)["13.png"]


def test_images_in_memory_are_known_by_their_pixels(tokenizer, tmp_path):
    pixels = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    labels = torch.zeros(30, dtype=torch.int64)

    def codes():
        images = InMemory("made", "test", pixels.clone(), labels, "here")
        pieces = Shards(tmp_path / "codes", tokenizer, images, size=10)
        pieces.begin(going_on=pieces.check(overwrite=False))
        return pieces.encode(), pieces.finish()

    assert [codes(), codes()] == [(30, 30), (0, 30)]
    pixels[13] = 0
    assert codes() == (30, 30)


def test_other_images_and_weights_are_refused_as_before(tokenizer, photos, tmp_path, trained):
    encode(tokenizer, photos, tmp_path / "codes")
    picture(tmp_path / "others" / "0.png", 0)
    with pytest.raises(ValueError, match=r"of other images or of .* \(those of .*photos"):
        encode(tokenizer, tmp_path / "others", tmp_path / "codes")
    other = Tokenizer.from_run(trained("other", SMALL, {"seed": 1}), device="cpu")
    with pytest.raises(ValueError, match="or of other weights: choose another --out, or add"):
        encode(other, photos, tmp_path / "codes")


def slowly(*arguments):
    """The program in a process of its own, with small shards, each of which takes its time."""
    save = Codes.save
    shards.SHARD = 4

    def save_slowly(self, path):
        save(self, path)
        time.sleep(0.1)

    Codes.save = save_slowly
    typed(*arguments)


def test_codes_after_a_kill_are_those_of_a_run_that_was_not_killed(pair, run, photos, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = ["encode", run, photos, "--out", killed, "--accelerator", "cpu"]
    process = pair.started(slowly, tmp_path / "said", *command)
    while process.is_alive() and not (killed / "codes-000002.npz").exists():
        time.sleep(0.01)
    process.kill()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "said").read_text()
    assert 3 <= len(list(killed.glob("*.npz"))) < 8
    with pytest.raises(ValueError, match="does not hold all of its codes yet"):
        shards_of(killed)
    tokenizer = Tokenizer.from_run(run, device="cpu")
    encode(tokenizer, photos, killed, size=4)
    encode(tokenizer, photos, whole, size=4)
    assert by_name(killed) == by_name(whole)
    names = [sorted(p.name for p in folder.iterdir()) for folder in (killed, whole)]
    assert names[0] == names[1]


# -- altered ---------------------------------------------------------------------------------------


def contents(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def altered(**changes):
    def alter(path):
        np.savez_compressed(path, **{**contents(path), **changes})

    return alter


def one_code(path):
    codes = contents(path)["codes"]
    codes[3, 1, 0] = (codes[3, 1, 0] + 1) % 20  # a code that there is, of another image
    altered(codes=codes)(path)


def swapped(path):
    codes = contents(path)["codes"]
    altered(codes=codes[::-1])(path)


def without_the_last(path):
    held = contents(path)
    altered(codes=held["codes"][:-1], names=held["names"][:-1])(path)


class Marker:
    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["MARKER"])),)


def bomb(path, name="codes.npy", shape=(2**40, 2, 2)):
    """Few bytes that say they are many."""
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path) as old:
        rest = {each: old.read(each) for each in old.namelist() if each != name}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
        for each, data in rest.items():
            file.writestr(each, data)


def zip_bomb(path):
    """A member that unpacks to 5 GiB, by what the archive says of it."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        place = file.start_dir
    content[place + 24 : place + 28] = (2**32 - 2).to_bytes(4, "little")  # its size, unpacked
    second = content.index(b"PK\x01\x02", place + 4)
    content[second + 24 : second + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content)


ALTERED = {
    "one code": one_code,
    "order": swapped,
    "shorter": without_the_last,
    "K": altered(num_codes=21),
    "side": altered(side=16),
    "names": altered(names=np.array([f"{i:02}.jpg" for i in range(30)])),
    "model": altered(model="0" * 64),
    "negative": lambda p: altered(codes=contents(p)["codes"].astype(np.int64) - 1)(p),
    "floats": lambda p: altered(codes=contents(p)["codes"] / np.float32(2))(p),
    "shape": lambda p: altered(codes=contents(p)["codes"].reshape(30, 4))(p),
    "one number": altered(codes=np.int64(0)),
    "objects": altered(codes=np.array([[Marker()]], dtype=object)),
    "names that are objects": altered(names=np.array([Marker()], dtype=object)),
    "K of objects": altered(num_codes=np.array(Marker(), dtype=object)),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-30]),
    "huge shape": bomb,
    "shape beyond 64 bits": lambda p: bomb(p, shape=(2**62, 2**62)),
    "zip bomb": zip_bomb,
    "huge names": lambda p: bomb(p, "names.npy", shape=(2**50,)),
}


@pytest.fixture
def written(tokenizer, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    encode(tokenizer, photos, tmp_path / "codes", size=30)
    return tmp_path / "codes"


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED.keys())
def test_altered_codes_are_recognised(run, tokenizer, photos, written, tmp_path, alter, capsys):
    path = written / "codes-000000.npz"
    alter(path)
    with pytest.raises(ValueError, match=r"codes-000000\.npz does not hold codes \(.+\): pass a"):
        Codes.load(path)
    for codes in (path, written):
        assert main(["decode", str(run), str(codes), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "marker").exists()
    # Encoding again mends it.
    assert encode(tokenizer, photos, written, size=30) == (30, 30)
    assert by_name(written) == right(tokenizer, photos)


def test_every_byte_of_a_file_counts(tokenizer, written):
    """A flipped byte is recognised, or changes nothing that is read."""
    path = written / "codes-000000.npz"
    whole = path.read_bytes()
    codes = Codes.load(path)
    noticed = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = Codes.load(path)
        except ValueError:
            noticed += 1
        else:
            assert np.array_equal(found.codes, codes.codes) and found.names == codes.names
    assert noticed > 200


def test_codes_of_other_programs_need_no_digest(tokenizer, written, tmp_path):
    held = contents(written / "codes-000000.npz")
    needed = ("codes", "num_codes", "side", "channels", "names", "model")
    np.savez(tmp_path / "own.npz", **{name: held[name] for name in needed})
    assert tokenizer.decode_to_files(Codes.load(tmp_path / "own.npz"), tmp_path / "out") == 30


@pytest.mark.parametrize("wrong", [-1, 20, 2**16])
def test_codes_that_would_be_written_as_others_are_not(tmp_path, wrong):
    codes = np.zeros((1, 2, 2), dtype=np.int64)
    codes[0, 0, 0] = wrong
    with pytest.raises(ValueError, match="whole numbers in 0 … 19, got"):
        Codes(codes, 20, 8, 1, ("a",), "m").save(tmp_path / "c.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("num_codes", "kind"), [(2**31, np.int32), (2**32, np.int64)])
def test_codes_of_very_many_keep_their_value(tmp_path, num_codes, kind):
    array = np.array([[[0, num_codes - 1]]], dtype=np.int64)
    Codes(array, num_codes, 8, 1, ("a",), "m").save(tmp_path / "c.npz")
    found = Codes.load(tmp_path / "c.npz")
    assert found.codes.dtype == kind and found.codes.tolist() == array.tolist()


@pytest.mark.parametrize(
    "pieces", [["../codes-000000.npz"], ["/etc/codes-000000.npz"], [3], "codes", None, {}]
)
def test_an_index_leads_nowhere_else(tokenizer, written, tmp_path, pieces):
    index = json.loads((written / "index.json").read_text())
    (written / "index.json").write_text(json.dumps({**index, "pieces": pieces}))
    if pieces == {}:  # no pieces, so no images
        assert decode_shards(tokenizer, written, tmp_path / "out") == 0
        return
    with pytest.raises(ValueError, match="holds no codes"):
        decode_shards(tokenizer, written, tmp_path / "out")


def test_an_index_nested_without_end_is_none(tokenizer, written, tmp_path):
    (written / "index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="holds no codes"):
        decode_shards(tokenizer, written, tmp_path / "out")


def test_no_link_is_written_through(tokenizer, photos, written, tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (written / "codes-000000.npz").unlink()
    for name in (f"codes-000000.npz.{os.getpid()}.partial", "codes-000000.npz"):
        (written / name).symlink_to(target)
    assert encode(tokenizer, photos, written, size=30) == (30, 30)
    assert target.read_text() == "mine"


# -- where there is no room, and no × --------------------------------------------------------------


def test_a_full_disk_leaves_nothing_behind(run, photos, tmp_path, monkeypatch, capsys):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(np, "savez_compressed", full)
    assert main(["encode", str(run), "photos", "--out", "codes.npz"]) == 2
    assert "codes.npz: No space left on device. Make room" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]
    assert main(["encode", str(run), "photos", "--out", "codes"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "codes").iterdir()] == ["index.json"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["encode", str(run), "photos", "--out", "codes"]) == 0


def test_a_device_is_no_place_for_codes(run, photos, capsys):
    assert main(["encode", str(run), str(photos), "--out", "/dev/full"]) == 2
    assert "/dev/full is" in capsys.readouterr().err

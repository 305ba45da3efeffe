"""Images that stay on the disk: listed once, decoded ahead, in shards, encoded in pieces."""

import dataclasses
import io
import json
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tars import write_shard

from mqvae import data
from mqvae.cli import main
from mqvae.config import Settings, load_preset
from mqvae.data import Batches, InMemory, Reading, Stored, hold_out, in_order, listing, shards
from mqvae.data import images as images_module
from mqvae.data.ahead import ahead
from mqvae.data.decoding import decode
from mqvae.data.listing import Names, list_images
from mqvae.runs import Run
from mqvae.tokenizer import Codes, Tokenizer
from mqvae.tokenizer.shards import Shards, decode_shards, shards_of
from mqvae.training import begin, logs, resume


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def values(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def photos(folder, count=40, size=(8, 8), classes=("ant", "bee")):
    for number in range(count):
        kind = classes[number % len(classes)]
        save(folder / kind / f"{number:03}.png", values(size, seed=number))
    return folder


def quiet(folder):
    """As if nobody had changed it for an hour."""
    for path, _, _ in os.walk(folder):
        os.utime(path, (time.time() - 3600, time.time() - 3600))


def everything(images):
    return images.take(torch.arange(len(images)))


# -- names and lists -------------------------------------------------------------------------------


def test_names_are_a_sequence_in_one_text():
    given = ["a/b.png", "ä.png", os.fsdecode(b"\xff.png"), "c"]
    names = Names.of(map(os.fsencode, given))
    assert (list(names), len(names), names[-1]) == (given, 4, "c")
    assert [names[i] for i in range(4)] == given
    assert list(names.take(np.array([3, 0, 0, 2]))) == ["c", "a/b.png", "a/b.png", given[2]]
    assert list(names[1:3]) == given[1:3]
    assert list(names.take(np.array([], dtype=np.int64))) == []
    assert list(names.below("x") + names)[3:5] == ["x/c", "a/b.png"]
    with pytest.raises(IndexError):
        names[4]


def many(folder, count=2_000):
    """Links to a few small images, in folders of a hundred."""
    originals = [save(folder.parent / f"{i}.png", values((4, 4), seed=i)) for i in range(3)]
    for number in range(count):
        path = folder / f"{number // 100:02}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(originals[number % 3], path)
    return folder


def test_a_large_folder_is_listed_once_and_again_when_it_changed(tmp_path, cache, monkeypatch):
    folder = many(tmp_path / "many")
    expected = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert list(list_images(folder)) == expected
    assert not cache.exists()  # it changed a moment ago, and may again
    quiet(folder)
    assert list(list_images(folder)) == expected
    [place] = cache.rglob("*.npz")

    def scandir(path):
        raise AssertionError(f"{path} is listed again")

    with monkeypatch.context() as patch:
        patch.setattr(listing.os, "scandir", scandir)
        assert list(list_images(folder)) == expected
    os.link(tmp_path / "0.png", folder / "07" / "new.png")
    assert set(list_images(folder)) - set(expected) == {"07/new.png"}
    quiet(folder)
    (folder / "07" / "new.png").unlink()
    assert list(list_images(folder)) == expected
    place.write_bytes(place.read_bytes()[:1000])
    assert list(list_images(folder)) == expected


def test_a_cache_that_cannot_be_written_is_none(tmp_path, cache):
    folder = many(tmp_path / "many", 1_000)
    quiet(folder)
    cache.write_text("a file")
    assert len(list_images(folder)) == 1_000


def test_the_order_is_that_of_the_parts_of_paths(tmp_path):
    for name in ("a/z.png", "a-b/c.png", "a.png", "B/c.png", "a/b/c.png"):
        save(tmp_path / name, values((2, 2)))
    assert [p.relative_to(tmp_path).as_posix() for p in data.image_files(tmp_path)] == [
        p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*.png"))
    ]


# -- on the disk and in memory ---------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_what_stays_on_the_disk_is_what_memory_would_hold(tmp_path, workers):
    folder = photos(tmp_path / "photos", size=(10, 14))
    for split in ("train", "test"):
        here = data.load(str(folder), split, side=8)
        there = data.load(str(folder), split, side=8, memory=False, workers=workers)
        assert isinstance(here, InMemory) and isinstance(there, Stored)
        for one, two in zip(everything(here), everything(there)):
            assert torch.equal(one, two)
        assert here.names == tuple(there.names)
        assert torch.equal(here.labels, there.labels)
        assert (here.name, here.split, here.shape) == (there.name, there.split, there.shape)
        assert here.source == there.source
        chosen = [5 % len(here), 0, 2]
        for one, two in zip(here.take(chosen), there.take(chosen)):
            assert torch.equal(one, two)
        out = torch.empty(3, *there.shape, dtype=torch.uint8)
        assert there.take(chosen, out=out)[0] is out
        with pytest.raises(IndexError):
            there.take([len(there)])


def test_what_does_not_fit_in_memory_stays_on_the_disk(tmp_path, monkeypatch):
    folder = photos(tmp_path / "photos")
    monkeypatch.setattr(images_module, "MAX_BYTES", 36 * 64 - 1)
    assert isinstance(data.load(str(folder), "train"), Stored)  # 36 images
    assert isinstance(data.load(str(folder), "test"), InMemory)


def test_parts_are_the_same_images_wherever_they_are(tmp_path):
    folder = photos(tmp_path / "photos")
    for memory in (True, False):
        images = data.load(str(folder), "train", memory=memory)
        left, held_out = hold_out(images, 6, seed=3)
        assert (len(left), len(held_out), held_out.split) == (len(images) - 6, 6, "validation")
        names = [*left.names, *held_out.names]
        assert sorted(names) == sorted(images.names)
        pixels, labels = everything(held_out)
        for name, label, image in zip(held_out.names, labels.tolist(), pixels):
            assert name.startswith(("ant", "bee")[label])
            assert np.array_equal(image[0], np.asarray(Image.open(folder / name)))
        assert left.names[1:3] == tuple(left.names)[1:3]


def test_batches_are_the_same_whatever_decodes_them(tmp_path):
    folder = photos(tmp_path / "photos")
    sets = [data.load(str(folder), "train")]
    sets += [data.load(str(folder), "train", memory=False, workers=w) for w in (1, 4)]
    taken = []
    for images in sets:
        batches = Batches(images, 8, seed=1, random_flip=True)
        found = [batches.next() for _ in range(6)]
        state = batches.state_dict()
        found += [batches.next() for _ in range(3)]
        again = Batches(images, 8, seed=1, random_flip=True)
        again.load_state_dict(state)
        for one, two in zip(found[6:], [again.next() for _ in range(3)]):
            assert torch.equal(one[0], two[0])
        again.load_state_dict({"epoch": 0, "position": 0})
        assert torch.equal(again.next()[0], found[0][0])
        again.close()
        assert torch.equal(again.next()[0], found[1][0])
        taken.append([*found, *in_order(images, 8)])
        batches.close()
    for other in taken[1:]:
        for one, two in zip(taken[0], other, strict=True):
            assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_work_ahead_is_in_order_and_ends_with_who_asked(seeded):
    began = []

    def work(i):
        began.append(i)
        return i * i

    squares = ahead(work, iter(range(100)), 3)
    assert [next(squares) for _ in range(4)] == [0, 1, 4, 9]
    squares.close()
    assert max(began) <= 7
    assert list(ahead(work, range(5), 0)) == list(ahead(work, range(5), 9)) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda i: 1 // i, [1, 0, 1], 2))


# -- crops and flips -------------------------------------------------------------------------------


def test_crops_and_flips_follow_from_the_place_alone(tmp_path):
    folder = photos(tmp_path / "photos", size=(8, 20))
    images = data.load(str(folder), "train", side=8, memory=False, workers=2)
    options = {"seed": 5, "random_crop": True, "random_flip": True}
    alone = Batches(images, 12, **options)
    ranks = [Batches(images, 4, rank=rank, world_size=3, **options) for rank in range(3)]
    seen = []
    for _ in range(5):
        x, _ = alone.next()
        assert torch.equal(x, torch.cat([batches.next()[0] for batches in ranks]))
        seen.append(x)
    # Each is a part of its image, mirrored or not, and they differ from epoch to epoch.
    bytes_seen = (torch.cat(seen) * 255).round().byte()[:, 0]
    wholes = [np.asarray(Image.open(folder / name)) for name in images.names]
    cuts = {}
    for number, whole in enumerate(wholes):
        for left in range(13):
            cuts[whole[:, left : left + 8].tobytes()] = (number, left)
    offsets = torch.linspace(0, 1, 13).expand(len(images), 13)
    for left in (0, 4, 12):  # whole pixels are cut without interpolation
        pixels, _ = images.take(torch.arange(len(images)), offsets=offsets[:, left])
        assert [cuts[p.numpy().tobytes()] for p in pixels[:, 0]] == [
            (number, left) for number in range(len(images))
        ]
    assert len({image.numpy().tobytes() for image in bytes_seen}) == 60
    centre, _ = everything(images)
    assert not any((bytes_seen == image).all(-1).all(-1).any() for image in centre[:, 0])


def test_half_are_mirrored_also_in_memory():
    pixels = torch.from_numpy(values((200, 1, 4, 4)))
    images = InMemory("made", "train", pixels, torch.arange(200), "made here")
    x, y = Batches(images, 200, seed=0, random_flip=True).next()
    mirrored = (x != pixels[y] / 255).flatten(1).any(1)
    assert torch.equal(x[mirrored], (pixels[y] / 255).flip(-1)[mirrored])
    assert 70 < mirrored.sum() < 130
    with pytest.raises(ValueError, match=r"nothing to cut at random.*data\.crop"):
        Batches(images, 10, seed=0, random_crop=True)
    with pytest.raises(ValueError, match="nothing to cut"):
        images.take([0], offsets=torch.zeros(1))


@pytest.mark.parametrize(("size", "offset"), [((8, 20), 0.0), ((20, 8), 1.0), ((20, 8), 0.25)])
def test_a_square_is_cut_along_the_longer_side(tmp_path, size, offset):
    array = values(size)
    path = save(tmp_path / "a.png", array)
    start = round(12 * offset)
    expected = array[:, start : start + 8] if size[1] > 8 else array[start : start + 8]
    assert decode(str(path), 8, 1, offset=offset)[0].tolist() == expected.tolist()


# -- images that cannot be read --------------------------------------------------------------------


def damage(folder, *numbers):
    for number in numbers:
        [path] = folder.rglob(f"{number:03}.png")
        path.write_bytes(b"no image")


@pytest.mark.parametrize("memory", [True, False])
def test_a_broken_image_is_named_or_the_next_takes_its_place(tmp_path, memory):
    folder = photos(tmp_path / "photos")
    whole = data.load(str(folder), "train", side=8, channels=1)
    damage(folder, 3, 38, 39)
    options = {"side": 8, "channels": 1, "memory": memory}
    with pytest.raises(ValueError, match=r"(003|038|039)\.png cannot be read"):
        everything(data.load(str(folder), "train", **options))
    images = data.load(str(folder), "train", on_error="skip", **options)
    pixels, labels = everything(images)
    names = list(images.names)
    bad = [names.index(name) for name in ("bee/003.png", "ant/038.png", "bee/039.png")]
    order = list(range(len(names)))
    for index in sorted(bad, reverse=True):
        order[index] = order[(index + 1) % len(names)]
    assert torch.equal(pixels, whole.pixels[order])
    assert torch.equal(labels if not memory else images.labels, whole.labels[order])
    assert sorted(images.skipped) == ["ant/038.png", "bee/003.png", "bee/039.png"]
    # Looked at for their size as well.
    assert data.load(str(folder), "train", on_error="skip", memory=memory).shape == (1, 8, 8)


def test_nothing_but_broken_images_is_an_error(tmp_path):
    folder = photos(tmp_path / "photos", 5)
    damage(folder, *range(5))
    images = data.load(str(folder), "train", side=8, channels=1, memory=False, on_error="skip")
    with pytest.raises(ValueError, match="cannot be read, nor can those after it"):
        images.take([0])
    with pytest.raises(ValueError, match="nor can any other"):
        data.load(str(folder), "train", on_error="skip")
    with pytest.raises(ValueError, match="'stop' or 'skip'"):
        data.load(str(folder), "train", on_error="ignore")


# -- shards ----------------------------------------------------------------------------------------


def png(seed, size=(8, 8)):
    buffer = io.BytesIO()
    Image.fromarray(values(size, seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


def make_shards(folder, count=3, each=10, labels=True):
    for shard in range(count):
        samples = []
        for i in range(each):
            number = shard * each + i
            samples.append((f"{number:04}.png", png(number)))
            samples.append((f"{number:04}.json", b"{}"))
            if labels:
                samples.append((f"{number:04}.cls", str(number % 7).encode()))
        write_shard(folder / f"{shard:03}.tar", samples)
    return folder


@pytest.mark.parametrize("how", ["folder", "pattern"])
def test_shards_are_images_as_those_of_a_folder(tmp_path, how):
    folder = make_shards(tmp_path / "shards")
    name = str(folder) if how == "folder" else f"{folder}/{{000..002}}.tar"
    for memory in (True, False):
        train, test = (data.load(name, split, memory=memory) for split in ("train", "test"))
        assert list(test.names) == ["001/0010.png", "002/0024.png", "002/0026.png"]
        assert len(train) == 27
        pixels, labels = everything(train)
        for full, label, image in zip(train.names, labels.tolist(), pixels):
            number = int(full[4:8])
            assert label == number % 7
            assert image[0].tolist() == values((8, 8), seed=number).tolist()
    assert "shards" in train.source and "27" in train.source


def test_folders_of_shards_for_each_split(tmp_path):
    make_shards(tmp_path / "train", 2, 4)
    make_shards(tmp_path / "val", 1, 3)
    train, test = (data.load(str(tmp_path), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 3)
    assert test.names[0] == "val/000/0000.png"
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]


def test_a_sample_is_what_shares_a_name_up_to_its_first_dot(tmp_path):
    write_shard(
        tmp_path / "a.tar",
        [
            ("x/1.left.png", png(0)),
            ("x/1.right.png", png(1)),
            ("x/1.cls", b"4\n"),
            ("x/2.txt", b"no image"),
            ("y/1.JPG.png", png(2)),
            ("y/1.cls", b"5"),
        ],
    )
    images = data.load_all(tmp_path / "a.tar", Reading())
    assert list(images.names) == ["a/x/1.left.png", "a/y/1.JPG.png"]
    _, labels = shards.index_shards(tmp_path, ["a.tar"])
    assert labels.tolist() == [4, 5]


def test_an_index_is_kept_until_a_shard_changes(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(shards, "CACHED_FROM", 10)
    folder = make_shards(tmp_path / "shards", 2)
    before = data.load(str(folder), "train", memory=False)
    assert len(list(cache.rglob("*.npz"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(shards.tarfile, "open", None)
        again = data.load(str(folder), "train", memory=False)
        assert torch.equal(everything(again)[0], everything(before)[0])
    write_shard(folder / "001.tar", [("9.png", png(9)), ("8.png", png(8))])
    assert list(data.load_all(folder, Reading()).names)[-1] == "001/8.png"


def test_what_is_wrong_with_shards_is_said(tmp_path):
    folder = make_shards(tmp_path / "shards")
    with pytest.raises(FileNotFoundError, match=r"003\.tar does not .* names 6 .* 3 are not"):
        data.load(f"{folder}/{{000..005}}.tar", "train")
    with pytest.raises(ValueError, match="names no shard"):
        data.load(f"{folder}/{{5..2}}.tar", "train")
    whole = (folder / "002.tar").read_bytes()
    (folder / "002.tar").write_bytes(b"no tar file")
    with pytest.raises(ValueError, match=r"002\.tar cannot be read: .* not compressed"):
        data.load(str(folder), "train")
    (folder / "002.tar").write_bytes(whole)
    images = data.load(str(folder), "train", memory=False)
    (folder / "002.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"002[0-9]\.png of .*002\.tar cannot be read"):
        everything(images)
    write_shard(tmp_path / "none" / "0.tar", [("a.txt", b"")])
    with pytest.raises(FileNotFoundError, match="hold no images"):
        data.load(str(tmp_path / "none"), "train")
    write_shard(tmp_path / "bad" / "0.tar", [("a.png", png(0)), ("a.cls", b"cat")])
    with pytest.raises(ValueError, match=r"numbers in its \.cls files"):
        data.load(str(tmp_path / "bad"), "train")


# -- runs ------------------------------------------------------------------------------------------

SMALL = {
    "name": "small",
    "steps": 6,
    "data": {"side": 8, "batch_size": 8, "validation": 4},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 8, "dim": 4}},
    "update": {"class_path": "mqvae.Meta"},
    "trainer": {"accelerator": "cpu", "log_every": 2, "checkpoint_every": 4},
}


def settings(folder, **options):
    return Settings.of(
        load_preset("digits-tiny", SMALL, {"data": {"name": str(folder), **options}})
    )


def weights(folder):
    return (folder / "checkpoints" / "last" / "model.safetensors").read_bytes()


def train(folder, out, *, stop=None, **options):
    training = begin(settings(folder, **options), out)
    if stop is not None:

        class Stop(Exception):
            pass

        def leave(training):
            if training.step == stop:
                training.save("last")
                raise Stop

        with pytest.raises(Stop):
            training.fit(after_step=leave)
        training = resume(Run(out))
    training.fit()
    return json.loads((out / "summary.json").read_text())


def test_a_run_is_the_same_from_memory_disk_and_shards_stopped_or_not(tmp_path):
    folder = photos(tmp_path / "photos")
    names = [str(name) for name in list_images(folder)]
    samples = [(name, (folder / name).read_bytes()) for name in names]
    write_shard(tmp_path / "shards" / "0.tar", samples[:13])
    write_shard(tmp_path / "shards" / "1.tar", samples[13:])
    kinds = {
        "memory": (folder, {"memory": True}),
        "stopped": (folder, {"memory": False, "workers": 3, "stop": 5}),
        "shards": (tmp_path / "shards", {"memory": False, "workers": 2, "stop": 3}),
    }
    summaries = {
        kind: train(path, tmp_path / "runs" / kind, flip=True, **options)
        for kind, (path, options) in kinds.items()
    }
    for kind in kinds:
        assert weights(tmp_path / "runs" / kind) == weights(tmp_path / "runs" / "memory"), kind
        assert summaries[kind]["mse"] == summaries["memory"]["mse"], kind
        assert 0 < summaries[kind]["data_wait_share"] < 1
        assert summaries[kind]["skipped_images"] == 0
    plain = tmp_path / "plain"
    train(folder, plain)
    assert weights(plain) != weights(tmp_path / "runs" / "memory")


def test_random_crops_keep_the_training_images_on_the_disk(tmp_path):
    folder = photos(tmp_path / "photos", size=(8, 16))
    training = begin(settings(folder, crop="random"), tmp_path / "run")
    assert isinstance(training.splits.train.whole, Stored)
    assert isinstance(training.splits.test, InMemory)
    training.fit()
    train(folder, tmp_path / "stopped", crop="random", stop=5)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "run")
    for name, options in (("digits", {}), (str(folder), {"memory": True})):
        with pytest.raises(ValueError, match="nothing to cut at random"):
            begin(settings(name, crop="random", **options), tmp_path / "none")


def test_skipped_images_are_counted_and_said_once(tmp_path, capsys):
    folder = photos(tmp_path / "photos")
    damage(folder, 7, 10)
    options = {"memory": False, "channels": 1, "on_error": "skip"}
    summary = train(folder, tmp_path / "run", stop=5, **options)
    assert summary["skipped_images"] == 2
    [warning] = summary["warnings"]
    assert warning in capsys.readouterr().err
    assert "skipped" in warning and ("bee/007.png" in warning or "ant/010.png" in warning)
    with pytest.raises(ValueError, match=r"0(07|10)\.png cannot be read"):
        train(folder, tmp_path / "other", memory=False, channels=1)


def test_waiting_for_data_is_seen_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logs, "WAIT_SECONDS", 0.05)
    folder = photos(tmp_path / "photos")
    training = begin(settings(folder, memory=False), tmp_path / "run")
    before = training.parts.batches.next

    def slowly():
        time.sleep(0.1)
        return before()

    monkeypatch.setattr(training.parts.batches, "next", slowly)
    summary = training.fit()
    assert 0.2 < summary["data_wait_share"] < 1
    [warning] = summary["warnings"]
    assert "data.workers" in warning and warning in capsys.readouterr().err
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("data_wait")
    assert all(0.2 < float(line.split(",")[column]) < 1 for line in lines[1:])


# -- codes in pieces -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    photos(folder / "photos")
    train(folder / "photos", folder / "run")
    begin(Settings.of(settings(folder / "photos").config(), {"seed": 1}), folder / "other").fit()
    return folder


@pytest.fixture
def tokenizer(run):
    return Tokenizer.from_run(run / "run", device="cpu")


def encoded(pieces, *, overwrite=False, **turns):
    pieces.begin(going_on=pieces.check(overwrite=overwrite))
    written = pieces.encode(**turns)
    pieces.finish()
    return written


def test_pieces_are_the_codes_of_all_images(run, tokenizer, tmp_path):
    images = tokenizer.find_images(str(run / "photos"))
    assert encoded(Shards(tmp_path / "codes", tokenizer, images, size=12)) == 40
    whole = tokenizer.encode_images(images)
    # As numpy alone reads them.
    index = json.loads((tmp_path / "codes" / "index.json").read_text())
    files = [np.load(tmp_path / "codes" / name) for name in index["pieces"]]
    assert [len(file["codes"]) for file in files] == [12, 12, 12, 4]
    assert np.array_equal(np.concatenate([file["codes"] for file in files]), whole.codes)
    assert [*np.concatenate([file["names"] for file in files])] == [*whole.names]
    assert (index["images"], index["complete"], index["num_codes"]) == (40, True, 8)
    assert decode_shards(tokenizer, tmp_path / "codes", tmp_path / "images") == 40
    tokenizer.decode_to_files(whole, tmp_path / "same")
    found = sorted(p.relative_to(tmp_path / "same") for p in (tmp_path / "same").rglob("*.png"))
    assert len(found) == 40
    for path in found:
        assert (tmp_path / "images" / path).read_bytes() == (tmp_path / "same" / path).read_bytes()


def test_pieces_are_kept_after_a_kill_and_shared_by_processes(run, tokenizer, tmp_path):
    images = tokenizer.find_images(str(run / "photos"))
    folder = tmp_path / "codes"
    pieces = Shards(folder, tokenizer, images, size=9)
    pieces.begin(going_on=pieces.check(overwrite=False))
    assert pieces.encode(rank=1, world_size=2) == 18  # pieces 1 and 3 of 5
    with pytest.raises(ValueError, match="does not hold all of its codes yet"):
        shards_of(folder)
    kept = (folder / "codes-000003.npz").stat().st_mtime_ns
    (folder / "codes-000001.npz").write_bytes(b"cut short")
    (folder / "codes-000002.npz.partial").write_bytes(b"killed while it was written")
    assert encoded(Shards(folder, tokenizer, images, size=9)) == 31
    assert (folder / "codes-000003.npz").stat().st_mtime_ns == kept
    codes = np.concatenate([piece.codes for piece in shards_of(folder)])
    assert np.array_equal(codes, tokenizer.encode_images(images).codes)
    assert encoded(Shards(folder, tokenizer, images, size=9)) == 0


def test_a_piece_of_large_images_has_fewer(tokenizer):
    for side, size in ((8, 10_000), (256, 625)):
        pixels, labels = torch.zeros(2, 1, side, side, dtype=torch.uint8), torch.zeros(2).long()
        images = InMemory("made", "test", pixels, labels, "")
        assert Shards("none", tokenizer, images).size == size


def test_files_are_read_once_and_a_broken_one_stops_and_is_gone_on_from(run, tokenizer, tmp_path):
    folder = photos(tmp_path / "photos", 20)
    images = tokenizer.find_images(str(folder))
    assert isinstance(images, Stored)  # though they would fit in memory
    whole = tokenizer.encode_images(images)
    content = (folder / "bee" / "013.png").read_bytes()
    damage(folder, 13)
    out = tmp_path / "codes"
    with pytest.raises(ValueError, match=r"bee/013\.png cannot be read"):
        encoded(Shards(out, tokenizer, images, size=5))
    there = len(list(out.glob("*.npz")))
    assert 0 < there < 4
    (folder / "bee" / "013.png").write_bytes(content)
    assert encoded(Shards(out, tokenizer, images, size=5)) == 5 * (4 - there)
    codes = np.concatenate([piece.codes for piece in shards_of(out)])
    assert np.array_equal(codes, whole.codes)


def test_other_codes_are_not_gone_on_with(run, tokenizer, tmp_path):
    images = tokenizer.find_images(str(run / "photos"))
    folder = tmp_path / "codes"
    encoded(Shards(folder, tokenizer, images, size=9))
    other = Tokenizer.from_run(run / "other", device="cpu")
    for again in (
        Shards(folder, other, images, size=9),
        Shards(folder, tokenizer, tokenizer.find_images("test"), size=9),
    ):
        with pytest.raises(ValueError, match=r"other images or of other weights.*--overwrite"):
            again.check(overwrite=False)
    assert encoded(Shards(folder, other, images, size=20), overwrite=True) == 40
    assert sorted(p.name for p in folder.glob("*.npz")) == [f"codes-00000{i}.npz" for i in range(2)]
    with pytest.raises(ValueError, match="made with other weights"):
        decode_shards(tokenizer, folder, tmp_path / "images")


def test_images_that_are_skipped_have_no_codes(tokenizer, tmp_path):
    folder = photos(tmp_path / "photos", 10)
    damage(folder, 4)
    images = tokenizer.find_images(str(folder), fit=True, on_error="skip")
    images = dataclasses.replace(images) if isinstance(images, InMemory) else images
    encoded(Shards(tmp_path / "codes", tokenizer, images, size=4))
    names = [name for piece in shards_of(tmp_path / "codes") for name in piece.names]
    assert names == [name for name in list_images(folder) if "004" not in name]


def test_the_commands_take_a_folder_for_codes(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["encode", str(run / "run"), str(run / "photos"), "--out", "codes"]
    assert main(arguments) == 0
    assert "40 images, 1 shard(s): codes" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "all there before" in capsys.readouterr().out
    assert main(["decode", str(run / "run"), "codes", "--out", "images"]) == 0
    assert len(list((tmp_path / "images").rglob("*.png"))) == 40
    assert main([*arguments[:-1], "codes.npz"]) == 0
    assert len(Codes.load("codes.npz").codes) == 40
    for bad, words in (
        ([*arguments[:-1], "images"], "holds other files than codes"),
        ([*arguments[:-1], "codes.npz", "--devices", "2", "--overwrite"], "give --out a folder"),
        (["decode", str(run / "run"), "images", "--out", "new"], "holds no codes"),
    ):
        assert main(bad) == 2
        assert words in capsys.readouterr().err

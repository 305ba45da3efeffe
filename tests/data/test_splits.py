"""Which split an image is in: it stays there, whatever images come and go."""

import io
import json
import tarfile
import time
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from tars import write_shard

from mqvae import data
from mqvae.config import Settings, load_preset
from mqvae.data import Bounds, Reading, bounds_of, draw, hold_out, shards
from mqvae.data.files import InFolder
from mqvae.data.folder import say
from mqvae.data.listing import Names
from mqvae.data.order import order_of
from mqvae.data.splits import by_hash, split_folders
from mqvae.errors import MqvaeError
from mqvae.training.images import load_splits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    say.cache_clear()


def png(seed=0, size=(4, 4)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))


def photos(folder, numbers):
    for number in numbers:
        save(folder / f"{number:04}.png", number)
    return folder


def splits(folder):
    return {split: set(data.load(str(folder), split).names) for split in ("train", "test")}


def listed(names):
    return InFolder("/photos", Names.of(name.encode() for name in names))


# -- folders ---------------------------------------------------------------------------------------


def test_images_that_come_and_go_move_no_other(tmp_path):
    folder = photos(tmp_path / "photos", range(200))
    before = splits(folder)
    assert 8 <= len(before["test"]) <= 35
    save(folder / "aaa.png", 1)
    photos(folder, range(200, 230))
    after = splits(folder)
    for split in ("train", "test"):
        assert before[split] <= after[split]
    for number in range(0, 100, 3):
        (folder / f"{number:04}.png").unlink()
    left = splits(folder)
    for split in ("train", "test"):
        assert left[split] <= after[split]
    assert sum(map(len, left.values())) == 231 - 34


def test_a_tenth_of_many_is_for_test_in_seconds():
    names = [f"n{i % 1000:08}/n{i % 1000:08}_{i:06}.JPEG" for i in range(100_000)]
    files = listed(names)
    began = time.process_time()
    found, remark = by_hash(files.split_hashes, "photos")
    assert time.process_time() - began < 3  # 0.2 s where nothing else runs
    assert 9_700 < len(found["test"]) < 10_300 and not remark
    assert sorted(np.concatenate([*found.values()])) == list(range(100_000))
    # Neighbours are apart: of each thousand in order about a tenth is for test.
    share = np.bincount(found["test"] // 1_000, minlength=100)
    assert share.min() > 60 and share.max() < 140


@pytest.mark.parametrize("count", range(2, 11))
def test_both_splits_of_few_images_have_some(tmp_path, count, capsys):
    for prefix in ("a", "b", "c", "d"):
        files = listed(f"{prefix}{i}.png" for i in range(count))
        found, remark = by_hash(files.split_hashes, "photos")
        assert len(found["train"]) and len(found["test"])
        assert len(found["train"]) + len(found["test"]) == count
        hashes = files.split_hashes
        assert bool(remark) == (not 0 < (hashes < 2**64 // 10).sum() < count)
        assert hashes[found["test"]].max() < hashes[found["train"]].min()


def test_what_few_images_do_is_said_once_and_is_on_the_images(tmp_path, capsys):
    folder = photos(tmp_path / "photos", range(3))
    images = [data.load(str(folder), split) for split in ("train", "test", "train")]
    said = capsys.readouterr().err
    assert said.count("mqvae: warning: of the 3 images in") == 1 == len(said.splitlines())
    assert all("none is for test" in each.remarks[0] for each in images)
    photos(folder, range(3, 60))
    assert data.load(str(folder), "train").remarks == ()


def test_all_for_test_leaves_one_to_train():
    hashes = np.array([5, 3, 9, 3], dtype=np.uint64)
    found, remark = by_hash(hashes, "photos")
    assert (found["train"].tolist(), found["test"].tolist()) == ([2], [0, 1, 3])
    assert "all are for test" in remark
    with pytest.raises(ValueError, match=r"too few images to split: .* got 3 with one key"):
        by_hash(np.full(3, 7, dtype=np.uint64), "photos")


def test_the_same_images_have_the_same_splits_as_files_of_another_kind_and_in_shards(tmp_path):
    names = [f"{kind}/{i:03}" for kind in ("ant", "bee") for i in range(30)]
    for name in names:
        save(tmp_path / "png" / f"{name}.png")
        path = tmp_path / "bmp" / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    content = png()
    for shard in range(3):
        write_shard(
            tmp_path / "tar" / f"{shard}.tar",
            [(f"{name}.png", content) for name in names[shard::3]],
        )
    stems = [
        {name.rpartition(".")[0].removeprefix("0/").removeprefix("1/").removeprefix("2/")
         for name in splits(tmp_path / kind)["test"]}
        for kind in ("png", "bmp", "tar")
    ]  # fmt: skip
    assert stems[0] == stems[1] == stems[2] and 1 <= len(stems[0]) <= 15


# -- subfolders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "test"), {"train": "train", "test": "test"}),
        (("Train", "Test"), {"train": "Train", "test": "Test"}),
        (("TRAIN", "validation"), {"train": "TRAIN", "test": "validation"}),
        (("train", "Valid"), {"train": "train", "test": "Valid"}),
        (("train", "val"), {"train": "train", "test": "val"}),
        (
            ("train", "val", "test"),
            {"train": "train", "test": "test", "validation": "val"},
        ),
    ],
)
def test_subfolders_are_splits_in_any_case(tmp_path, names, expected):
    for number, name in enumerate(names):
        save(tmp_path / name / "cat" / f"{number}.png")
    (tmp_path / ".git").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    assert split_folders(tmp_path) == (expected, "")
    for split, base in expected.items():
        images = data.load(str(tmp_path), split)
        assert images.names == (f"{base}/cat/{names.index(base)}.png",)
        assert images.labels.tolist() == [0]
    shards_of = tmp_path / "shards"
    for number, name in enumerate(names):
        write_shard(shards_of / name / "0.tar", [(f"{number}.png", png())])
    for split, base in expected.items():
        images = data.load(str(shards_of), split)
        assert list(images.names) == [f"{base}/0/{names.index(base)}.png"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("train", "extra"), ("extra is beside train/", "rename it")),
        (("train", "test", "holdout"), ("holdout is beside", "is no split")),
        (("train", "Train", "test"), ("two folders for train", "Train", "merge them")),
        (("train", "val", "valid"), ("two folders for validation", "val and valid")),
        (("test", "cats"), ("has test/ but no train/",)),
        (("train",), ("has train/ but no test/", "--data")),
    ],
)
def test_what_is_no_split_is_refused_by_its_name(tmp_path, names, words):
    for kind in ("images", "shards"):
        for name in names:
            save(tmp_path / "images" / name / "1.png")
            write_shard(tmp_path / "shards" / name / "0.tar", [("1.png", png())])
        with pytest.raises(MqvaeError) as error:
            data.load(str(tmp_path / kind), "train")
        assert all(word in str(error.value) for word in words), error.value


def test_images_beside_the_splits_are_counted(tmp_path, capsys):
    for name in ("train/1", "test/1", "a", "b"):
        save(tmp_path / f"{name}.png")
    assert data.load(str(tmp_path), "train").names == ("train/1.png",)
    said = capsys.readouterr().err
    assert "2 image(s) beside test/, train/ left out" in said and "a.png, …" in said
    (tmp_path / "flat").mkdir()
    for number in range(30):
        save(tmp_path / "flat" / f"{number}.png")
    write_shard(tmp_path / "flat" / "0.tar", [("1.png", png())])
    assert "1 tar file(s) left out" in data.load(str(tmp_path / "flat"), "train").remarks[0]


# -- validation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False])
def test_validation_images_stay_for_validation(tmp_path, memory):
    folder = photos(tmp_path / "photos", range(300))
    images = data.load(str(folder), "train", memory=memory)
    bounds = bounds_of(images, 25, seed=3)
    left, held_out = hold_out(images, 25, seed=3)
    assert (len(held_out), len(left)) == (25, len(images) - 25)
    assert Bounds(**json.loads(json.dumps(asdict(bounds)))) == bounds
    others = hold_out(images, 25, seed=4)[1]
    assert 0 <= len(set(others.names) & set(held_out.names)) < 12
    photos(folder, range(300, 450))
    for number in range(0, 300, 7):
        (folder / f"{number:04}.png").unlink()
    now = data.load(str(folder), "train", memory=memory)
    still_left, still_held = hold_out(now, 25, seed=3, bounds=bounds)
    assert not set(still_held.names) & set(left.names)
    assert not set(still_left.names) & set(held_out.names)
    assert len(still_held) + len(still_left) == len(now)
    assert 25 < len(still_held) < 60  # of a larger set, more


def test_a_limit_leaves_the_next_in_the_same_order(tmp_path):
    images = data.load(str(photos(tmp_path / "photos", range(120))), "train")
    left, held_out = hold_out(images, 20, seed=3, limit=30)
    both, nothing = hold_out(images, 0, seed=3, limit=50)
    assert (len(left), len(held_out), len(both), len(nothing)) == (30, 20, 50, 0)
    assert set(left.names) | set(held_out.names) == set(both.names)
    kept = bounds_of(images, 20, seed=3, limit=30)
    again = hold_out(images, 99, seed=3, limit=99, bounds=kept)
    assert [list(each.names) for each in again] == [list(left.names), list(held_out.names)]
    everything, _ = hold_out(images, 0, seed=3)
    assert everything is images
    with pytest.raises(ValueError, match="validation is out of range"):
        hold_out(images, len(images), seed=3)
    with pytest.raises(ValueError, match=r"data\.limit is 999"):
        hold_out(images, 1, seed=3, limit=999)


def test_images_without_names_are_held_out_as_they_always_were():
    images = data.load("digits", "train")
    left, held_out = hold_out(images, 150, seed=3, limit=300)
    order = order_of(1500, "validation,3")
    assert held_out.indices.tolist() == sorted(order[:150].tolist())
    assert left.indices.tolist() == sorted(order[150:450].tolist())
    assert held_out.indices[:8].tolist() == [5, 7, 8, 19, 27, 51, 74, 98]
    assert bounds_of(images, 150, seed=3) is None


def test_some_of_a_validation_split(tmp_path):
    for split, count in (("train", 5), ("val", 40), ("test", 5)):
        photos(tmp_path / split, range(count))
    images = data.load(str(tmp_path), "validation")
    some, bound = draw(images, 10, seed=0)
    assert len(some) == 10 and some.split == "validation"
    every, all_of_them = draw(images, 40, seed=0)
    assert len(every) == 40
    photos(tmp_path / "val", range(40, 60))
    more = data.load(str(tmp_path), "validation")
    assert set(some.names) <= set(draw(more, 10, seed=0, bound=bound)[0].names)
    assert len(draw(more, 40, seed=0, bound=all_of_them)[0]) == 60
    with pytest.raises(ValueError, match="expected 0 to 40"):
        draw(images, 41, seed=0)


def test_samples_of_one_key_stay_together(tmp_path):
    for shard in range(4):
        write_shard(tmp_path / f"{shard}.tar", [(f"{i}.png", png(i)) for i in range(30)])
    found = splits(tmp_path)
    keys = {split: {name.partition("/")[2] for name in names} for split, names in found.items()}
    assert not keys["train"] & keys["test"] and len(found["test"]) == 4 * len(keys["test"])
    left, held_out = hold_out(data.load(str(tmp_path), "train"), 10, seed=0)
    held = {name.partition("/")[2] for name in held_out.names}
    assert 1 <= len(held_out) <= 10
    assert not held & {name.partition("/")[2] for name in left.names}
    write_shard(tmp_path / "one" / "0.tar", [("a.png", png()), ("b.png", png(1))])
    images = data.load(str(tmp_path / "one"), "train")
    with pytest.raises(ValueError, match="validation is out of range"):
        hold_out(images, 1, seed=0)


# -- labels ----------------------------------------------------------------------------------------


def labels_of(folder, **options):
    images = data.load(str(folder), "train", **options), data.load(str(folder), "test", **options)
    return {
        name: label
        for each in images
        for name, label in zip(each.names, each.labels.tolist(), strict=True)
    }


def test_labels_of_a_shard_may_be_anywhere_in_it(tmp_path):
    samples = [(f"{i}.png", png(i)) for i in range(20)] + [
        (f"{i}.cls", str(i % 3 + 1).encode()) for i in range(20)
    ]
    write_shard(tmp_path / "0.tar", samples)
    assert labels_of(tmp_path) == {f"0/{i}.png": i % 3 + 1 for i in range(20)}


def test_one_sample_without_a_label_is_named(tmp_path):
    samples = []
    for i in range(100):
        samples.append((f"{i:03}.png", png(i)))
        if i != 57:
            samples.append((f"{i:03}.cls", b"1"))
    write_shard(tmp_path / "0.tar", samples)
    with pytest.raises(ValueError, match=r"057\.png of .*0\.tar has no label, as 1 of the 100"):
        data.load(str(tmp_path), "train")
    assert set(labels_of(tmp_path, labels=False).values()) == {0}


@pytest.mark.parametrize("label", [b"cat", b"", b"-1", b"1.5", b"9" * 40])
def test_a_label_that_is_no_number_is_named(tmp_path, label):
    write_shard(tmp_path / "0.tar", [("a.png", png()), ("a.cls", label), ("b.png", png(1))])
    with pytest.raises(ValueError, match=r"0\.tar cannot be read: .* in a\.cls"):
        data.load(str(tmp_path), "train")


def test_a_stray_image_beside_class_folders_is_named(tmp_path):
    for i in range(20):
        save(tmp_path / ("ant", "bee")[i % 2] / f"{i}.png", i)
    assert set(labels_of(tmp_path).values()) == {0, 1}
    save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png has no label, as 1 of the 21"):
        data.load(str(tmp_path), "train")
    assert set(labels_of(tmp_path, labels=False).values()) == {0}


def test_classes_that_are_said_are_no_labels(tmp_path):
    for i in range(20):
        save(tmp_path / "photos" / f"{i}.png", i)
    data = {"name": str(tmp_path / "photos"), "classes": 10, "batch_size": 4}
    with pytest.raises(MqvaeError, match=r"data\.classes is 10, but .*photos has no labels"):
        load_splits(Settings.of(load_preset("digits-tiny", {"data": data})))
    splits, settings = load_splits(
        Settings.of(load_preset("digits-tiny", {"data": {**data, "classes": None}}))
    )
    assert settings.data.classes == 1 and splits.train.labels.unique().tolist() == [0]


# -- shards ----------------------------------------------------------------------------------------


def test_what_shards_leave_out_is_counted_and_said_once(tmp_path, capsys):
    samples = [(f"22.{i:02}.png", png(i)) for i in range(12)]
    samples += [(f"{i}.png", png(i)) for i in range(4)] + [("2.png", png(99))]
    path = write_shard(tmp_path / "0.tar", samples)
    with tarfile.open(path, "a") as shard:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("d.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            shard.addfile(member)
    images = data.load_all(tmp_path, Reading())
    assert list(images.names) == ["0/22.00.png", "0/0.png", "0/1.png", "0/2.png", "0/3.png"]
    assert (
        images.pixels[3, 0].numpy().tolist() == np.asarray(Image.open(io.BytesIO(png(99)))).tolist()
    )  # the later one, as tar takes it
    [remark] = images.remarks
    assert "11 left out, as there is an image before them in their sample (22.01.png" in remark
    assert "1 stored twice, the later one is taken (2.png of 0.tar)" in remark
    assert "2 left out, as they are links, devices or sparse (l.png of 0.tar, …)" in remark
    data.load(str(tmp_path), "train")
    assert capsys.readouterr().err.count("images in the shards of") == 1
    clean = write_shard(tmp_path / "clean" / "0.tar", samples[12:16])
    assert data.load_all(clean, Reading()).remarks == ()


def test_the_remark_is_kept_with_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CACHED_FROM", 1)
    write_shard(tmp_path / "0.tar", [("a.x.png", png()), ("a.y.png", png())])
    first, _ = shards.index_shards(tmp_path, ["0.tar"])
    monkeypatch.setattr(shards, "_index", None)
    again, _ = shards.index_shards(tmp_path, ["0.tar"])
    assert first.remark == again.remark != ""


def test_a_shard_cut_anywhere_is_named_or_whole(tmp_path):
    whole = write_shard(
        tmp_path / "0.tar", [(f"{i}.{kind}", png(i) if kind == "png" else b"1")
                             for i in range(6) for kind in ("png", "cls")]
    ).read_bytes()  # fmt: skip
    end = 12 * 1024
    assert len(whole) > end + 1024
    for cut in [*range(0, end, 256), end - 1, end, end + 511]:
        (tmp_path / "0.tar").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"0\.tar cannot be read: expected a whole tar file"):
            data.load_all(tmp_path, Reading())
    (tmp_path / "0.tar").write_bytes(whole[: end + 512])  # one block of the end mark will do
    assert len(data.load_all(tmp_path, Reading())) == 6
    for place in (0, 1024, 5 * 1024 + 150):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / "0.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"0\.tar cannot be read"):
            data.load_all(tmp_path, Reading())
    (tmp_path / "0.tar").write_bytes(whole + whole)
    with pytest.raises(ValueError, match="neither a member nor the end"):
        data.load_all(tmp_path, Reading())


def test_members_cannot_lead_outside(tmp_path):
    save(tmp_path / "secret.png", 5)
    path = write_shard(
        tmp_path / "shards" / "0.tar",
        [("../secret.png", png(1)), ("/etc/absolute.png", png(2)), ("a/../../b.png", png(3))],
    )
    images = data.load_all(path, Reading())
    for number, pixels in enumerate(images.pixels, start=1):
        assert pixels[0].tolist() == np.asarray(Image.open(io.BytesIO(png(number)))).tolist()

"""A run knows its images: what is kept of them, and what is said when they have changed."""

import os

import numpy as np
import pytest
from PIL import Image

from mqvae import data
from mqvae.data import InMemory, hold_out
from mqvae.data.identity import Identity, identity_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))


def save(path, seed=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def photos(folder, count=40):
    for number in range(count):
        save(folder / f"{number:03}.png", number)
    return folder


def of(folder, **options):
    return identity_of(data.load_all(folder, data.Reading(8, 1, **options)))


@pytest.mark.parametrize("memory", [True, False])
def test_what_was_added_gone_and_changed_is_counted(tmp_path, memory):
    folder = photos(tmp_path / "photos")
    before = of(folder)
    assert before == of(folder, memory=memory) and not before.compare(of(folder))
    os.utime(folder / "001.png")
    assert not before.compare(of(folder, memory=memory))
    save(folder / "new.png", 99)
    save(folder / "aaa.png", 98)
    (folder / "007.png").unlink()
    (folder / "008.png").write_bytes((folder / "008.png").read_bytes() + b"\0")
    found = before.compare(of(folder, memory=memory))
    assert (found.added, found.gone, found.changed) == (2, 1, 1)
    assert sorted(found.names) == ["008.png", "aaa.png", "new.png"]
    assert str(found).startswith("2 added, 1 gone, 1 changed (aaa.png")


def test_it_goes_through_json_and_arrays(tmp_path):
    folder = photos(tmp_path / "photos", 12)
    before = of(folder)
    kept = Identity.from_json(before.to_json())
    assert kept == before
    save(folder / "aaa.png", 98)
    now = of(folder)
    assert str(kept.compare(now)) == "12 images then, 13 now"
    assert str(kept.with_arrays(before.to_arrays()).compare(now)) == "1 added (aaa.png)"
    # Arrays of other images are not taken for those of these.
    assert kept.with_arrays(now.to_arrays()).names is None


def test_images_without_names_are_known_by_their_pixels():
    one, two = data.load("digits", "train"), data.load("digits", "test")
    assert identity_of(one) == identity_of(data.load("digits", "train", side=12, channels=3))
    assert identity_of(one).compare(identity_of(two)).other == "1,500 images then, 297 now"
    changed = InMemory(one.name, one.split, one.pixels.clone(), one.labels, one.source)
    changed.pixels[3, 0, 2, 2] ^= 1
    assert "not the same" in str(identity_of(one).compare(identity_of(changed)))
    parts = [hold_out(one, 100, seed=seed)[1] for seed in (0, 0, 1)]
    first, same, other = map(identity_of, parts)
    assert first == same and first != other and first.count == 100

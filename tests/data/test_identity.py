"""A run knows its images: what is kept of them, and what is said when they have changed."""

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from mqvae import data
from mqvae.cli import main
from mqvae.config import Settings, load_preset
from mqvae.data import InMemory, hold_out
from mqvae.data.identity import Identity, identity_of
from mqvae.errors import MqvaeError
from mqvae.runs import Run
from mqvae.runs.known import Known
from mqvae.training import begin, load_run_split, resume


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


# -- runs ------------------------------------------------------------------------------------------

SMALL = {
    "name": "small",
    "steps": 6,
    "data": {"side": 8, "batch_size": 4, "validation": 6},
    "network": {"width": 4, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 8, "dim": 4}},
    "trainer": {"accelerator": "cpu", "log_every": 2, "checkpoint_every": 2},
}


class Stop(Exception):
    pass


def small(folder, **options):
    return Settings.of(
        load_preset("digits-tiny", SMALL, {"data": {"name": str(folder), **options}})
    )


def stopped(folder, out, step=2, **options):
    """A run that was stopped."""

    def leave(training):
        if training.step == step:
            raise Stop

    training = begin(small(folder, **options), out)
    with pytest.raises(Stop):
        training.fit(after_step=leave)
    return training


@pytest.fixture
def run(tmp_path):
    """A run on 40 images, stopped after its third step, and its folder of images."""
    folder = photos(tmp_path / "photos")
    stopped(folder, tmp_path / "run", 3)
    return tmp_path / "run", folder


def state_of(out):
    return json.loads((out / "checkpoints" / "last" / "state.json").read_text())


def names(splits):
    return {name: set(images.names) for name, images in splits.by_name().items()}


def change(folder):
    """One added, one gone, one of another size."""
    save(folder / "bbb.png", 99)
    (folder / "005.png").unlink()
    (folder / "008.png").write_bytes((folder / "008.png").read_bytes() + b"\0")


def test_a_run_says_which_images_it_has(run):
    out, _ = run
    training = resume(Run(out))
    expected = {
        split: identity_of(images).to_json() for split, images in training.splits.by_name().items()
    }
    assert state_of(out)["images"] == expected
    assert {split: each["count"] for split, each in expected.items()} == {
        "train": len(training.splits.train),
        "validation": 6,
        "test": len(training.splits.test),
    }
    assert sum(each["count"] for each in expected.values()) == 40
    summary = training.fit()
    assert summary["images"] == expected and summary["accepted_changes"] == []
    assert json.loads((out / "summary.json").read_text())["images"] == expected


def test_resume_refuses_other_images_and_records_that_they_were_accepted(run, capsys):
    out, folder = run
    before = state_of(out)
    was = names(resume(Run(out)).splits)
    change(folder)
    for arguments in (["train", "--resume", str(out)], ["diagnose", str(out)]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "train: 1 added, 1 gone, 1 changed (bbb.png, 008.png)" in said, said
        assert "--accept-changed-data" in said and "Traceback" not in said
    assert state_of(out) == before
    training = resume(Run(out), accept_changed_data=True)
    now = names(training.splits)
    for split, others in (("train", ("validation", "test")), ("validation", ("train", "test"))):
        for other in others:
            assert not now[split] & was[other]  # nothing has moved
    assert state_of(out) == before  # looking changes nothing
    assert main(["train", "--resume", str(out), "--accept-changed-data"]) == 0
    assert "changed images are accepted" in capsys.readouterr().err
    expected = [{"step": 2, "train": "1 added, 1 gone, 1 changed (bbb.png, 008.png)"}]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accepted_changes"] == expected == state_of(out)["accepted_changes"]
    assert summary["images"]["train"] == identity_of(training.splits.train).to_json()
    # From here on these are the run's images.
    assert main(["train", "--resume", str(out)]) == 0
    assert "accept" not in capsys.readouterr().err


def test_an_accepted_change_holds_if_the_run_is_killed_at_once(run):
    out, folder = run
    change(folder)
    training = resume(Run(out), accept_changed_data=True)

    def kill(training):
        raise Stop

    with pytest.raises(Stop):
        training.fit(after_step=kill)
    assert resume(Run(out)).known.accepted[0]["step"] == 2


def test_a_much_smaller_set_ends_the_epoch(tmp_path):
    folder = photos(tmp_path / "photos", 60)
    stopped(folder, tmp_path / "run", 5, batch_size=8)
    kept = [p for p in sorted(folder.iterdir()) if p.stem not in ("018", "029", "047")]
    for path in kept[12:]:
        path.unlink()
    training = resume(Run(tmp_path / "run"), accept_changed_data=True)
    assert training.parts.batches.epoch == 1
    assert training.fit()["steps"] == 6


def test_validation_and_limit_stay_where_they_were(tmp_path):
    folder = photos(tmp_path / "photos", 120)
    stopped(folder, tmp_path / "run", limit=50)
    was = names(resume(Run(tmp_path / "run")).splits)
    assert (len(was["validation"]), len(was["train"])) == (6, 50)
    for number in range(120, 240):
        save(folder / f"{number:03}.png", number)
    now = names(resume(Run(tmp_path / "run"), accept_changed_data=True).splits)
    assert all(was[split] <= now[split] for split in was)
    assert len(now["validation"]) + len(now["train"]) < 160  # the limit's share of the larger set


def test_a_validation_folder_is_the_validation_split(tmp_path):
    for split, count in (("train", 30), ("val", 9), ("test", 5)):
        photos(tmp_path / "photos" / split, count)
    training = begin(small(tmp_path / "photos", validation=None), tmp_path / "run")
    counts = {name: len(images) for name, images in training.splits.by_name().items()}
    assert counts == {"train": 30, "validation": 9, "test": 5}
    assert training.settings.data.validation == 9
    fewer = begin(small(tmp_path / "photos", limit=20), tmp_path / "fewer").splits
    assert (len(fewer.train), len(fewer.validation)) == (20, 6)
    for split, count in (("train", 20), ("validation", 6), ("test", 5)):
        run = Run(tmp_path / "fewer")
        assert len(load_run_split(run, Settings.of_run(run), split).images) == count


def test_a_split_of_a_run_is_compared_alone(run, capsys):
    out, folder = run
    settings = Settings.of_run(Run(out))
    splits = resume(Run(out)).splits
    for split, images in splits.by_name().items():
        found = load_run_split(Run(out), settings, split)
        assert list(found.images.names) == list(images.names) and not found.changes
    assert not set(splits.train.names) & set(splits.validation.names)
    save(folder / "bbb.png", 99)  # for training
    assert len(load_run_split(Run(out), settings, "test").images) == len(splits.test)
    with pytest.raises(MqvaeError, match=r"train: 1 added \(bbb\.png\)"):
        load_run_split(Run(out), settings, "train")
    found = load_run_split(Run(out), settings, "train", accept_changed_data=True)
    assert found.changes == {"train": "1 added (bbb.png)"}
    assert len(found.images) == len(splits.train) + 1
    codes = str(out.parent / "codes.npz")
    capsys.readouterr()
    assert main(["encode", str(out), "train", "--out", codes]) == 2
    assert "--accept-changed-data" in capsys.readouterr().err
    assert main(["encode", str(out), "train", "--out", codes, "--accept-changed-data"]) == 0
    held = len(splits.validation)
    assert f"{len(found.images) + held} images" in capsys.readouterr().out
    assert main(["encode", str(out), "validation", "--out", codes, "--overwrite"]) == 0
    assert "6 images" in capsys.readouterr().out
    with pytest.raises(MqvaeError, match="unknown split 'val'"):
        load_run_split(Run(out), settings, "val")


def test_images_that_were_trained_on_are_found_among_the_test_images(tmp_path, capsys):
    for split, count in (("train", 30), ("test", 5)):
        photos(tmp_path / "photos" / split, count)
    out = tmp_path / "run"
    begin(small(tmp_path / "photos"), out)
    folder = tmp_path / "photos"
    (folder / "train").rename(folder / "other")
    (folder / "test").rename(folder / "train")
    (folder / "other").rename(folder / "test")
    with pytest.raises(MqvaeError, match="test: 25 added") as error:
        load_run_split(Run(out), Settings.of_run(Run(out)), "test")
    assert "test/005.png" in str(error.value)


def test_a_prior_is_of_the_images_that_the_run_had(run, capsys):
    out, folder = run
    training = resume(Run(out))
    training.fit()
    change(folder)
    arguments = ["prior", str(out), "--steps", "2", "--batch-size", "4", "--width", "4"]
    assert main([*arguments, "--layers", "1"]) == 2
    assert "1 added, 1 gone, 1 changed" in capsys.readouterr().err
    assert not (out / "prior").exists()
    assert main([*arguments, "--layers", "1", "--accept-changed-data"]) == 0
    summary = json.loads((out / "prior" / "summary.json").read_text())
    assert summary["accepted_changes"][0]["train"].startswith("1 added, 1 gone, 1 changed")


def test_a_run_without_a_record_is_taken_with_a_warning(run, capsys):
    out, folder = run
    file = out / "checkpoints" / "last" / "state.json"
    state = json.loads(file.read_text())
    for name in ("images", "bounds", "accepted_changes"):
        del state[name]
    state.pop("sha256")
    digests = json.loads(file.read_text())["sha256"]
    digests["state"] = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    file.write_text(json.dumps({**state, "sha256": digests}, indent=2))
    (out / "images.npz").unlink()
    change(folder)
    training = resume(Run(out))
    said = capsys.readouterr().err
    assert said.count("mqvae: warning:") == 1 and "has no record of its images" in said
    training.fit()
    assert "images" in state_of(out) and (out / "images.npz").is_file()
    resume(Run(out))
    assert "has no record" not in capsys.readouterr().err


def test_without_images_npz_a_change_is_seen_but_not_counted(run):
    out, folder = run
    (out / "images.npz").write_bytes(b"damaged")
    resume(Run(out))
    save(folder / "bbb.png", 99)
    with pytest.raises(MqvaeError, match=r"train: \d+ images then, \d+ now"):
        resume(Run(out))


def test_named_images_in_memory_are_compared_by_their_pixels(tmp_path, monkeypatch):
    out = tmp_path / "run"
    begin(small("digits", side=None), out)
    resume(Run(out))
    known = Known.of_run(Run(out))
    assert known.bounds is None and known.splits["train"].names is None
    real = data.DATASETS["digits"].load

    def other(*arguments):
        images = real(*arguments)
        images.pixels[0] = 255 - images.pixels[0]
        return images

    monkeypatch.setattr("mqvae.data.digits.load_digits", other)
    with pytest.raises(MqvaeError, match="297 images, but not the same"):
        resume(Run(out))

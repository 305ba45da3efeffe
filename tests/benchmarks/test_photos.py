"""The photographs: which are taken, how they are cut and split, and read again."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import photos
from benchmarks.photos import cut_photographs, installed_photographs, main, photographs_in
from mqvae import data
from mqvae.data.photos import PACKAGES
from mqvae.errors import MqvaeError


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Crops of 16 pixels at two scales, and a cache of the test's own."""
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mqvae.data.photos.SIDE", 16)
    monkeypatch.setattr("mqvae.data.photos.FOLDER", "photos-16")
    monkeypatch.setattr(photos, "SCALES", (1, 2))
    monkeypatch.setattr(photos, "TEST_EVERY", 3)


def picture(path: Path, size=(40, 32), seed=0, kind="noise") -> Path:
    """A PNG of coarse noise, or of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3))
    if kind == "blank":
        values[:] = 90
    image = Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image.save(path, format="PNG")
    return path


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Cuts the pictures in `in/`."""

    def run(*arguments: str) -> None:
        words = ["photos", "--from", str(tmp_path / "in"), *arguments]
        monkeypatch.setattr("sys.argv", words)
        main()

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_each_photograph_is_in_one_split_and_files_follow_from_it(tmp_path):
    sources = {f"p{i}": picture(tmp_path / f"in/p{i}.png", seed=i) for i in range(9)}
    told = []
    cut = cut_photographs(
        sources, tmp_path / "a", show=lambda done, name: told.append(done), side=16
    )
    again = cut_photographs(dict(reversed(sources.items())), tmp_path / "b", side=16)
    assert files(cut.folder) == files(again.folder)
    assert told == list(range(1, 10))
    of = {
        split: {path.name.split("-")[0] for path in (cut.folder / split).iterdir()}
        for split in ("train", "test")
    }
    assert not of["train"] & of["test"] and of["train"] | of["test"] == set(sources)
    assert cut.photographs == {"train": 6, "test": 3}
    # Of 40 × 32 and 20 × 16 pixels: 2 × 2 crops and one.
    assert cut.crops == {"train": 30, "test": 15}
    names = sorted(
        p.name for p in (cut.folder / "train").glob("*") if p.name[:3] == min(of["train"]) + "-"
    )
    assert [name[2:] for name in names] == [
        "-16-00-00.png", "-32-00-00.png", "-32-00-01.png", "-32-01-00.png", "-32-01-01.png",
    ]  # fmt: skip
    origins = json.loads((cut.folder / "photographs.json").read_text(encoding="utf-8"))
    assert {name for name, o in origins.items() if o["split"] == "test"} == of["test"]
    assert all(Path(o["file"]) == sources[name] for name, o in origins.items())


def test_crops_are_the_photographs_pixels_without_overlap(tmp_path):
    sources = {name: picture(tmp_path / f"{name}.png", seed=i) for i, name in enumerate("ab")}
    cut = cut_photographs(sources, tmp_path / "out", side=16)
    for name, path in sources.items():
        whole = np.asarray(Image.open(path))[:, 4:36]  # the centre 32 × 32 of 40 × 32
        rows = [
            np.concatenate(
                [
                    np.asarray(
                        Image.open(next(cut.folder.glob(f"*/{name}-32-0{row}-0{column}.png")))
                    )
                    for column in (0, 1)
                ],
                axis=1,
            )
            for row in (0, 1)
        ]
        assert np.array_equal(np.concatenate(rows), whole)


def test_squares_of_another_side(tmp_path, command):
    for name in "ab":
        picture(tmp_path / f"in/{name}.png", seed=ord(name))
    command("--out", str(tmp_path), "--size", "8")
    crops = list((tmp_path / "photos-8").glob("*/*.png"))
    # Of 10 × 8 and 20 × 16 pixels: one square and 2 × 2 of each.
    assert len(crops) == 10 and {np.asarray(Image.open(c)).shape for c in crops} == {(8, 8, 3)}
    with pytest.raises(MqvaeError, match="8 pixels a side or more, got 7"):
        command("--out", str(tmp_path), "--size", "7")


def test_which_are_for_test_does_not_follow_from_the_alphabet(tmp_path):
    sources = {f"p{i:02}": picture(tmp_path / f"p{i:02}.png", seed=i) for i in range(30)}
    tests = {
        path.name[:3]
        for path in (cut_photographs(sources, tmp_path, side=16).folder / "test").iterdir()
    }
    assert len(tests) == 10 and tests not in (set(sorted(sources)[:10]), set(sorted(sources)[-10:]))


def test_blank_crops_and_small_photographs_are_left_out(tmp_path):
    sources = {name: picture(tmp_path / f"{name}.png", seed=i) for i, name in enumerate("ab")}
    sources["blank"] = picture(tmp_path / "blank.png", kind="blank")
    sources["tiny"] = picture(tmp_path / "tiny.png", size=(40, 12))
    cut = cut_photographs(sources, tmp_path / "out", side=16)
    assert cut.too_small == ("tiny",)
    assert sum(cut.photographs.values()) == 3 and sum(cut.crops.values()) == 10
    with pytest.raises(ValueError, match=r"expected at least 2 .* got 1 of 2"):
        cut_photographs(
            {name: sources[name] for name in ("a", "tiny")}, tmp_path / "other", side=16
        )
    assert not (tmp_path / "other").exists()


def test_of_several_sizes_the_largest_and_of_equal_files_one(tmp_path):
    picture(tmp_path / "Lake_640x400.png", (64, 40), seed=1)
    large = picture(tmp_path / "Lake_1280x800.png", (128, 80), seed=1)
    wide = picture(tmp_path / "KDE/contents/images/5120x2880.png", (96, 64), seed=2)
    picture(tmp_path / "KDE/contents/images/1080x1920.png", (64, 80), seed=2)
    picture(tmp_path / "KDE/contents/images_dark/5120x2880.png", (96, 64), seed=3)
    picture(tmp_path / "KDE/contents/screenshot.png", seed=2)
    (tmp_path / "z").mkdir()
    (tmp_path / "z/Same.png").write_bytes(large.read_bytes())
    other = picture(tmp_path / "z/Other.png", seed=4)
    (tmp_path / "drawing.svg").write_text("<svg/>")
    assert photographs_in(tmp_path) == {"KDE": wide, "Lake": large, "z__Other": other}


def test_debians_packages(tmp_path):
    with pytest.raises(data.DataNotFound, match=r"apt-get install .*mate-backgrounds"):
        installed_photographs(tmp_path)
    leaf = picture(tmp_path / "backgrounds/mate/nature/Blinds.jpg")
    picture(tmp_path / "backgrounds/mate/abstract/Elephants.jpg")  # a painting
    picture(tmp_path / "wallpapers/Path/contents/images/640x480.jpg", (16, 16))
    path = picture(tmp_path / "wallpapers/Path/contents/images/2560x1600.jpg", (64, 64))
    found, missing = installed_photographs(tmp_path)
    assert found == {"Blinds": leaf, "Path": path}
    assert missing == ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
    entries = [Path(entry).stem for entries in photos.PACKAGES.values() for entry in entries]
    assert len(set(entries)) == len(entries) == 37
    assert tuple(photos.PACKAGES) == PACKAGES


def test_the_command_writes_what_load_reads(tmp_path, capsys, command):
    for i in range(4):
        picture(tmp_path / f"in/{i}.png", seed=i)
    with pytest.raises(
        data.DataNotFound, match=r"`python -m benchmarks.photos` cuts them .*apt-get install"
    ):
        data.load("photos", "train")
    command("--size", "16")
    said = capsys.readouterr()
    assert "train     15 crops of 3 photographs\ntest       5 crops of 1 photographs" in said.out
    assert "cutting: 4/4" in said.err and "photographs/s" in said.err
    train, test = (data.load("photos", split) for split in ("train", "test"))
    assert (train.name, train.shape, len(train), len(test)) == ("photos", (3, 16, 16), 15, 5)
    assert not train.labels.any()
    assert data.load("photos", "test", side=8, channels=1).shape == (1, 8, 8)
    folder = tmp_path / "cache/photos"
    for root in (folder, folder / "photos-16"):
        assert len(data.load("photos", "test", root=root)) == 5
    with pytest.raises(MqvaeError, match="exists already: choose another --out, or add --overwri"):
        command("--size", "16")
    command("--size", "16", "--overwrite")
    # What goes wrong leaves what was there.
    (tmp_path / "in/broken.png").write_bytes(b"no image")
    with pytest.raises(MqvaeError, match=r"broken\.png cannot be read"):
        command("--size", "16", "--overwrite")
    assert len(data.load("photos", "test")) == 5
    assert [path.name for path in folder.iterdir()] == ["photos-16"]

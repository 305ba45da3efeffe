"""A small version of campaigns/broken_data.py, which has the counts of a large one."""

import pytest
from PIL import Image

from campaigns import broken_data as campaign
from mqvae import data
from mqvae.data.decoding import head


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("part", "options", "read", "refused"),
    [
        ("images", {"count": 2}, 70, 70),
        ("idx", {"every": 3_000_000}, 2, 5),
        ("cifar", {"every": 10_000_000}, 2, 100),
        ("svhn", {"every": 1_000}, 1, 10),
        ("shards", {"every": 30_000, "altered": 40}, 30, 240),
        ("folders", {}, 2, 5),
    ],
)
def test_broken_data_is_read_whole_or_refused_in_one_line(
    tmp_path, cache, part, options, read, refused
):
    if part == "svhn":
        pytest.importorskip("scipy")
    counts = getattr(campaign, part)(tmp_path / part, **options)
    assert counts.wrong == []
    assert sum(counts.read.values()) >= read
    assert sum(counts.refused.values()) >= refused
    assert not campaign.files_under(cache)


def test_an_image_is_broken_in_25_ways():
    image = Image.new("RGB", (20, 20))
    kinds = [kind for kind, *_ in campaign.broken(image, campaign.np.random.default_rng(0))]
    assert len(kinds) == len(set(kinds)) == 25


def test_bombs_are_refused_by_the_size_they_declare(tmp_path):
    small = Image.new("RGB", (20, 20))
    for ending, content in (
        ("png", campaign.png_of(60_000, 60_000)),
        ("gif", campaign.bomb_gif()),
        ("bmp", campaign.bomb_bmp()),
        ("jpg", campaign.bomb_jpeg(campaign.written(small, "JPEG"))),
        ("tif", campaign.bomb_tiff(campaign.written(small, "TIFF"))),
    ):
        path = tmp_path / f"bomb.{ending}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"more than [\d,]+ pixels by its header"):
            head(str(path))
        with pytest.raises(ValueError, match=rf"bomb\.{ending} cannot be read: .*may be a bomb"):
            data.load_files([path], side=8, channels=3)


def test_only_the_kinds_of_the_endings_are_read(tmp_path):
    """Pillow hands PostScript to another program, whatever the file is called."""
    path = tmp_path / "a.png"
    path.write_bytes(campaign.eps())
    with pytest.raises(ValueError, match=r"a\.png cannot be read: .*none that is known"):
        data.load_files([path], side=8, channels=3)
    Image.new("RGB", (8, 8)).save(path, "PPM")
    with pytest.raises(ValueError, match="none that is known"):
        data.load_files([path], side=8, channels=3)

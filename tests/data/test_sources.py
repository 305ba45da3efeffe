"""Data as a component: datasets of PyTorch and of the Hub, classes of one's own, older settings."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import Dataset

import mqvae
from mqvae import ArrayData, Data, HubData, ImageData, MqvaeError, TorchData
from mqvae.cli import main
from mqvae.config import Settings, from_arguments, load_preset
from mqvae.config.choosing import completed
from mqvae.config.sources import source_of
from mqvae.data import DATASETS, Images, InMemory, OfDataset, identity_of, load, look
from mqvae.data.registry import Row

SMALL = ["--accelerator", "cpu", "--network.width", "4", "--network.residual_blocks", "0"]
SMALL += ["--quantizer.num_codes", "8", "--quantizer.dim", "4", "--steps", "2"]
SMALL += ["--trainer.loggers", "[]"]


class Squares(Dataset):
    """Grey squares of 12 pixels, each with its number for a label."""

    made = 0

    def __init__(self, count: int = 40, kind: str = "PIL") -> None:
        Squares.made += 1
        self.kind = kind
        self.targets = [i % 3 for i in range(count)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        pixels = np.full((12, 14), 4 * index, np.uint8)
        if self.kind == "PIL":
            return Image.fromarray(pixels), self.targets[index]
        if self.kind == "float":
            return torch.from_numpy(pixels)[None] / 255
        if self.kind == "vector":
            return {"embedding": torch.arange(4.0) + index, "item": index}
        return {"picture": np.stack([pixels] * 3, -1), "label": 0}


@dataclasses.dataclass(frozen=True)
class Ramp(Data):
    """A source of one's own.

    Args:
        count: Images.
    """

    count: int = 30

    @property
    def shape(self):
        return (1, 8, 8)

    def seen(self, images: Images):
        return self

    def load(self, split: str) -> Images:
        pixels = torch.arange(self.count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        labels = torch.zeros(self.count, dtype=torch.int64)
        return InMemory("ramp", split, pixels.contiguous(), labels, "made")


# -- what --data means -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "arguments"),
    [
        ("digits", "mqvae.ImageData", {"name": "digits"}),
        ("photos/", "mqvae.ImageData", {"name": "photos/"}),
        ("a/{00..12}.tar", "mqvae.ImageData", {"name": "a/{00..12}.tar"}),
        ("vectors.npy", "mqvae.ArrayData", {"name": "vectors.npy"}),
        ("hf:ylecun/mnist", "mqvae.HubData", {"name": "hf:ylecun/mnist"}),
        ("test_sources.Ramp", "test_sources.Ramp", None),
        (
            "test_sources.Squares",
            "mqvae.TorchData",
            {"train": {"class_path": "test_sources.Squares"}},
        ),
    ],
)
def test_what_one_word_means(value, kind, arguments):
    source = source_of(value)
    assert (source["class_path"], source.get("init_args")) == (kind, arguments)
    said = load_preset("digits-tiny", {"data": value})["data"]
    assert said["class_path"] == kind
    assert said["init_args"]["batch_size"] == 64  # an option of all stays
    typed = from_arguments(["digits-tiny", "--data", value, "--data.limit", "9"])[0]
    assert typed.data.limit == 9 and typed.data.batch_size == 64
    assert Settings.of(yaml.safe_load(yaml.safe_dump(typed.config()))) == typed


def test_older_settings_are_read():
    """config.yaml of a run from before data were a component."""
    settings = from_arguments(["digits-tiny", "--size", "12", "--data.flip"])[0]
    older = settings.config()
    older["data"] = older["data"]["init_args"]
    assert Settings.of(older) == settings
    assert settings.data == ImageData("digits", batch_size=64, side=12, flip=True)


def test_an_option_of_another_source_is_refused(capsys):
    for options in (["--data", "a.npy", "--size", "8"], ["--data", "digits", "--data.config", "x"]):
        with pytest.raises(MqvaeError, match=r"there is no option --(size|data\.config) of"):
            from_arguments(["digits-tiny", *options])


def test_reading_settings_opens_no_dataset():
    before = Squares.made
    settings = from_arguments(["digits-tiny", "--data", "test_sources.Squares"])[0]
    assert isinstance(settings.data, TorchData) and Squares.made == before
    settings.data.load("train")
    assert Squares.made == before + 1
    with pytest.raises(MqvaeError, match="no choice 'builtins"):
        Settings.of({**settings.config(), "data": {"class_path": "builtins.dict"}})


def test_a_class_that_is_not_imported_is_explained(tmp_path, capsys):
    typed = ["train", "digits-tiny", "--data", "my_module.Mine", "--out", str(tmp_path / "run")]
    assert main(typed) == 2
    assert "For a class of your own add --import my_module." in capsys.readouterr().err


def test_a_run_on_a_source_of_ones_own(tmp_path):
    typed = ["train", "digits-tiny", "--data", "test_sources.Ramp", "--data.count", "20", *SMALL]
    assert main([*typed, "--batch-size", "5", "--out", str(tmp_path / "run")]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["init_args"]["count"] == 20
    assert main(["evaluate", str(tmp_path / "run"), "--accelerator", "cpu"]) == 0


def test_a_preset_is_chosen_for_any_source():
    typed, why = completed(["test_sources.Squares", "--steps", "3"])
    assert typed[:3] == ["digits-tiny", "--method", "recommended"]
    assert why.startswith("test_sources.Squares: images of 12 × 12 pixels. Preset digits-tiny")
    assert completed(["--data", "test_sources.Ramp"])[0][0] == "digits-tiny"


# -- datasets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PIL", "float", "array"])
def test_samples_become_images(kind):
    picture = "picture" if kind == "array" else None
    images = OfDataset(Squares(kind=kind), name="s", split="train", side=8, image=picture)
    pixels, _ = images.take([3, 7])
    assert images.shape == ((3 if kind == "array" else 1), 8, 8)
    assert pixels.dtype == torch.uint8 and pixels.float().mean((1, 2, 3)).tolist() == [12, 28]


def test_a_tenth_of_one_dataset_is_for_test():
    data = TorchData(train={"class_path": "test_sources.Squares", "init_args": {"count": 100}})
    train, test = data.load("train"), data.load("test")
    assert len(train) + len(test) == 100 and 3 < len(test) < 20
    values = [int(p.max()) for p in (train.take([0])[0], test.take([0])[0])]
    assert values[0] != values[1] and train.labels.max() == 2
    assert identity_of(train) != identity_of(test) == identity_of(data.load("test"))
    assert data.title == "Squares"


def test_vectors_of_a_dataset():
    spec = {"class_path": "test_sources.Squares", "init_args": {"kind": "vector"}}
    images = TorchData(train=spec, memory=True).load("train")
    assert images.shape == (4,) and images.take([0])[0].dtype == torch.float32


def test_samples_that_are_refused():
    class Odd(Squares):
        def __getitem__(self, index):
            return {"a": 1, "b": 2}

    with pytest.raises(MqvaeError, match=r"has a, b: expected one of image.*--data.image"):
        OfDataset(Odd(), name="odd", split="train")
    with pytest.raises(MqvaeError, match=r"sample 0 of s cannot be read: KeyError"):
        OfDataset({"a": 1}, name="s", split="train")
    with pytest.raises(MqvaeError, match=r"map-style"):
        OfDataset(iter([1]), name="odd", split="train")
    with pytest.raises(MqvaeError, match=r"--data\.train my_module"):
        TorchData().load("train")


def test_a_run_on_a_dataset(tmp_path):
    run = str(tmp_path / "run")
    typed = ["train", "digits-tiny", "--data", "test_sources.Squares", "--data.train.count", "60"]
    typed += ["--size", "8", "--batch-size", "8", *SMALL, "--out", run]
    assert main(typed) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["init_args"]["train"]["init_args"]["count"] == 60
    assert config["data"]["init_args"]["shape"] == [1, 8, 8]
    assert main(["evaluate", run, "--accelerator", "cpu"]) == 0
    assert main(["train", "--resume", run, "--steps", "3"]) == 0
    np.save(tmp_path / "more.npy", np.zeros((20, 8, 8), np.uint8))
    assert (
        main(["evaluate", run, "--accelerator", "cpu", "--data", str(tmp_path / "more.npy")]) == 0
    )


# -- the Hub ---------------------------------------------------------------------------------------


class Column(list):
    """A split as the package `datasets` gives it, of rows."""

    @property
    def column_names(self):
        return list(self.row(0))

    def row(self, index):
        return super().__getitem__(index)

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


@pytest.fixture
def hub(monkeypatch):
    """A package `datasets` with two datasets in it."""
    rows = Column({"img": Image.new("RGB", (9, 9), (i, 0, 0)), "label": i % 2} for i in range(40))
    there = {
        "me/both": {"train": rows, "validation": Column(rows[:10])},
        "me/one": {"train": rows},
    }
    module = types.ModuleType("datasets")
    module.load_dataset = lambda name, config: there[name]
    module.__spec__ = types.SimpleNamespace(name="datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_dataset_of_the_hub(hub):
    data = HubData("hf:me/both", side=8)
    train, test = data.load("train"), data.load("test")
    assert (len(train), len(test), train.shape) == (40, 10, (3, 8, 8))
    assert train.labels.tolist()[:3] == [0, 1, 0] and data.title == "both"
    assert data.seen(train).channels == 3
    one = HubData("hf:me/one")
    assert len(one.load("train")) + len(one.load("test")) == 40


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'mqvae\[datasets\]'"):
        HubData("hf:me/one").load("train")


def test_every_source_is_public():
    kinds = [getattr(mqvae, name) for name in mqvae.__all__]
    kinds = {k for k in kinds if isinstance(k, type) and issubclass(k, Data)}
    assert kinds == {Data, ImageData, ArrayData, TorchData, HubData}


# -- data sets by name -----------------------------------------------------------------------------

TOY = '''
"""A data set of one colour each."""

import torch

from mqvae.data import InMemory


def load_toy(split, root, reading, download):
    pixels = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 12, 12)
    labels = torch.arange(40) % 2
    return InMemory("toy", split, pixels, labels, "made")
'''


@pytest.mark.usefixtures("uncharted")
def test_one_file_and_one_row_add_a_data_set(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DATASETS, "toy", Row("Toy squares", "toy.load_toy"))
    images = load("toy", "test", side=8, channels=3)
    assert images.shape == (3, 8, 8) and len(images) == 40
    assert str(look("toy")) == "grey, 12 pixels a side"
    assert completed(["toy"])[0][0] == "digits-tiny"
    with pytest.raises(MqvaeError, match="Did you mean 'toy'"):
        load("toi", "test")
    run = str(tmp_path / "run")
    typed = ["train", "digits-tiny", "--data", "toy", "--size", "8", "--batch-size", "8"]
    assert main([*typed, *SMALL, "--out", run]) == 0
    assert main(["report", run, "--out", str(tmp_path / "page.html")]) == 0
    assert "Toy squares" in (tmp_path / "page.html").read_text()
    assert main(["doctor"]) in (0, 1)
    assert "toy" in capsys.readouterr().out


def test_a_number_may_be_the_name_of_a_folder():
    assert Settings.of(load_preset("digits-tiny", {"data": 2024})).data.name == "2024"

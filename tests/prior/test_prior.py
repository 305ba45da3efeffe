"""mqvae.networks.pixelcnn and mqvae.prior: codes in raster order, and images drawn from them."""

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.flop_counter import FlopCounterMode

from mqvae import CodeTransformer, PixelCNN
from mqvae.cli import main
from mqvae.data.order import order_of
from mqvae.metrics.frechet import Frechet, FrechetVgg16, frechet_distance
from mqvae.prior import (
    PriorSettings,
    begin_prior,
    load_prior,
    resume_prior,
    sample_images,
)
from mqvae.prior.codes import CodeSplit, bits, bits_of_split, independent_bits, shuffled
from mqvae.prior.distance import SampleDistance
from mqvae.prior.settings import PriorConfig
from mqvae.runs import Run
from mqvae.tokenizer import Codes, Tokenizer
from mqvae.training import Interrupted, NotFinite
from mqvae.training.images import load_splits

# A few steps: the codes of an encoder that has hardly begun differ, and depend on neighbours.
SMALL = {
    "name": "small",
    "steps": 2,
    "data": {"name": "digits", "side": 16, "batch_size": 64},
    "network": {"width": 16, "residual_blocks": 1},
    "quantizer": {"init_args": {"num_codes": 16, "dim": 8}},
    "update": {"class_path": "mqvae.Joint"},
    "optimizer": {"network_lr": 1e-3, "codebook_lr": 1e-3},
    "trainer": {"accelerator": "cpu"},
}
KINDS = {
    "plain": {},
    "other": {"seed": 1},
    "groups": {"data": {"side": 8}, "quantizer": {"init_args": {"groups": 2}}},
    "continuous": {"quantizer": {"class_path": "mqvae.NoQuantizer", "init_args": {"dim": 8}}},
}
TINY = PriorSettings(steps=6, width=4, layers=2, batch_size=16)


@pytest.fixture(scope="module")
def runs(trained):
    return lambda kind: trained(kind, SMALL, KINDS[kind])


@pytest.fixture
def run(runs, tmp_path):
    shutil.copytree(runs("plain"), tmp_path / "run")
    return tmp_path / "run"


def pixelcnn(shape, *, classes=0, layers=6, num_codes=5, seed=0):
    """A small one in float64; nothing happens to be zero, and codes are far from uniform."""
    torch.manual_seed(seed)
    network = PixelCNN(num_codes, shape, width=4, layers=layers, classes=classes).double()
    nn.init.normal_(network.places)
    for p in network.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.5)
    nn.init.normal_(network.head[-1].weight, std=2)
    network.head[0] = network.head[2] = nn.Tanh()  # a ReLU may hide what comes from far
    return network


def transformer(shape, *, classes=0, num_codes=5, seed=0):
    """A small one in float64, its weights large enough for codes far from uniform."""
    torch.manual_seed(seed)
    sizes = {"width": 8, "layers": 2, "heads": 2}
    network = CodeTransformer(num_codes, shape, classes=classes, **sizes).double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.5)
    return network


MADE = pytest.mark.parametrize("made", [pixelcnn, transformer])
SHAPES = [((4, 5), 0), ((3, 2, 2), 0), ((1, 4), 0), ((4, 3), 3), ((2, 2, 3), 3)]


def codes_for(shape, classes, count=3, num_codes=5):
    labels = torch.arange(count) % classes if classes else None
    return torch.randint(num_codes, (count, *shape)), labels


# -- the network -----------------------------------------------------------------------------------


@MADE
@pytest.mark.parametrize(("shape", "classes"), SHAPES)
def test_a_code_is_known_to_all_after_it_and_to_no_other(made, shape, classes):
    network = made(shape, classes=classes)
    codes, labels = codes_for(shape, classes, count=1)
    before = network(codes, labels).flatten(0, -2)  # (positions, K)
    for position in range(len(before)):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 5
        differs = (network(changed, labels).flatten(0, -2) != before).any(-1)
        assert not differs[: position + 1].any()
        assert differs[position + 1 :].all()  # no blind spot


@MADE
@pytest.mark.parametrize(("shape", "classes"), SHAPES)
def test_what_is_cached_is_what_a_whole_pass_gives(made, shape, classes):
    network = made(shape, classes=classes)
    codes, labels = codes_for(shape, classes)
    whole = network(codes, labels).view(3, network.rows, network.columns, 5)
    grid = codes.view(3, network.rows, network.columns)
    seen = []

    def choose(logits, row, column):
        seen.append((row, column))
        torch.testing.assert_close(logits, whole[:, row, column], rtol=0, atol=1e-10)
        return grid[:, row, column]

    assert torch.equal(network.walk(choose, 3, labels=labels), codes)
    assert seen == [(i, j) for i in range(network.rows) for j in range(network.columns)]


def test_cached_sampling_costs_no_more_operations_than_a_pass_and_a_half():
    network = PixelCNN(64, (7, 7), width=16, layers=8)
    with FlopCounterMode(display=False) as one_pass, torch.no_grad():
        network(torch.zeros(4, 7, 7, dtype=torch.int64))
    with FlopCounterMode(display=False) as cached:
        network.sample(4)
    assert 0 < cached.get_total_flops() < 1.5 * one_pass.get_total_flops()  # plain: 49


@MADE
@pytest.mark.parametrize(("shape", "classes"), SHAPES)
def test_samples_follow_what_is_predicted(made, shape, classes):
    """The mean −log p of samples is the entropy that the logits say, within four errors."""
    network = made(shape, classes=classes)
    labels = torch.arange(2000) % classes if classes else None
    drawn = network.sample(2000, labels=labels, generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (2000, *shape) and drawn.dtype == torch.int64
    logs = network(drawn, labels).log_softmax(-1)
    given = -logs.gather(-1, drawn[..., None])[..., 0]
    expected = -(logs.exp() * logs).sum(-1)
    difference = (given - expected).flatten(1).sum(1)
    assert expected.mean() < 0.95 * math.log(5)  # not uniform, so that it can be wrong
    assert abs(difference.mean()) < 4 * difference.std() / 2000**0.5


@MADE
def test_a_generator_and_a_temperature_say_what_is_drawn(made):
    network = made((3, 3))
    first, again, other = (
        network.sample(20, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    cold = network.sample(20, temperature=1e-6)
    assert torch.equal(cold, cold[:1].expand_as(cold))
    assert torch.equal(network(cold).argmax(-1), cold)


@MADE
def test_classes_matter(made):
    network = made((2, 2), classes=2)
    codes = torch.zeros(2, 2, 2, dtype=torch.int64)
    of_both = network(codes, torch.tensor([0, 1]))
    assert (of_both[0] != of_both[1]).all()


@MADE
def test_groups_have_embeddings_of_their_own(made):
    network = made((2, 2, 2))
    embedded = network.embed(torch.zeros(1, 2, 2, 2, dtype=torch.int64))
    assert torch.equal(embedded[..., 0], embedded[..., 2])
    assert (embedded[..., 0] != embedded[..., 1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (3,)}, r"shape must be \(h, w\)"),
        ({"num_codes": 0}, "num_codes must be 1 or more, got 0"),
        ({"width": 0}, "width must be 1 or more"),
        ({"kernel": 4}, "kernel must be an odd number of 3 or more, got 4"),
        ({"classes": -1}, "classes must be 0 or more"),
    ],
)
def test_sizes_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelCNN(**{"num_codes": 5, "shape": (2, 2), **arguments})


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="heads must divide the width, 8, got 3"):
        CodeTransformer(5, (2, 2), width=8, heads=3)


@MADE
def test_calls_that_do_not_fit(made):
    plain, conditional = made((2, 3)), made((2, 3), classes=2)
    codes = torch.zeros(1, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"codes must be \(B, 2, 3\), got \(1, 3, 2\)"):
        plain(codes.mT)
    with pytest.raises(ValueError, match="leave out labels"):
        plain(codes, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(1,\) classes, got none"):
        conditional(codes)
    with pytest.raises(ValueError, match=r"labels must lie in 0 … 1, got 2"):
        conditional(codes, torch.tensor([2]))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        plain.sample(1, temperature=0.0)
    with pytest.raises(ValueError, match="count must be 1 or more"):
        plain.sample(0)


# -- codes -----------------------------------------------------------------------------------------


def test_batches_go_through_every_code_and_resume_anywhere():
    batches = shuffled(10, 3, seed=0, start=0)
    first = [next(batches) for _ in range(7)]
    assert len(torch.cat(first[:3]).unique()) == 9
    assert not torch.equal(torch.cat(first[:3]), torch.cat(first[3:6]))
    for start in range(7):
        assert torch.equal(next(shuffled(10, 3, seed=0, start=start)), first[start])
    assert not torch.equal(next(shuffled(10, 3, seed=1, start=0)), first[0])


def test_bits_of_a_split_are_the_mean_over_codes(monkeypatch):
    monkeypatch.setattr("mqvae.prior.codes.BATCH_SIZE", 4)
    network = pixelcnn((2, 3))
    codes, _ = codes_for((2, 3), 0, count=10)
    split = CodeSplit(codes.int(), None)
    logs = network(codes).log_softmax(-1).gather(-1, codes[..., None])
    expected = -logs.mean() / math.log(2)
    torch.testing.assert_close(bits(network, codes, None), expected)
    assert bits_of_split(network, split, torch.device("cpu")) == pytest.approx(expected.item())


def test_independent_bits_by_hand():
    train = CodeSplit(torch.tensor([[[0, 1]], [[0, 1]], [[0, 0]]]), None)
    test = CodeSplit(torch.tensor([[[0, 1]], [[1, 1]]]), None)
    # Frequencies (3.5, 0.5)/4 and (1.5, 2.5)/4.
    expected = -np.mean(np.log2([3.5 / 4, 2.5 / 4, 0.5 / 4, 2.5 / 4]))
    assert independent_bits(train, test, 2) == pytest.approx(expected)


def test_the_usual_kernel_sees_the_whole_grid():
    for shape, layers in (((7, 7), 8), ((4, 4), 2), ((3, 2, 4), 3), ((16, 16), 4)):
        settings = PriorSettings(architecture="pixelcnn", layers=layers, width=2)
        network = PriorConfig(settings, 3, shape, 0, "last", "").network()
        assert network.reach * layers >= max(network.rows, network.columns)
        assert (network.reach - 1) * layers < max(network.rows, network.columns)


def test_a_transformer_is_usual_where_codes_are_many():
    made = {
        (shape, given): type(
            PriorConfig(
                PriorSettings(architecture=given, width=4), 3, shape, 0, "last", ""
            ).network()
        )
        for shape in ((15, 17), (16, 16), (8, 8, 4))
        for given in (None, "pixelcnn", "transformer")
    }
    usual = [made[shape, None] for shape in ((15, 17), (16, 16), (8, 8, 4))]
    assert usual == [PixelCNN, CodeTransformer, CodeTransformer]
    assert all(kind is PixelCNN for (_, given), kind in made.items() if given == "pixelcnn")
    assert all(
        kind is CodeTransformer for (_, given), kind in made.items() if given == "transformer"
    )
    with pytest.raises(ValueError, match="architecture must be pixelcnn or transformer, got 'rnn'"):
        PriorSettings(architecture="rnn")


def test_the_usual_batch_has_as_many_codes_whatever_an_image_has():
    shapes = {(7, 7): 64, (8, 8): 64, (16, 16): 16, (8, 8, 4): 16, (64, 64): 1, (128, 128): 1}
    for shape, grids in shapes.items():
        for given in (None, 3):
            config = PriorConfig(PriorSettings(batch_size=given), 3, shape, 0, "last", "")
            assert config.batch_size == (given or grids)


def test_fewer_images_than_a_usual_batch_are_one_batch(run):
    training = begin_prior(run, replace(TINY, batch_size=None), device="cpu")
    training.train = CodeSplit(training.train.codes[:5], None)
    training.fit()
    assert training.step == TINY.steps


def test_a_prior_of_before_there_were_two_kinds_is_a_pixelcnn(run):
    begin_prior(run, TINY, device="cpu").fit()
    file = run / "prior" / "config.yaml"
    content = yaml.safe_load(file.read_text())
    del content["prior"]["architecture"], content["prior"]["heads"]
    file.write_text(yaml.safe_dump(content))
    assert isinstance(load_prior(Tokenizer.from_run(run, device="cpu")), PixelCNN)


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "steps"), [("pixelcnn", 100), ("transformer", 180)])
def test_training_learns_what_neighbours_say(run, architecture, steps):
    settings = PriorSettings(steps, architecture=architecture, width=16, layers=3, lr=1e-2)
    training = begin_prior(run, settings, device="cpu")
    splits = [len(split) for split in (training.train, training.validation, training.test)]
    summary = training.fit()
    used = json.loads((run / "summary.json").read_text())["usage"] * 16
    assert summary["bits_per_code"] < summary["independent_bits_per_code"] < math.log2(used)
    assert summary["bits_per_dimension"] == pytest.approx(summary["bits_per_code"] * 16 / 256)
    assert summary == json.loads((run / "prior" / "summary.json").read_text())
    assert set(summary["figures"]) <= set(summary)
    with (run / "prior" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "seconds", "loss", "validation"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) and rows[-1]["step"] == str(steps)
    said = [float(row["validation"]) for row in rows if row["validation"]]
    assert len(said) == 5 and said[-1] < said[0]
    images = Tokenizer.from_run(run, device="cpu").settings.data
    assert splits[1] == images.validation == 150 and sum(splits) == 1797
    # What was measured is what is saved.
    tokenizer = Tokenizer.from_run(run, device="cpu")
    again = bits_of_split(load_prior(tokenizer), training.test, torch.device("cpu"))
    assert again == pytest.approx(summary["bits_per_code"], rel=1e-6)


def weights(run):
    return Run(run / "prior").load("last")


def same_checkpoints(one, two):
    assert one.model.keys() == two.model.keys() and one.training.keys() == two.training.keys()
    for key, tensor in {**one.model, **one.training}.items():
        assert torch.equal(tensor, {**two.model, **two.training}[key]), key


def rows_of(run):
    with (run / "prior" / "metrics.csv").open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


@pytest.mark.parametrize("architecture", ["pixelcnn", "transformer"])
def test_a_stopped_prior_goes_on_bit_for_bit(runs, run, tmp_path, monkeypatch, architecture):
    tiny = replace(TINY, architecture=architecture)
    shutil.copytree(runs("plain"), tmp_path / "whole")
    begin_prior(tmp_path / "whole", tiny, device="cpu").fit()
    training = begin_prior(run, tiny, device="cpu")
    log = training.run.log

    def interrupting(row):
        log(row)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training.run, "log", interrupting)
    with pytest.raises(Interrupted) as stop:
        training.fit()
    assert stop.value.step == 3 and not (run / "prior" / "summary.json").exists()
    resume_prior(run, device="cpu").fit()
    same_checkpoints(weights(run), weights(tmp_path / "whole"))
    assert rows_of(run) == rows_of(tmp_path / "whole")
    begin_prior(run, tiny, device="cpu", overwrite=True).fit()
    same_checkpoints(weights(run), weights(tmp_path / "whole"))


def test_seeds_differ(run):
    first = begin_prior(run, TINY, device="cpu").network.state_dict()
    other = PriorSettings(**{**vars(TINY), "seed": 1})
    second = begin_prior(run, other, device="cpu", overwrite=True).network.state_dict()
    assert not torch.equal(first["embedding.weight"], second["embedding.weight"])


def test_a_loss_that_is_not_finite_leaves_the_checkpoint(run):
    training = begin_prior(run, TINY, device="cpu")
    before = weights(run)
    nn.init.constant_(training.network.places, math.nan)
    with pytest.raises(NotFinite, match=r"the loss is nan at step 1.*lower lr"):
        training.fit()
    same_checkpoints(weights(run), before)


# -- samples, measured on the way ------------------------------------------------------------------


class Pooled(Frechet):
    """Features that need no weights."""

    def __init__(self, images, device):
        super().__init__(16, "means of parts", images)

    def features(self, images):
        return adaptive_avg_pool2d(images[:, :1], 4).flatten(1)


MEASURED = PriorSettings(**{**vars(TINY), "samples_every": 4, "samples": 20})
POINTS = [4, 6]


@pytest.fixture
def pooled(monkeypatch, tmp_path):
    monkeypatch.setenv("MQVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("mqvae.metrics.frechet.FrechetVgg16", Pooled)


def samples_of(run):
    with (run / "prior" / "samples.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["frechet_vgg16"])) for row in csv.DictReader(file)]


def distance_to(test, images):
    features = [adaptive_avg_pool2d(x, 4).flatten(1).double() for x in (images, test.pixels / 255)]
    moments = [m for f in features for m in (f.mean(0), f.T.cov())]
    return frechet_distance(*moments)


def test_a_curve_of_samples(pooled, run, tmp_path):
    plain = shutil.copytree(run, tmp_path / "plain")
    summary = begin_prior(run, MEASURED, device="cpu").fit()
    points = [(step, value) for step, value in summary["samples"]["points"]]
    assert [step for step, _ in points] == POINTS
    assert summary["samples"]["distance"] == "frechet_vgg16"
    assert points == samples_of(run)
    tokenizer = Tokenizer.from_run(run, device="cpu")
    splits, _ = load_splits(tokenizer.settings)
    drawn = sample_images(tokenizer, load_prior(tokenizer), 20, torch.Generator().manual_seed(0))
    last = distance_to(splits.test, drawn)
    assert points[-1][1] == pytest.approx(last, rel=1e-4)
    assert points[0] != points[1]
    # What it can be held against: training images, and these through the tokenizer.
    pixels, _ = splits.train.take(order_of(len(splits.train), "prior,distance")[:20])
    known = distance_to(splits.test, pixels / 255)
    assert summary["frechet_vgg16_training_images"] == pytest.approx(known, rel=1e-4)
    decoded = tokenizer.decode(tokenizer.encode(pixels / 255)).clamp(0, 1)
    known = distance_to(splits.test, decoded)
    assert summary["frechet_vgg16_reconstructions"] == pytest.approx(known, rel=1e-4)
    assert summary == json.loads((run / "prior" / "summary.json").read_text())
    assert summary["frechet_vgg16"] == points[-1][1]
    assert (
        "20 samples of the last step against the 297 test images"
        in (summary["figures"]["frechet_vgg16"]["protocol"])
    )
    # Training is what it is without.
    begin_prior(plain, TINY, device="cpu").fit()
    same_checkpoints(weights(run), weights(plain))
    assert rows_of(run) == rows_of(plain)


class Killed(Exception):
    pass


def test_a_killed_curve_goes_on_with_what_was_measured(pooled, runs, run, tmp_path, monkeypatch):
    shutil.copytree(runs("plain"), tmp_path / "whole")
    whole = begin_prior(tmp_path / "whole", MEASURED, device="cpu").fit()
    measure, measured = SampleDistance.measure, []

    def killed(self, prior, step):
        raise Killed

    def counted(self, prior, step):
        measured.append(step)
        measure(self, prior, step)

    # In the middle of drawing, then after the first point, then as the last is drawn.
    monkeypatch.setattr(SampleDistance, "measure", killed)
    with pytest.raises(Killed):
        begin_prior(run, MEASURED, device="cpu").fit()
    assert weights(run).state["step"] == 4 and not (run / "prior" / "samples.csv").exists()

    def stop(training):
        if training.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SampleDistance, "measure", counted)
    with pytest.raises(Interrupted):
        resume_prior(run, device="cpu").fit(after_step=stop)
    assert measured == [4]
    with (run / "prior" / "samples.csv").open("a") as file:
        file.write("6,0.1,123.0\n")  # of a step that no checkpoint knows
    monkeypatch.setattr(SampleDistance, "measure", killed)
    with pytest.raises(Killed):
        resume_prior(run, device="cpu").fit()
    monkeypatch.setattr(SampleDistance, "measure", counted)
    summary = resume_prior(run, device="cpu").fit()
    assert measured == POINTS
    assert summary["samples"] == whole["samples"]
    same_checkpoints(weights(run), weights(tmp_path / "whole"))
    assert rows_of(run) == rows_of(tmp_path / "whole")


def test_damaged_samples_are_refused(pooled, run):
    begin_prior(run, MEASURED, device="cpu").fit()
    (run / "prior" / "summary.json").unlink()
    samples = run / "prior" / "samples.csv"
    samples.write_text(samples.read_text().replace("frechet_vgg16", "fid"))
    with pytest.raises(ValueError, match=r"samples.csv is damaged \('frechet_vgg16'\)"):
        resume_prior(run, device="cpu").fit()


# -- commands --------------------------------------------------------------------------------------

OPTIONS = ["--steps", "4", "--width", "4", "--layers", "2", "--batch-size", "16"]


def refused(arguments, capsys):
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mqvae: error: ")
    return err


@pytest.mark.parametrize("kind", ["plain", "groups"])
def test_samples_decode_to_the_same_images(runs, kind, tmp_path, capsys):
    shutil.copytree(runs(kind), run := tmp_path / "run")
    folder = str(run)
    assert main(["prior", folder, *OPTIONS, "--conditional"]) == 0
    assert "bits_per_code" in capsys.readouterr().out
    drawn, again, decoded = (tmp_path / name for name in ("drawn", "again", "decoded"))
    assert main(["sample", folder, "--out", str(drawn), "--count", "11", "--seed", "3"]) == 0
    assert main(["sample", folder, "--out", str(again), "--count", "11", "--seed", "3"]) == 0
    assert main(["decode", folder, str(drawn / "codes.npz"), "--out", str(decoded)]) == 0
    names = sorted(p.name for p in decoded.iterdir())
    assert names == [f"{i:02d}.png" for i in range(11)]
    assert sorted(p.name for p in drawn.iterdir()) == [*names, "codes.npz", "samples.png"]
    for name in [*names, "samples.png"]:
        assert (drawn / name).read_bytes() == (again / name).read_bytes()
    tokenizer = Tokenizer.from_run(run, device="cpu")
    images = sample_images(tokenizer, load_prior(tokenizer), 11, torch.Generator().manual_seed(3))
    assert images.min() >= 0 and images.max() <= 1
    for name, image in zip(names, images):
        assert (drawn / name).read_bytes() == (decoded / name).read_bytes()
        with Image.open(drawn / name) as picture:
            pixels = np.asarray(picture)
        assert np.array_equal(pixels, (image[0] * 255).round().byte().numpy())
    side = images.shape[-1] + 1
    with Image.open(drawn / "samples.png") as picture:
        assert picture.size == (4 * side + 1, 3 * side + 1)
    other = tmp_path / "other"
    assert main(["sample", folder, "--out", str(other), "--count", "11", "--class", "3"]) == 0
    one, two = (Codes.load(place / "codes.npz").codes for place in (drawn, other))
    assert one.shape == two.shape and (one != two).any()


@pytest.mark.parametrize(
    ("bits", "said"), [([3, 1, 1.2, 2, 2, 2], True), ([3, 2, 1, 1, 1, 1], False)]
)
def test_a_prior_that_overfits_is_told_when_it_was_best(run, monkeypatch, capsys, bits, said):
    measured = iter([*map(float, bits), 5.0])  # of validation codes, and of the test's
    monkeypatch.setattr("mqvae.prior.training.bits_of_split", lambda *_: next(measured))
    assert main([*map(str, ["prior", run, *OPTIONS])]) == 0
    out = capsys.readouterr().out
    assert ("1.000 bits a code at step 2, 2.000 at the end" in out) == said
    assert ("Try --steps 2 --overwrite" in out) == said


def test_another_tokenizer_is_refused(runs, run, tmp_path, capsys):
    begin_prior(run, TINY, device="cpu")
    shutil.copytree(runs("other"), other := tmp_path / "other")
    with pytest.raises(ValueError, match="the prior belongs to other weights than those of"):
        load_prior(Tokenizer.from_run(other, device="cpu"), run / "prior")
    shutil.copytree(run / "prior", other / "prior")
    for command in (["sample", other, "--out", tmp_path / "out"], ["prior", other, "--resume"]):
        assert "their codes mean other things" in refused(command, capsys)
    assert not (tmp_path / "out").exists()


def test_runs_that_have_no_prior_to_train_or_draw_from(runs, run, tmp_path, capsys, monkeypatch):
    assert "no such folder" in refused(["prior", tmp_path / "nothing"], capsys)
    said = refused(["prior", runs("continuous"), *OPTIONS], capsys)
    assert "without quantization: it has no codes that a prior could learn" in said
    assert not (runs("continuous") / "prior").exists()
    with monkeypatch.context() as few:
        few.setattr("mqvae.prior.settings.MOST_CODES", 2)
        assert "expected 2 at most" in refused(["prior", run, *OPTIONS], capsys)
    assert "has no prior: train one" in refused(["sample", run, "--out", tmp_path / "o"], capsys)
    assert "has no prior: train one" in refused(["prior", run, "--resume"], capsys)

    def no_image(self, output):
        raise ValueError("what a network gives in a Classification task is no image.")

    monkeypatch.setattr("mqvae.tasks.Reconstruction.images", no_image)
    said = refused(["prior", run, *OPTIONS], capsys)
    assert "gives no images that a prior could draw: what a network gives" in said
    assert not (run / "prior").exists()


def test_options_that_do_not_fit(run, tmp_path, capsys):
    for option, value, said in (
        ("--steps", 0, "steps must be 1 or more, got 0"),
        ("--lr", 0, "lr must be above 0"),
        ("--warmup", 1, "warmup must be 0 or more and less than 1"),
        ("--kernel", 2, "kernel must be an odd number of 3 or more"),
        ("--batch-size", 5000, "batch_size must be 1350 or less"),
        ("--step", 3, "there is no option --step. Did you mean"),
    ):
        assert said in refused(["prior", run, option, value], capsys)
    assert not (run / "prior").exists()
    begin_prior(run, TINY, device="cpu")
    assert "add --overwrite to replace it, or --resume" in refused(["prior", run], capsys)
    said = refused(["prior", run, "--resume", "--steps", 9, "--overwrite"], capsys)
    assert "leave out --steps --overwrite" in said
    out = ["sample", run, "--out", tmp_path / "out"]
    for option, value, said in (
        ("--count", 0, "count must be 1 or more, got 0"),
        ("--seed", -1, "--seed must lie in 0 … 4294967295, got -1"),
        ("--temperature", 0, "temperature must be above 0"),
        ("--class", 1, "is not conditioned on classes: leave out --class"),
    ):
        assert said in refused([*out, option, value], capsys)
    assert not (tmp_path / "out").exists()
    assert "exists already" in refused(["sample", run, "--out", run], capsys)
    begin_prior(run, PriorSettings(**{**vars(TINY), "conditional": True}), overwrite=True)
    assert "--class must lie in 0 … 9, got 10" in refused([*out, "--class", 10], capsys)


def test_a_damaged_prior_is_refused(run, tmp_path, capsys):
    begin_prior(run, TINY, device="cpu")
    config = run / "prior" / "config.yaml"
    text = config.read_text()
    out = ["sample", run, "--out", tmp_path / "out"]
    config.write_text(text.replace("num_codes", "codes"))
    assert "config.yaml is damaged" in refused(out, capsys)
    config.write_text(text.replace("width: 4", "width: 6"))
    assert "does not fit its config.yaml" in refused(out, capsys)
    config.write_text(text)
    (run / "prior" / "checkpoints" / "last" / "model.safetensors").write_bytes(b"0")
    assert "is damaged" in refused(out, capsys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "soon"}, "invalid literal for int"),
        ({"optimizer": {}}, "'groups'|'numbers'"),
        ({"optimizer": {"groups": [{}, {}], "numbers": {}}}, "argument 2 is longer"),
        ({"optimizer": {"groups": [{}], "numbers": {"a.b": 1}}}, "invalid literal for int"),
        ({"seconds": None}, "NoneType"),
    ],
)
def test_a_state_that_somebody_wrote_is_refused(run, capsys, change, said):
    """Its digests are right: it is what was written, but by no prior of this kind."""
    training = begin_prior(run, TINY, device="cpu")
    saved = training.run.load("last")
    training.run.save("last", dataclasses.replace(saved, state={**saved.state, **change}))
    training.run.unlock()
    text = refused(["prior", run, "--resume"], capsys)
    assert "does not fit its settings" in text and re.search(said, text)


def test_a_curve_begins_where_a_prior_was_killed_before_its_first_checkpoint(pooled, run):
    begin_prior(run, MEASURED, device="cpu").run.unlock()
    for path in (run / "prior" / "checkpoints").iterdir():
        shutil.rmtree(path)
    assert begin_prior(run, MEASURED, device="cpu").fit()["samples"]["points"]


def test_a_complete_prior_is_left_alone(run, capsys):
    assert main(["prior", str(run), *OPTIONS]) == 0
    before = (run / "prior" / "summary.json").read_bytes()
    assert main(["prior", str(run), "--resume"]) == 0
    assert "is complete: all 4 steps are done" in capsys.readouterr().out
    assert (run / "prior" / "summary.json").read_bytes() == before


def test_a_prior_says_what_its_samples_are_like(pooled, run, capsys, monkeypatch):
    given = ["--samples-every", "2", "--samples", "10"]
    assert main(["prior", str(run), *OPTIONS, *given]) == 0
    out = capsys.readouterr().out
    assert "frechet_vgg16_reconstructions" in out
    assert f"distance of samples by steps: {run / 'prior' / 'samples.csv'}" in out
    assert [step for step, _ in samples_of(run)] == [2, 4]
    monkeypatch.setattr("mqvae.metrics.frechet.FrechetVgg16", FrechetVgg16)
    shutil.rmtree(run / "prior")
    assert "`mqvae weights vgg16` fetches them" in refused(["prior", run, *given], capsys)
    said = refused(["prior", run, *given, "--distance", "fid"], capsys)
    assert "`mqvae weights inception` fetches them" in said
    for option, value, words in (
        ("--samples-every", -1, "samples_every must be 0 or more, got -1"),
        ("--samples", 1, "samples must be 2 or more, got 1"),
        ("--distance", "vgg", "distance must be fid or frechet_vgg16, got 'vgg'"),
    ):
        assert words in refused(["prior", run, option, value], capsys)
    assert not (run / "prior").exists()

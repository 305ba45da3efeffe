"""What is measured of a run, where it is written, and what the report says of it."""

import csv
import json
import math
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mqvae.cli import main
from mqvae.data import load_all
from mqvae.data.files import Reading
from mqvae.data.own_size import BySize
from mqvae.files import only_finite, read_json, restored, write_json
from mqvae.report import write_report
from mqvae.report.reading import read_run
from mqvae.runs import Run
from mqvae.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("uncharted")  # what charts draw is in test_report.py

SMALL = ["--data.side", "12", "--data.batch_size", "100", "--network.width", "4", "--steps", "3"]
SMALL += ["--trainer.accelerator", "cpu"]


def train(folder, *options):
    assert main(["train", "digits-tiny", *SMALL, *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained, tmp_path):
    """A run of this test alone."""
    return shutil.copytree(trained, tmp_path / "run")


def evaluation(run, name="test-last"):
    return json.loads((run / "evaluations" / f"{name}.json").read_text())


def measure(run, *options):
    assert main(["evaluate", str(run), *options]) == 0


def files_of(run):
    folders = (run / "evaluations", run / "samples")
    return {p: p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


# -- one file per split and checkpoint -------------------------------------------------------------


def test_each_split_and_checkpoint_has_a_file_of_its_own(run, capsys):
    before = files_of(run)
    summary = (run / "summary.json").read_bytes()
    for split, count in (("train", 1350), ("validation", 150)):
        for checkpoint in ("last", "best"):
            capsys.readouterr()
            measure(run, "--split", split, "--checkpoint", checkpoint)
            out = capsys.readouterr().out
            assert f"{count:,} {split} images of digits, checkpoint {checkpoint} (step 3)" in out
            found = evaluation(run, f"{split}-{checkpoint}")
            assert found["protocol"]["images"] == found["images"]["count"] == count
            assert (found["split"], found["checkpoint"]) == (split, checkpoint)
            with (run / found["codes"]["file"]).open() as file:
                assert sum(int(row["count"]) for row in csv.DictReader(file)) == count * 9
            for picture in found["pictures"]:
                assert f"/{split}-{checkpoint}/" in picture["file"]
    # What is known of the test images is as it was.
    after = files_of(run)
    assert {path: after[path] for path in before} == before
    assert (run / "summary.json").read_bytes() == summary


def test_train_is_what_the_run_was_trained_on(tmp_path):
    run = train(tmp_path / "run", "--data.limit", "200", "--data.validation", "30")
    measure(run, "--split", "train")
    assert evaluation(run, "train-last")["images"]["count"] == 200
    measure(run, "--split", "validation")
    assert evaluation(run, "validation-last")["images"]["count"] == 30
    assert (
        main(
            [
                "evaluate",
                str(train(tmp_path / "no", "--data.validation", "0")),
                "--split",
                "validation",
            ]
        )
        == 2
    )


def test_metrics_are_merged_one_by_one(run):
    first = evaluation(run)
    measure(run, "--metrics", "ssim")
    with_ssim = evaluation(run)
    assert set(with_ssim["figures"]) - set(first["figures"]) == {"ssim"}
    measure(run)
    again = evaluation(run)
    assert again["ssim"] == with_ssim["ssim"] and again["figures"] == with_ssim["figures"]
    # Each metric says what it was measured with.
    listed = [name for each in again["measured"] for name in each["figures"]]
    assert sorted(listed) == sorted(again["figures"])
    assert again["measured"][0]["figures"] == ["ssim"]


def test_metrics_of_other_weights_are_not_kept(run):
    measure(run, "--metrics", "ssim")
    before = evaluation(run)
    saved = Run(run).load("last")
    for tensor in saved.model.values():
        if tensor.is_floating_point():
            tensor.mul_(0.5)
    Run(run).save("last", saved)
    measure(run)
    after = evaluation(run)
    assert "ssim" not in after and "ssim" not in after["figures"]
    assert after["weights"] != before["weights"]
    assert after["weights"] == Tokenizer.from_run(run, device="cpu").model


# -- bits ------------------------------------------------------------------------------------------


def test_bits_are_those_of_the_codes_themselves(run, capsys):
    tokenizer = Tokenizer.from_run(run, device="cpu")
    codes = tokenizer.encode_images(tokenizer.find_images("test")).codes.reshape(297, -1)
    found, (images, positions) = evaluation(run), codes.shape

    def entropy(counts):
        p = counts / counts.sum()
        return -(p * np.log2(p)).sum()

    own = [np.unique(column, return_counts=True)[1] for column in codes.T]
    lacking = [(len(n) - 1) / (2 * images * math.log(2)) for n in own]
    bits = entropy(np.unique(codes, return_counts=True)[1])
    expected = {
        "nominal_bits": math.log2(tokenizer.network.quantizer.num_codes),
        "entropy": bits,
        "position_entropy": np.mean([entropy(n) + extra for n, extra in zip(own, lacking)]),
        "bits_per_pixel": bits * positions / 12**2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert all(found["figures"][name]["unit"] == "bits" for name in expected)
    measure(run)
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in expected) and "prior_bits" not in out


def test_images_of_several_sizes_have_no_bits_by_position(run, tmp_path):
    measure(run, "--data", str(pictures(tmp_path / "in", [(12, 12), (24, 12)])), "--own-size")
    (found,) = (run / "evaluations").glob("in-*.json")
    content = json.loads(found.read_text())
    assert "position_entropy" not in content
    # 9 positions of 144 pixels and 18 of 288.
    assert content["bits_per_pixel"] == pytest.approx(content["entropy"] / 16)


def test_bits_under_the_prior_are_those_of_its_own_summary(run, capsys):
    small = ["--width", "4", "--layers", "1", "--batch-size", "50"]
    assert main(["prior", str(run), "--steps", "2", *small, "--accelerator", "cpu"]) == 0
    measure(run)
    found = evaluation(run)
    summary = read_json(run / "prior" / "summary.json")
    assert found["prior_bits"] == pytest.approx(summary["bits_per_code"], rel=1e-5)
    assert "a PixelCNN of 2 steps" in found["figures"]["prior_bits"]["protocol"]
    # Of other images, of which a class says nothing, and of other weights there are none.
    assert "prior_bits" in capsys.readouterr().out
    saved = Run(run).load("last")
    for tensor in saved.model.values():
        if tensor.is_floating_point():
            tensor.mul_(0.5)
    Run(run).save("last", saved)
    measure(run)
    said = capsys.readouterr()
    assert "no bits under the prior: the prior belongs to other weights" in said.err
    assert "prior_bits" not in evaluation(run) and "prior_bits" not in said.out


def test_a_prior_in_training_is_not_measured_under(run, capsys):
    small = ["--width", "4", "--layers", "1", "--batch-size", "50"]
    assert main(["prior", str(run), "--steps", "1", *small, "--accelerator", "cpu"]) == 0
    (run / "prior" / "summary.json").unlink()
    measure(run)
    assert "is not trained to its end: `mqvae prior" in capsys.readouterr().err
    assert "prior_bits" not in evaluation(run)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weights": 3}', '{"figures": {}}'])
def test_a_damaged_file_is_begun_afresh(run, content):
    expected = evaluation(run)["mse"]
    (run / "evaluations" / "test-last.json").write_text(content)
    measure(run)
    assert evaluation(run)["mse"] == pytest.approx(expected, rel=1e-6)


# -- other images, and images that lie elsewhere ---------------------------------------------------


def pictures(folder, sizes, *, seed=0):
    """A folder of grey PNG files."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for number, (width, height) in enumerate(sizes):
        pixels = draw.integers(0, 256, (height, width), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


SIZES = [(12, 12), (20, 30), (13, 12), (20, 30), (9, 25)]


@pytest.fixture
def others(tmp_path):
    return pictures(tmp_path / "pics 1", SIZES)


def the_other(run):
    (file,) = (run / "evaluations").glob("pics_1-*.json")
    return json.loads(file.read_text())


def test_other_images_are_measured_as_the_run_takes_its_own(run, others, tmp_path, capsys):
    before = files_of(run)
    measure(run, "--data", str(others))
    assert "5 images of " in capsys.readouterr().out
    found = the_other(run)
    assert found["images"]["count"] == found["protocol"]["images"] == 5
    assert (found["data"], found["split"]) == ("pics_1", "files")
    tokenizer = Tokenizer.from_run(run, device="cpu")
    x = tokenizer.find_images(str(others), fit=True).take(torch.arange(5))[0] / 255
    assert x.shape == (5, 1, 12, 12)
    with torch.no_grad():
        expected = (tokenizer.network(x).output - x).square().mean().item()
    assert found["mse"] == pytest.approx(expected, rel=1e-5)
    after = files_of(run)
    assert {path: after[path] for path in before} == before
    page = write_report([run], tmp_path / "r.html").read_text()
    assert "5 images of pics_1" in page and "Quality on 297 test images" in page
    # Other images of that name have another file.
    shutil.rmtree(others)
    pictures(others, SIZES[1:], seed=1)
    measure(run, "--data", str(others))
    assert len(list((run / "evaluations").glob("pics_1-*.json"))) == 2


def test_other_images_at_their_own_sizes_are_filled_up_as_encode_does(run, others):
    measure(run, "--data", str(others), "--own-size")
    found = the_other(run)
    assert found["data"] == "pics_1-own_size" and found["images"]["count"] == 5
    tokenizer = Tokenizer.from_run(run, device="cpu")
    errors, codes = [], 0
    for file in sorted(others.iterdir()):
        x = torch.from_numpy(np.array(Image.open(file))) / 255
        encoded = tokenizer.encode([file])
        codes += (encoded if torch.is_tensor(encoded) else encoded.codes).numel()
        errors.append((tokenizer.decode(encoded)[0, 0] - x).square().flatten())
    assert found["mse"] == pytest.approx(torch.cat(errors).mean().item(), rel=1e-4)
    with (run / found["codes"]["file"]).open() as file:
        assert sum(int(row["count"]) for row in csv.DictReader(file)) == codes
    strips = [p for p in found["pictures"] if p["kind"] == "strip"]
    with Image.open(run / strips[0]["file"]) as strip:
        assert strip.size == (2 * 20 + 2, 30)  # the size that most of them have


def test_images_of_a_folder_upright_at_their_own_sizes(tmp_path):
    folder = pictures(tmp_path / "p", [(8, 5), (5, 8)])
    with Image.open(folder / "000.png") as image:
        exif = image.getexif()
        exif[0x0112] = 6  # on its side
        image.save(folder / "002.jpg", exif=exif)
    images = BySize(load_all(folder, Reading(4, 1, False)), 1)
    assert [part.shape for part in images.parts] == [(1, 8, 5), (1, 5, 8)]
    assert [list(part.names) for part in images.parts] == [["001.png", "002.jpg"], ["000.png"]]
    pixels, labels = images.parts[0].take([0])
    assert np.array_equal(pixels[0, 0], Image.open(folder / "001.png")) and labels.tolist() == [0]
    assert images.shape == (1, 5, 5) and len(images) == 3


def test_the_runs_own_images_by_their_name_are_its_own(run):
    before = evaluation(run)
    measure(run, "--data", "digits", "--metrics", "ssim")
    after = evaluation(run)
    assert "ssim" in after and after["images"] == before["images"]
    assert len(list((run / "evaluations").glob("*.json"))) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--own-size"], "--own-size is of other images"),
        (["--data", "nowhere"], "there is no 'nowhere'"),
        (["--data", "digist"], "Did you mean 'digits'?"),
        (["--data", "digits", "--own-size"], "no files: leave --own-size out"),
    ],
)
def test_other_images_that_there_are_none_of(run, options, said, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_run_is_measured_where_its_images_are_now(tmp_path, capsys):
    photos = pictures(tmp_path / "there" / "photos", [(12, 12)] * 80)
    options = ["--data.name", str(photos), "--data.batch_size", "20", "--data.validation", "8"]
    run = train(tmp_path / "run", *options)
    first = evaluation(run)
    moved = tmp_path / "elsewhere" / "photos"
    shutil.move(photos.parent, moved.parent)
    assert main(["evaluate", str(run)]) == 2
    own = ["--data", moved, "--split", "test"]
    for options in (["--root", moved], ["--root", moved.parent], own):
        measure(run, *map(str, options), "--metrics", "ssim")
        found = evaluation(run)
        assert found["images"] == first["images"] and found["mse"] == pytest.approx(first["mse"])
    assert len(list((run / "evaluations").glob("*.json"))) == 1
    capsys.readouterr()
    assert main(["evaluate", str(run), "--root", str(tmp_path / "nothing")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    for file in sorted(moved.iterdir())[:40]:
        file.unlink()
    assert main(["evaluate", str(run), "--root", str(moved)]) == 2
    assert "the images are not those that" in capsys.readouterr().err
    measure(run, "--root", str(moved), "--accept-changed-data")
    found = evaluation(run)
    assert "ssim" not in found and "gone" in found["accepted_changes"]["test"]


# -- what the report says --------------------------------------------------------------------------


def test_the_report_shows_the_test_images_of_the_last_checkpoint(run, tmp_path):
    measure(run, "--split", "train", "--metrics", "ssim")
    found = read_run(run)
    assert found.number("mse") == evaluation(run)["mse"] != evaluation(run, "train-last")["mse"]
    assert "ssim" not in found.figures
    page = write_report([run], tmp_path / "r.html").read_text()
    assert "Quality on 297 test images, checkpoint last, step 3, and what it cost." in page
    assert "codes used over 297 test images" in page
    assert "Measured besides: other splits, checkpoints and images." in page
    assert "1,350 train images" in page


def test_the_report_of_a_run_in_training_says_at_which_step_it_was_measured(run, tmp_path):
    (run / "summary.json").unlink()
    rows = (run / "metrics.csv").read_text().splitlines()
    last = ["9", *rows[-1].split(",")[1:]]
    (run / "metrics.csv").write_text("\n".join([*rows, ",".join(last)]) + "\n")
    page = write_report([run], tmp_path / "r.html").read_text()
    assert "was measured at step 3; it has made 9 steps." in page


def test_the_report_shows_what_a_quantizer_adds_to_the_loss(run, tmp_path):
    assert "own loss against" not in write_report([run], tmp_path / "r.html").read_text()
    gumbel = train(
        tmp_path / "gumbel",
        "--update",
        "Joint",
        "--quantizer",
        "GumbelQuantizer",
        "--quantizer.num_codes",
        "8",
        "--quantizer.dim",
        "4",
    )
    found = read_run(gumbel).column("auxiliary")
    assert len(found) and np.isfinite(found).all()
    page = write_report([run, gumbel], tmp_path / "r.html").read_text()
    assert "Quantizer&#39;s own loss against steps" in page


# -- a run in training -----------------------------------------------------------------------------


def test_a_run_that_is_written_meanwhile_is_read_as_it_was_at_one_moment(run, tmp_path):
    """Checkpoints are replaced in another thread; what is measured is of one of them, whole."""
    (run / "summary.json").unlink()
    first = Run(run).load("last")
    kinds = []
    for factor, step in ((1.0, 3), (0.5, 6)):
        model = {k: v * factor if v.is_floating_point() else v for k, v in first.model.items()}
        kinds.append(replace(first, model=model, state={**first.state, "step": step}))
    expected = {}
    for kind in kinds:
        Run(run).save("last", kind)
        measure(run)
        found = evaluation(run)
        expected[found["weights"]] = (found["step"], found["mse"])
    assert len(expected) == 2
    ends, failures, saved = threading.Event(), [], []

    def trains():
        writer = Run(run)
        writer.start_metrics(after_step=3)
        try:
            while not ends.wait(0.03):
                writer.save("last", kinds[len(saved) % 2])
                writer.log({"step": 10 + len(saved), "seconds": 1.0, "task": 0.5})
                saved.append(None)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=trains)
    thread.start()
    try:
        while len(saved) < 2 and not failures:  # a disk may take longer than measuring does
            measure(run)
            found = evaluation(run)
            step, mse = expected[found["weights"]]
            assert (found["step"], found["mse"]) == (step, pytest.approx(mse, rel=1e-6))
            page = write_report([run], tmp_path / "r.html").read_text()
            assert f"checkpoint last, step {step}" in page
    finally:
        ends.set()
        thread.join()
    assert not failures


# -- numbers that are not finite -------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_null_and_said():
    content = {"a": math.nan, "b/c": [1.0, {"~": -math.inf}], "d": {"e": 2}, "f": None}
    plain = only_finite(content)
    text = json.dumps(plain, allow_nan=False)
    assert plain["not_finite"] == {"/a": "nan", "/b~1c/1/~0": "-inf"}
    back = restored(json.loads(text))
    assert math.isnan(back.pop("a")) and back == {k: v for k, v in content.items() if k != "a"}
    assert only_finite({"a": 1}) == {"a": 1}


def test_what_is_not_a_number_reaches_no_file_unremarked(run, tmp_path, capsys):
    saved = Run(run).load("last")
    for name, tensor in saved.model.items():
        if name.startswith("decoder") and tensor.is_floating_point():
            tensor.fill_(1e30)
    Run(run).save("last", saved)
    capsys.readouterr()
    measure(run)
    err = capsys.readouterr().err
    assert "mqvae: warning: mse is" in err and "on the 297 test images" in err
    text = (run / "evaluations" / "test-last.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    content = json.loads(text)
    assert content["mse"] is None and content["not_finite"]["/mse"] in ("inf", "nan")
    assert not math.isfinite(read_json(run / "evaluations" / "test-last.json")["mse"])
    page = write_report([run], tmp_path / "r.html").read_text()
    assert f"MSE is {content['not_finite']['/mse']}" in page
    write_json(run / "summary.json", {"a": math.inf})
    assert "Infinity" not in (run / "summary.json").read_text()


# -- many codes ------------------------------------------------------------------------------------


def test_no_array_of_as_many_numbers_as_codes(tmp_path):
    """Of 2^32 there would be no memory for a first step, nor a disk for a table."""
    levels = [4] * 16
    options = ["--update", "Joint", "--quantizer", "FiniteScalarQuantizer"]
    options += ["--quantizer.levels", str(levels)]
    run = train(tmp_path / "run", *options)
    assert sum(p.stat().st_size for p in run.rglob("*") if p.is_file()) < 5e6
    summary = json.loads((run / "summary.json").read_text())
    codes = summary["codes"]
    assert codes["num_codes"] == 4 ** len(levels)
    assert summary["usage"] == codes["used"] / codes["num_codes"]
    assert 1 <= summary["perplexity"] <= codes["used"]
    (group,) = read_run(run).counts
    assert len(group.codes) == codes["used"] and group.total == codes["num_codes"]
    assert group.counts.sum() == 297 * 9
    page = write_report([run], tmp_path / "r.html").read_text()
    assert f"{codes['used']:,} of {codes['num_codes']:,} codes used" in page
    assert "could not be decoded" not in page
    tokenizer = Tokenizer.from_run(run, device="cpu")
    file = tokenizer.encode_images(tokenizer.find_images("test"))
    file.save(tmp_path / "codes.npz")
    back = type(file).load(tmp_path / "codes.npz")
    assert np.array_equal(back.codes, file.codes)
    assert main(["train", "--resume", str(run)]) == 0


def test_the_first_codes_of_a_huge_codebook():
    from mqvae.runs.results import Counts

    counts = Counts(np.array([1, 4, 2**40]), np.array([2, 5, 5]), 2**62)
    assert counts.first(2).tolist() == [4, 2**40]
    assert counts.first(6).tolist() == [4, 2**40, 1, 0, 2, 3]
    assert [counts[code] for code in (0, 1, 4, 5, 2**40, 2**61)] == [0, 2, 5, 0, 5, 0]


def work(rank, run):
    return main(["evaluate", run, "--devices", "2", "--accelerator", "cpu"])


def test_two_processes_find_the_bits_of_one(pair, run):
    # All images are one batch: the second process has none, and waits for the first all the same.
    before = evaluation(run)
    assert pair(work, str(run)) == [0, 0]
    after = evaluation(run)
    assert after["device"].startswith("2 × cpu")
    names = ("nominal_bits", "entropy", "position_entropy", "bits_per_pixel")
    assert {name: after[name] for name in names} == pytest.approx({n: before[n] for n in names})

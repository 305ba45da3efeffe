"""What is measured of a run, where it is written, and what the report says of it."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from mqvae.cli import main
from mqvae.finite import only_finite, restored
from mqvae.report import write_report
from mqvae.report.run import read_run
from mqvae.runs import Run, read_json, write_json
from mqvae.tokenizer import Tokenizer

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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weights": 3}', '{"figures": {}}'])
def test_a_damaged_file_is_begun_afresh(run, content):
    expected = evaluation(run)["mse"]
    (run / "evaluations" / "test-last.json").write_text(content)
    measure(run)
    assert evaluation(run)["mse"] == pytest.approx(expected, rel=1e-6)


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
    assert "was measured at step 3; it has made 9 updates." in page


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


@pytest.mark.parametrize("levels", [[4] * 12, [4] * 16])
def test_no_array_of_as_many_numbers_as_codes(levels, tmp_path):
    """Of 2^24 codes: a table of 207 MB and a checkpoint of 135; of 2^32 not even a first step."""
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
    from mqvae.report.files import Counts

    counts = Counts(np.array([1, 4, 2**40]), np.array([2, 5, 5]), 2**62)
    assert counts.first(2).tolist() == [4, 2**40]
    assert counts.first(6).tolist() == [4, 2**40, 1, 0, 2, 3]
    assert [counts[code] for code in (0, 1, 4, 5, 2**40, 2**61)] == [0, 2, 5, 0, 5, 0]

"""What a report shows of a run's weights: codewords decoded, codes over images, kept in the run."""

from __future__ import annotations

import os
import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL

import mqvae.report.codebook as module
from mqvae.cli import main
from mqvae.report import write_report
from mqvae.report.codebook import FAINT, Decoded, decoded
from mqvae.report.pictures import codebooks, samples
from mqvae.report.reading import read_run
from mqvae.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("uncharted")  # what charts draw is in test_report.py

STAGE = {"class_path": "mqvae.VectorQuantizer", "init_args": {"num_codes": 12, "dim": 4}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {"quantizer": {"init_args": {"groups": 2}}},
    "shared": {"quantizer": {"init_args": {"groups": 2, "shared_codebook": True}}},
    "residual": {
        "quantizer": {
            "class_path": "mqvae.ResidualQuantizer",
            "init_args": {"stages": [STAGE, STAGE]},
        }
    },
    "gumbel": {
        "quantizer": {
            "class_path": "mqvae.GumbelQuantizer",
            "init_args": {"num_codes": 20, "dim": 4},
        }
    },
    "levels": {
        "quantizer": {
            "class_path": "mqvae.FiniteScalarQuantizer",
            "init_args": {"levels": [5, 4]},
        }
    },
    "colour": {"data": {"channels": 3, "side": 12}},
    "none": {"quantizer": {"class_path": "mqvae.NoQuantizer", "init_args": {"dim": 4}}},
    "classes": {
        "network": {"class_path": "mqvae.ResNet18", "init_args": {"base_width": 4}},
        "task": {"class_path": "mqvae.Classification"},
    },
}


@pytest.fixture(scope="module")
def runs(trained):
    return lambda kind: trained(kind, SMALL, KINDS[kind])


SHOWN = {"plain": 20, "groups": 40, "shared": 40, "residual": 24, "gumbel": 20, "levels": 20}


@pytest.mark.parametrize("kind", [*SHOWN, "colour"])
def test_every_kind_of_codebook_has_pictures(runs, kind):
    found = decoded(read_run(runs(kind)))
    assert found.codewords is not None, found.words
    assert found.codes is not None
    opaque = (found.codewords[..., -1] > 0).sum()
    assert opaque == 8 * 8 * SHOWN.get(kind, 20)
    assert found.codewords.shape[-1] == (4 if kind == "colour" else 2)
    assert ("in each group" in found.words) == (kind in ("groups", "shared", "residual"))
    assert found.different >= (1 if kind == "levels" else 2)


def test_a_codeword_is_what_the_decoder_makes_of_a_map_of_it(runs):
    run = read_run(runs("plain"))
    found = decoded(run)
    tokenizer = Tokenizer.from_run(run.path, device="cpu")
    order = run.counts[0].first(20)
    chosen = [run.counts[0][code] for code in order]
    assert sorted(order) == list(range(20)) and chosen == sorted(chosen, reverse=True)
    for place in (0, 7, 19):
        code = int(order[place])
        image = tokenizer.decode(torch.full((1, *tokenizer.code_shape), code)).clamp(0, 1)
        expected = (255 * image[0, 0]).round().byte().numpy()  # two codes a side: all of it
        top, left = 9 * (place // 5), 9 * (place % 5)
        shown = found.codewords[top : top + 8, left : left + 8]
        assert np.abs(shown[..., 0].astype(int) - expected).max() <= 1
        used = run.counts[0][code] > 0
        assert (shown[..., 1] == (255 if used else FAINT)).all()


def test_equal_codes_have_equal_colours_and_near_ones_near_colours(runs):
    run = read_run(runs("plain"))
    strip = decoded(run).codes
    tokenizer = Tokenizer.from_run(run.path, device="cpu")
    originals = samples([run], [""], [Decoded("")]).rows[0][0].strip.tiles
    codes = tokenizer.encode(originals[..., :1]).numpy()  # (N, 2, 2)
    colours = strip.tiles[:, ::4, ::4]
    assert strip.tiles.shape == (*originals.shape[:3], 3)
    for code in np.unique(codes):
        assert len(np.unique(colours[codes == code], axis=0)) == 1
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 2


def test_the_worst_images_are_shown_with_what_became_of_them(runs):
    run = read_run(runs("plain"))
    worst, became = list(decoded(run).further.values())[:2]
    assert "The 5 worst of 297 test images" in decoded(run).further
    errors = np.square(worst.tiles / 255 - became.tiles / 255).mean((1, 2, 3))
    # By bytes: images of nearly the same error may change places.
    assert (np.diff(errors) < 1e-3).all()
    everything = run.number("mse")
    assert len(errors) == 5 and errors.min() > everything


def test_samples_of_a_prior_are_shown(runs, tmp_path):
    shutil.copytree(runs("plain"), tmp_path / "run")
    assert "Samples of the prior" not in decoded(read_run(tmp_path / "run")).further
    small = ["--steps", "1", "--width", "8", "--layers", "1", "--batch-size", "8"]
    assert main(["prior", str(tmp_path / "run"), *small]) == 0
    strip = decoded(read_run(tmp_path / "run")).further["Samples of the prior"]
    assert strip.tiles.shape == (8, 8, 8, 3)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("none", "does not quantize"), ("classes", "cannot be shown.*Classification")],
)
def test_a_run_without_a_codebook_to_show_says_so(runs, kind, words, tmp_path):
    page = write_report([runs("plain"), runs(kind)], tmp_path / "r.html").read_text()
    assert re.search(f"<li>small \\({kind}\\): .*{words}", page)
    assert page.count('class="codebook"') == 1


def test_pictures_are_decoded_once_until_the_run_changes(runs, tmp_path, monkeypatch):
    run = shutil.copytree(runs("plain"), tmp_path / "run")
    first = write_report([run], tmp_path / "a.html").read_bytes()
    monkeypatch.setattr(module, "_decode", None)
    assert write_report([run], tmp_path / "b.html").read_bytes() == first
    file = run / "evaluations" / "test-last-code_counts.csv"
    file.write_text(file.read_text() + "\n")
    assert "could not be decoded" in decoded(read_run(run)).words  # it was tried again


def test_a_run_that_cannot_be_written_to_has_its_pictures(runs, monkeypatch):
    run = runs("groups")
    monkeypatch.setattr(module, "_FOUND", {})

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    assert decoded(read_run(run)).codewords is not None
    assert not list(run.glob("*codebook*"))


def test_a_large_codebook_is_shown_in_part(runs, monkeypatch):
    monkeypatch.setattr(module, "MOST", 64)
    monkeypatch.setattr(module, "_FOUND", {})
    assert decoded(read_run(runs("plain"))).words.startswith("20 codewords, the most used first")
    tokenizer = Tokenizer.from_run(runs("plain"), device="cpu")
    found = module._codewords(tokenizer, [])
    assert "in the order of their numbers" in found.words
    assert found.codewords[..., 1].min() in (0, 255) and found.chosen is None


@pytest.mark.parametrize("kind", ["plain", "groups"])
def test_positions_of_images_know_their_codeword_in_the_picture(runs, kind):
    run = read_run(runs(kind))
    found = decoded(run)
    tokenizer = Tokenizer.from_run(run.path, device="cpu")
    originals = samples([run], [""], [Decoded("")]).rows[0][0].strip.tiles
    codes = tokenizer.encode(originals[..., :1]).numpy().reshape(found.places.shape)
    groups, shown = found.order.shape
    for group in range(groups):
        own = found.places[..., group]
        assert (own // shown == group).all()
        assert (found.order[group][own % shown] == codes[..., group]).all()
    assert (found.chosen == [c.of(o) for c, o in zip(run.counts, found.order, strict=True)]).all()
    assert (np.diff(found.chosen) <= 0).all()
    assert (module._places(codes, found.order[:, :1]) >= -1).all()


def test_damage_is_a_sentence_and_the_rest_is_there(runs, tmp_path):
    run = shutil.copytree(runs("plain"), tmp_path / "run")
    weights = run / "checkpoints" / "last" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    # The one before it is whole, and not what was measured.
    words = r"could not be decoded: the checkpoint, of step \d+, has other weights than those"
    assert re.match(words, decoded(read_run(run)).words)
    before = run / "checkpoints" / "last.previous" / "model.safetensors"
    before.write_bytes(before.read_bytes()[:-8])
    page = write_report([run], tmp_path / "r.html").read_text()
    assert "small: could not be decoded: the checkpoint" in page
    assert "Originals and reconstructions" in page
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint" in decoded(read_run(run)).words
    (run / "summary.json").unlink()
    assert decoded(read_run(run)).words == "decoded when the run has finished."


def test_runs_of_one_reason_share_a_sentence(runs):
    run = read_run(runs("plain"))
    found = codebooks([run, run], [Decoded("does not."), Decoded("does not.")])
    assert found.missing == ["small and small: does not."]
    assert not found.shown

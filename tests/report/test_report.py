"""The report: what its tables say, that it stands alone, and what it does with odd runs."""

from __future__ import annotations

import base64
import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image

import mqvae
from mqvae.report import write_report
from mqvae.report.charts import envelope, plain, smooth, spans_decade, thin
from mqvae.report.codebook import Decoded
from mqvae.report.pictures import ERRORS, samples
from mqvae.report.reading import read_run
from mqvae.report.strips import BUDGET, GAP, Strip, encode, read_strip
from mqvae.report.words import aligned, dataset_title

HEADER = (
    "step,seconds,task,commitment,codebook,perplexity,usage,"
    "network_lr,codebook_lr,direct_norm,indirect_norm,cosine"
)
META = {
    "class_path": "mqvae.core.rules.Meta",
    "init_args": {
        "xi": 1.0,
        "hypergradient": {"class_path": "mqvae.core.hypergradients.FiniteDifference"},
    },
}
FIGURES = {
    "mse": {
        "title": "MSE",
        "better": "lower",
        "protocol": "mean over all numbers",
        "unit": "",
        "scale": 1e-3,
    },
    "psnr": {
        "title": "PSNR",
        "better": "higher",
        "protocol": "mean over images",
        "unit": "dB",
        "scale": 1.0,
    },
    "perplexity": {
        "title": "Perplexity",
        "better": "higher",
        "protocol": "codes in effective use",
        "unit": "",
        "scale": 1.0,
    },
    "usage": {
        "title": "Usage",
        "better": "higher",
        "protocol": "share of codes chosen at least once",
        "unit": "%",
        "scale": 0.01,
    },
    "gradient_gap": {
        "title": "Gradient gap",
        "better": "lower",
        "protocol": "distance of two gradients",
        "unit": "",
        "scale": 1e-5,
    },
}
PICTURES = [
    {"kind": "strip", "file": "samples/originals.png", "title": "Originals", "reference": True},
    {
        "kind": "strip",
        "file": "samples/reconstructions.png",
        "title": "Reconstructions",
        "reference": False,
    },
]
without_charts = pytest.mark.usefixtures("uncharted")
JOINT = {"class_path": "mqvae.core.rules.Joint", "init_args": {}}


def strip(tiles: np.ndarray) -> Image.Image:
    """Tiles (N, S, S[, 3]) as a trainer writes them: side by side, white between them."""
    count, side = tiles.shape[:2]
    sheet = np.full((side, count * (side + GAP) - GAP, *tiles.shape[3:]), 255, np.uint8)
    for index, tile in enumerate(tiles):
        sheet[:, index * (side + GAP) : index * (side + GAP) + side] = tile
    return Image.fromarray(sheet)


def make_run(
    folder: Path,
    name: str = "VQ-VAE",
    *,
    update: dict[str, Any] = JOINT,
    codebook_lr: float = 3e-4,
    data: str = "fashion-mnist",
    rows: int = 120,
    summary: dict[str, Any] | None = None,
    finished: bool = True,
    tiles: np.ndarray | None = None,
) -> Path:
    """A run folder with all its files, shaped like a trainer's."""
    rng = np.random.default_rng(len(name))
    (folder / "samples").mkdir(parents=True)
    config = {
        "name": name,
        "steps": 10 * rows,
        "seed": 0,
        "data": {"name": data, "root": None, "side": 28, "channels": 1, "batch_size": 64},
        "update": update,
        "optimizer": {"network_lr": 3e-4, "codebook_lr": codebook_lr, "warmup": 0.1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = [HEADER]
    for row in range(1, rows + 1):
        loss = (0.005 + 0.3 * np.exp(-row / 10)) * np.exp(rng.normal(0, 0.05))
        dynamics = f"{0.1 / row:.4g},{0.03 / row:.4g},0.25" if update is META else ",,"
        lines.append(
            f"{10 * row},{0.4 * row:.2f},{loss:.5g},0.01,0.02,{row},0.1,3e-4,6e-2,{dynamics}"
        )
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    counts = rng.multinomial(1000, np.r_[np.full(16, 1 / 16), np.zeros(48)])
    codes = [f"0,{code},{count}" for code, count in enumerate(counts)]
    (folder / "code_counts.csv").write_text("\n".join(["group,code,count", *codes]) + "\n")
    if finished:
        figures = {
            "mse": 8e-3,
            "psnr": 21.0,
            "perplexity": 80.0,
            "usage": 0.25,
            "gradient_gap": 18e-5,
            "steps": 10 * rows,
            "wall_seconds": 192.0,
            "seconds_per_step": 0.040,
            "device": "cpu, 2 threads",
            "versions": {"mqvae": "0.1.0", "torch": "2.9.0"},
            "protocol": {"split": "test", "images": 10000, "batch_size": 512},
            "dataset": data,
            "source": "a package of the distribution",
            "parameters": 412737,
            "rule": "some rule",
            "figures": FIGURES,
            "pictures": PICTURES,
        }
        (folder / "summary.json").write_text(json.dumps(figures | (summary or {})))
    if tiles is None:
        tiles = np.random.default_rng(0).integers(0, 256, (16, 28, 28), np.uint8)
    strip(tiles).save(folder / "samples" / "originals.png")
    strip(255 - tiles).save(folder / "samples" / "reconstructions.png")
    return folder


class Page(HTMLParser):
    """Tables by caption, rows of cell texts, attributes; fails on a tag that does not close."""

    VOID = frozenset({"meta", "img", "input", "br", "wbr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.best: list[str] = []
        self.text = ""
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if attributes.get("class") == "best":
            self.best.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> outside SVG"
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data
        if "caption" in self.open:
            self._caption += data
        if "td" in self.open or "th" in self.open:
            self._rows[-1][-1] += data
        if self.open[-1:] == ["strong"] and "td" in self.open:
            self.best[-1] += data

    def table(self, start: str) -> list[dict[str, str]]:
        """Rows of the table whose caption starts so, cells by column heading."""
        head, *rows = next(rows for name, rows in self.tables.items() if name.startswith(start))
        titles = [re.split(r" [↓↑×%]| ms| dB", " ".join(title.split()))[0] for title in head]
        cells = [[" ".join(cell.split()) for cell in row] for row in rows]
        return [dict(zip(titles, row, strict=True)) for row in cells]


def read(runs: list[Path], out: Path, **arguments: Any) -> Page:
    return Page(write_report(runs, out, **arguments).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    fast = {"mse": 5.1e-3, "psnr": 22.92, "perplexity": 191.2, "gradient_gap": 10.4e-5}
    meta = {"mse": 6.0e-3, "perplexity": 115.0, "gradient_gap": 9.9e-5, "seconds_per_step": 0.1}
    return [
        make_run(root / "joint", "VQ-VAE (one AdamW)"),
        make_run(root / "fast", "VQ-VAE, fast codes", codebook_lr=6e-2, summary=fast),
        make_run(root / "meta", "MQ-VAE", update=META, codebook_lr=6e-2, summary=meta),
    ]


@pytest.fixture(scope="module")
def page(three: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read(three, tmp_path_factory.mktemp("page") / "report.html")


def test_a_folder_called_as_a_data_set_is_a_folder():
    assert dataset_title("photos") == "photographs"
    assert dataset_title("/home/somebody/photos") == "photos"
    assert dataset_title("~/cifar10/") == "cifar10"
    assert dataset_title(None) == "an unnamed data set"


def test_results_hold_every_figure(page: Page) -> None:
    rows = page.table("Quality")
    assert [row["Run"] for row in rows] == ["VQ-VAE (one AdamW)", "VQ-VAE, fast codes", "MQ-VAE"]
    assert [row["Update rule"] for row in rows] == [
        "Joint",
        "Joint",
        "Meta FiniteDifference, ξ = 1",
    ]
    assert [row["MSE"] for row in rows] == ["8.00", "5.10", "6.00"]
    assert [row["PSNR"] for row in rows] == ["21.00", "22.92", "21.00"]
    assert [row["Perplexity"] for row in rows] == ["80.0", "191.2", "115.0"]
    assert [row["Usage"] for row in rows] == ["25.0", "25.0", "25.0"]
    assert [row["Gradient gap"] for row in rows] == ["18.00", "10.40", "9.90"]
    assert [row["Cost of a step"] for row in rows] == ["40.0 1.00×", "40.0 1.00×", "100.0 2.50×"]
    assert [row["Training time"] for row in rows] == ["3 min 12 s"] * 3
    assert [row["Steps"] for row in rows] == ["1,200"] * 3


def test_best_follows_the_direction_and_skips_columns_without_a_winner(page: Page) -> None:
    # MSE, PSNR and perplexity are the second run's, the gap is the third's, usage is nobody's.
    assert page.best == ["5.10", "22.92", "191.2", "9.90"]


@without_charts
def test_words_compare_to_the_first_run_for_better_and_worse(three: list[Path], tmp_path: Path):
    text = read([three[1], three[0], three[2]], tmp_path / "r.html").text
    assert "VQ-VAE (one AdamW): MSE 56.9% higher (worse), at 1.00 times the cost of a step." in text
    assert "MQ-VAE: MSE 17.6% higher (worse), at 2.50 times the cost of a step." in text


@without_charts
def test_lead_and_title_name_data_steps_and_images(page: Page, tmp_path: Path) -> None:
    assert (
        "Three networks trained for 1,200 steps each on Fashion-MNIST and measured on the same "
        "10,000 test images." in page.text
    )
    digits = read([make_run(tmp_path / "digits", data="digits")], tmp_path / "r.html")
    assert "<title>Vector-quantized networks on scikit-learn&#39;s 8×8 digits" in digits.source
    assert "One network trained for 1,200 steps on scikit-learn's 8×8 digits" in digits.text


def test_settings_show_what_differs_and_fold_what_is_shared(page: Page) -> None:
    differing = {row.pop("Setting"): row for row in page.table("What differs")}
    assert list(differing["optimizer.codebook_lr"].values()) == ["0.0003", "0.06", "0.06"]
    assert list(differing["update.xi"].values()) == ["-", "-", "1"]
    shared = {row["Setting"]: row["Value"] for row in page.table("Shared")}
    assert shared["data.side"] == "28"
    assert shared["data.root"] == "none"
    assert not shared.keys() & differing.keys()


@without_charts
def test_small_print_is_enough_to_do_it_again(three: list[Path]) -> None:
    text = read(three, three[0].parent / "report.html").text
    assert "split = test, images = 10000, batch_size = 512" in text
    assert "torch = 2.9.0" in text
    assert "cpu, 2 threads" in text
    assert "412,737" in text
    assert "mqvae evaluate joint" in text
    assert "mqvae report joint fast meta --out report.html" in text


def test_page_stands_alone(page: Page) -> None:
    assert page.source.startswith("<!DOCTYPE html>")
    assert "http:" not in page.source and "https:" not in page.source
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    for tag, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith(("#", "data:text/csv")), tag
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", page.source))
    assert "@import" not in page.source
    assert len(page.source.encode()) < 1_000_000


def test_ids_are_unique_and_every_reference_has_its_target(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert ids
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'(?:href="|url\()#([^")]+)', page.source))
    targets |= {name for _, each in page.tags for key, name in each.items() if key == "for"}
    targets |= {each["aria-describedby"] for _, each in page.tags if "aria-describedby" in each}
    script = page.source.partition("<script>")[2]
    assert targets | {name for name in ids if f'"#{name}"' in script} == set(ids)


def test_figures_take_colours_from_the_page_and_say_what_they_show(page: Page) -> None:
    charts = [attributes for tag, attributes in page.tags if attributes.get("class") == "chart"]
    assert len(charts) == 8 + 6 + 1  # curves, gradient dynamics, code usage
    assert all(chart["aria-label"] for chart in charts)
    body = page.source.partition("</style>")[2].partition("<script>")[0]
    assert not re.search(r"#[0-9a-f]{6}", body), "a fixed colour is unreadable in light or in dark"
    assert {"var(--run-0)", "var(--run-1)", "var(--run-2)"} <= set(
        re.findall(r"var\([^)]*\)", body)
    )
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 7  # originals once, three reconstructions, and their errors
    assert all(image["alt"] for image in images)
    assert "16 of 64 codes used over 10,000 test images, 48 not, perplexity 1" in page.text


@without_charts
def test_no_gradient_dynamics_without_a_hypergradient(
    three: list[Path], page: Page, tmp_path: Path
):
    assert "Gradient dynamics" in page.text
    assert "Gradient dynamics" not in read(three[:2], tmp_path / "r.html").text


def test_same_runs_give_the_same_bytes(three: list[Path], tmp_path: Path) -> None:
    first = write_report(three, tmp_path / "a.html").read_bytes()
    assert write_report(three, tmp_path / "b.html").read_bytes() == first


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    name = "<script>alert('x')</script> & \"$x_1$\" ${title} {{ title }}"
    run = make_run(tmp_path / "a b'c", name, summary={"device": "<img src=x onerror=y>"})
    page = read([run], run.parent / "r.html", title="</title><b>t")
    assert name in page.table("Quality")[0]["Run"]
    assert "</title><b>t" in page.text
    assert "<img src=x onerror=y>" in page.text
    assert "b" not in {tag for tag, _ in page.tags}
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # the page's own
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert """mqvae evaluate 'a b'"'"'c'""" in page.text


@without_charts
def test_unfinished_run_is_shown_as_far_as_it_got(three: list[Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "half", "Half", finished=False)
    (run / "code_counts.csv").unlink()
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    # The trainer was stopped while it wrote the sixth row.
    (run / "metrics.csv").write_text("".join(lines[:6]) + lines[6][:9])
    page = read([three[0], run], tmp_path / "r.html")
    row = page.table("Quality")[1]
    assert row["Run"] == "Half unfinished"
    assert row["MSE"] == row["PSNR"] == row["Cost of a step"] == "-"
    assert row["Steps"] == "50 of 1,200"
    assert row["Training time"] == "2.0 s"
    assert "Unfinished, shown as far as it got: Half." in page.text


@without_charts
def test_why_a_run_failed_is_said(three: list[Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "half", "Half", finished=False)
    cause = "the task loss is nan at step 51."
    reason = f"{cause} The last good checkpoint is kept in X. Try y."
    (run / "failure.json").write_text(json.dumps({"step": 51, "cause": cause, "reason": reason}))
    page = read([three[0], run], tmp_path / "r.html")
    assert page.table("Quality")[1]["Run"] == "Half failed"
    said = "Half failed, and is shown as far as it got: the task loss is nan at step 51."
    assert said in page.text and "Unfinished" not in page.text
    assert "kept in X" not in page.text


@without_charts
def test_skipped_steps_are_said(three: list[Path], tmp_path: Path) -> None:
    file = three[0] / "summary.json"
    summary = json.loads(file.read_text())
    for number, said in ((1200, True), (0, False)):
        file.write_text(json.dumps({**summary, "skipped_steps": number}))
        words = "skipped 1,200 training steps, in which a number was not finite."
        assert (words in read(three, tmp_path / "r.html").text) == said


@pytest.mark.parametrize("content", [None, "", HEADER + "\n"])
def test_run_that_has_just_begun(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("name: New\n")
    if content is not None:
        (tmp_path / "new" / "metrics.csv").write_text(content)
    page = read([tmp_path / "new"], tmp_path / "r.html")
    assert page.table("Quality")[0]["Steps"] == "-"
    for sentence in ("No run has logged", "No run has written samples", "No run has counted"):
        assert sentence in page.text


@without_charts
def test_missing_samples_leave_a_labelled_gap(three: list[Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", "Bare")
    for file in (run / "samples").iterdir():
        file.unlink()
    page = read([run, three[0]], tmp_path / "r.html")
    assert re.search(r"Originals.*Bare.*no samples yet.*VQ-VAE \(one", page.text, re.S)
    # Originals, what the other run made of them, and by how much.
    assert sum(tag == "img" for tag, _ in page.tags) == 3


def test_errors_are_shown_image_by_image(three: list[Path]) -> None:
    rows = [row for row, _ in samples([read_run(three[0])], [""], [Decoded("")]).rows]
    first, made, errors = (row.strip.tiles.astype(int) for row in rows)
    assert rows[2].shows == ERRORS and errors.shape == first.shape
    assert (errors == np.minimum(4 * np.abs(made - first), 255)).all()


@without_charts
def test_sizes_and_speed_are_columns_and_the_table_goes_along(tmp_path: Path) -> None:
    bits = {"entropy": 6.4, "bits_per_pixel": 0.4, "parameters": 412737}
    runs = [make_run(tmp_path / "a", "A", summary=bits), make_run(tmp_path / "b", 'B, "2"')]
    page = read(runs, tmp_path / "r.html")
    first, second = page.table("Quality")
    names = ("Tokens an image", "Compression", "Parameters", "Images/s")
    # 0.4 bits a pixel of 28 × 28 are 49 codes of 6.4; of 8 bits a pixel they are a 20th.
    assert [first[name] for name in names] == ["49", "20", "412,737", "1,600"]
    assert [second[name] for name in names] == ["-", "-", "412,737", "1,600"]
    [link] = [each["href"] for tag, each in page.tags if each.get("download")]
    rows = list(csv.DictReader(StringIO(unquote(link.partition(",")[2]))))
    assert [row["run"] for row in rows] == ["A", 'B, "2"']
    assert (rows[0]["MSE"], rows[0]["Images/s"]) == ("0.008", "1600.0")
    assert (rows[1]["device"], rows[1]["Compression"]) == ("cpu, 2 threads", "")


@without_charts
def test_no_place_of_the_machine_is_named(tmp_path: Path) -> None:
    source = {"source": "12 image files in /home/me/pictures"}
    run = make_run(tmp_path / "a", data="/home/me/pictures", summary=source)
    page = read([run], tmp_path / "r.html")
    assert "12 image files in pictures" in page.text and "trained for" in page.text
    assert "/home/me" not in page.source


@without_charts
def test_runs_with_other_images_get_their_own_originals(three: list[Path], tmp_path: Path) -> None:
    tiles = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    run = make_run(tmp_path / "colour", "Colour", tiles=tiles)
    page = read([three[0], run], tmp_path / "r.html")
    assert "Originals of VQ-VAE (one AdamW)" in page.text
    assert "Originals of Colour" in page.text


def evaluated(run: Path, name: str, content: dict[str, Any]) -> None:
    """What `mqvae evaluate` leaves."""
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / f"{name}.json").write_text(json.dumps(content))


@without_charts
def test_evaluation_takes_precedence_and_brings_columns(three: list[Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "measured", "Measured")
    fid = {"title": "FID", "better": "lower", "protocol": "features of Inception"}
    evaluation = {
        "mse": 7e-3,
        "psnr": 22.5,
        "fid": 31.5,
        "protocol": {"images": 5},
        "figures": {**FIGURES, "fid": fid},
    }
    evaluated(run, "test-last", evaluation)
    page = read([three[0], run], tmp_path / "r.html")
    first, second = page.table("Quality")
    assert list(first)[5:8] == ["Gradient gap", "FID", "Cost of a step"]
    # Both are of one file: what it does not have was not measured of these weights.
    assert (second["MSE"], second["PSNR"], second["Usage"]) == ("7.00", "22.50", "-")
    assert (second["FID"], first["FID"]) == ("31.5", "-")
    assert "FID: features of Inception." in page.text
    assert "measured under different protocols" in page.text


def classify(folder: Path, name: str, accuracy: float, counts: np.ndarray) -> Path:
    """A run of another task: no strips, a matrix, other figures."""
    title = "Confusion matrix"
    summary = {
        "accuracy": accuracy,
        "entropy": 0.7,
        "method": "VQ-C",
        "figures": {
            "accuracy": {
                "title": "Accuracy",
                "better": "higher",
                "protocol": "share of images whose class is the likeliest",
                "unit": "%",
                "scale": 0.01,
            },
            "entropy": {"title": "Entropy", "better": None, "protocol": "mean over images"},
        },
        "pictures": [
            {
                "kind": "matrix",
                "file": "samples/confusion.csv",
                "title": title,
                "rows": "class",
                "columns": "prediction",
            },
            {"kind": "hologram", "file": "samples/later", "title": "Of a later version"},
        ],
    }
    run = make_run(folder, name, summary=summary)
    for strip in (run / "samples").iterdir():
        strip.unlink()
    lines = [",".join(map(str, row)) for row in counts.tolist()]
    (run / "samples" / "confusion.csv").write_text("\n".join(lines) + "\n")
    return run


@without_charts
def test_another_task_has_its_own_columns_words_and_pictures(tmp_path: Path) -> None:
    counts = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    runs = [
        classify(tmp_path / "a", "A", 0.80, counts),
        classify(tmp_path / "b", "B", 0.825, counts.T),
    ]
    page = read(runs, tmp_path / "r.html")
    assert list(page.table("Quality")[0])[1:4] == ["Accuracy", "Entropy", "Cost of a step"]
    assert "Update rule of all: VQ-C, Joint." in page.text
    assert page.best == ["82.5"]
    assert "B: Accuracy 2.50 points higher (better), at 1.00 times" in page.text
    assert "Accuracy: share of images whose class is the likeliest." in page.text
    assert "MSE" not in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]
    matrix = page.tables["Down: class, across: prediction. Shade: share of its row."]
    assert matrix[:2] == [["class", "prediction"], ["0", "1", "2"]]
    assert matrix[2:] == [["0", "8", "1", "0"], ["1", "2", "9", "0"], ["2", "0", "0", "0"]]
    regions = [each["aria-label"] for _, each in page.tags if each.get("role") == "region"]
    assert "B: Confusion matrix, 3 by 3, 85.0% on the diagonal" in regions
    shares = [
        attributes["style"]
        for tag, attributes in page.tags
        if tag == "td" and "style" in attributes
    ]
    assert shares[:3] == ["--share: 80%", "--share: 20%", "--share: 0%"]


@without_charts
def test_large_matrix_is_a_picture(tmp_path: Path) -> None:
    run = classify(tmp_path / "a", "A", 0.8, np.eye(100, dtype=int) * 7)
    page = read([run], tmp_path / "r.html")
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert image["alt"] == "A: Confusion matrix, 100 by 100, 100.0% on the diagonal"
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2]))))
    assert np.array_equal(pixels[..., 3], 255 * np.eye(100))
    assert not [caption for caption in page.tables if "Confusion" in caption]


@without_charts
def test_nothing_to_show_is_left_out_or_said(three: list[Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "silent", "Silent", summary={"pictures": []})
    assert "amples" not in read([run], tmp_path / "r.html").text
    page = read([run, three[0]], tmp_path / "r.html")
    assert re.search(r"Originals.*Silent.*nothing to show.*VQ-VAE \(one", page.text, re.S)


def test_validation_is_a_dashed_line_of_its_own(
    three: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = make_run(tmp_path / "run", rows=20)
    head, *lines = (run / "metrics.csv").read_text().splitlines()
    rows = [line + (f",0.{9 - i // 5},odd" if i % 5 == 4 else ",,") for i, line in enumerate(lines)]
    (run / "metrics.csv").write_text("\n".join([head + ",validation,player", *rows]) + "\n")
    page = read([three[0], run], tmp_path / "r.html")
    alt = next(each["aria-label"] for _, each in page.tags if each.get("class") == "chart")
    assert alt.endswith("VQ-VAE (validation) 0.6.")
    assert page.text.count("validation") == 1  # in the legend
    assert "stroke-dasharray" in page.source
    request.getfixturevalue("uncharted")  # from here on
    assert "validation" not in read(three, tmp_path / "r.html").text


@without_charts
def test_runs_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"seed-{seed}", rows=5) for seed in (0, 1)]
    rows = read(runs, tmp_path / "r.html").table("Quality")
    assert [row["Run"] for row in rows] == ["VQ-VAE (seed-0)", "VQ-VAE (seed-1)"]


def test_values_that_are_not_finite_are_shown_and_never_best(three: list[Path], tmp_path: Path):
    run = make_run(tmp_path / "nan", "Diverged", summary={"mse": float("nan"), "psnr": None})
    text = (run / "metrics.csv").read_text().splitlines()
    text[-40:] = [re.sub(r"^(\d+,[^,]*),[^,]*", r"\1,nan", line) for line in text[-40:]]
    text[-1] = text[-1].replace(",nan,", ",inf,")
    (run / "metrics.csv").write_text("\n".join(text) + "\n")
    page = read([three[0], three[2], run], tmp_path / "r.html")
    row = page.table("Quality")[2]
    assert (row["MSE"], row["PSNR"]) == ("nan", "-")
    assert "6.00" in page.best
    assert "Diverged: MSE cannot be compared" in page.text


def test_more_runs_than_colours(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), f"Run {i}", rows=3) for i in range(9)]
    page = read(runs, tmp_path / "r.html")
    assert len(page.table("Quality")) == 9
    alts = [attributes["aria-label"] for tag, attributes in page.tags if "aria-label" in attributes]
    assert sum("most frequent first. Codes used: Run 0" in alt for alt in alts) == 1


@without_charts
def test_runs_of_a_sweep_are_called_by_what_differs_and_sorted_by_it(tmp_path: Path) -> None:
    folders = ["seed=0,optimizer.codebook_lr=1e-3", "seed=0,optimizer.codebook_lr=6e-2"]
    rates = (1e-3, 6e-2)
    made = zip(folders, rates, strict=True)
    runs = [make_run(tmp_path / f, "MQ-VAE", codebook_lr=rate, rows=3) for f, rate in made]
    rows = read(runs, tmp_path / "r.html").table("Quality")
    assert [row["Run"] for row in rows] == ["seed=0, codebook_lr=1e-3", "seed=0, codebook_lr=6e-2"]
    assert [row["codebook lr"] for row in rows] == ["0.001", "0.06"]


@without_charts
def test_runs_of_different_tasks_share_no_axis_and_no_verdict(tmp_path: Path) -> None:
    counts = np.array([[8, 2], [1, 9]])
    runs = [
        make_run(tmp_path / "a", "A", rows=3),
        make_run(tmp_path / "b", "B", rows=3, summary={"mse": 5e-3}),
        classify(tmp_path / "c", "C", 0.8, counts),
    ]
    with (runs[2] / "config.yaml").open("a") as config:
        config.write("task: {class_path: mqvae.Classification}\n")
    page = read(runs, tmp_path / "r.html")
    charts = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    losses = [alt for alt in charts if alt.startswith("Task loss against steps")]
    assert len(losses) == 2 and "C" not in losses[0].split("Last")[1]
    assert "B: MSE" in page.text and "C: MSE" not in page.text
    assert "different tasks" in page.text


def rated(folder: Path, name: str, mse: float, **bits: float) -> Path:
    described = {key: {"title": key, "better": None, "protocol": "of codes"} for key in bits}
    summary = {"mse": mse, **bits, "figures": {**FIGURES, **described}}
    return make_run(folder, name, rows=3, summary=summary)


def test_error_against_bits_where_two_runs_have_both(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    runs = [
        rated(tmp_path / "a", "A", 6e-3, entropy=9.4, prior_bits=6.6),
        rated(tmp_path / "b", "B", 5e-3, entropy=6.2),
        make_run(tmp_path / "c", "C", rows=3),
    ]
    page = read(runs, tmp_path / "r.html")
    alts = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    (alt,) = [alt for alt in alts if alt.startswith("MSE against")]
    assert alt == "MSE against entropy: A 6 at 9.4 bits and B 5 at 6.2 bits."
    assert "Error against bits" in page.text and "MSE against entropy, in ×10⁻³" in page.text
    # Shown against steps and against time alike.
    figure = next(i for i, (tag, a) in enumerate(page.tags) if a.get("aria-label") == alt)
    assert "data-against" not in next(a for tag, a in page.tags[figure::-1] if tag == "figure")
    request.getfixturevalue("uncharted")  # from here on
    page = read(
        [runs[0], rated(tmp_path / "d", "D", 4e-3, entropy=8.0, prior_bits=6.0)], tmp_path / "q"
    )
    alts = [a["aria-label"] for tag, a in page.tags if tag == "svg" and "aria-label" in a]
    assert sum(alt.startswith("MSE against") for alt in alts) == 2
    assert "Error against bits" not in read(runs[1:], tmp_path / "one").text


def test_no_runs_and_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(
        ValueError, match=r"nothing is not a run: expected config\.yaml.*mqvae train"
    ):
        write_report([tmp_path / "nothing"], tmp_path / "r.html")
    with pytest.raises(ValueError, match="is a folder"):
        write_report([make_run(tmp_path / "run")], tmp_path)


EVALUATION = "evaluations/test-last.json"


@without_charts
@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", b"a: [1", "not valid YAML"),
        ("config.yaml", b"- 1", "expected a mapping"),
        ("config.yaml", b"\xff\xfe\x00", "not valid YAML"),
        ("summary.json", b'{"mse": 0.1', "not valid JSON"),
        ("summary.json", b"[1]", "expected an object"),
        ("evaluations/test-last.json", b"", "not valid JSON"),
        ("evaluations/train-best.json", b"", "not valid JSON"),
        ("summary.json", b"[" * 100_000, "not valid JSON"),
        ("config.yaml", b"[" * 100_000, "not valid YAML"),
        ("metrics.csv", b"", "expected a column 'step', got none"),
        ("metrics.csv", b"step,seconds\n1,2\n", "expected a column 'task', got step, seconds"),
        ("metrics.csv", b"step,seconds,task\n1,2,3\n2,3\n", "line 3 has 2 values, expected 3"),
        ("metrics.csv", b"step,seconds,task\n1,2,x\n", "numbers in column 'task'"),
        ("metrics.csv", b'step,seconds,task\n1,2,"3\n', "not CSV"),
        ("code_counts.csv", b"group,code,count\n0,0,1.5\n", "whole numbers"),
        ("code_counts.csv", b"group,code,count\n0,-1,3\n", "no codebook has code -1"),
        ("code_counts.csv", b"group,code,count\n0,9223372036854775808,3\n", "no codebook has code"),
        ("samples/originals.png", b"not an image", "not a readable image"),
        (EVALUATION, b'{"figures": {"a": {"better": "less"}}}', "a better lower, higher or"),
        (EVALUATION, b'{"figures": {"a": {"scale": 0}}}', "a positive scale of a, got 0"),
        (EVALUATION, b'{"pictures": [{"file": "../x.png"}]}', "in the run's folder, got"),
        (EVALUATION, b'{"pictures": [{"file": "/x.png"}]}', "in the run's folder, got"),
    ],
)
def test_damaged_file_is_named_and_the_old_page_stays(
    file: str, content: bytes, message: str, tmp_path: Path
) -> None:
    run, out = make_run(tmp_path / "run", rows=3), tmp_path / "r.html"
    out.write_text("the old page")
    (run / "evaluations").mkdir()
    (run / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(run / file)) + ".*" + re.escape(message)):
        write_report([run], out)
    assert out.read_text() == "the old page"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "run"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n3\n", "equally long"),
        ("", "equally long"),
        ("1,x\n", "whole numbers"),
        ("1,-2\n", "expected counts, got -2"),
    ],
)
@without_charts
def test_damaged_matrix_is_named(content: str, message: str, tmp_path: Path) -> None:
    run = classify(tmp_path / "run", "A", 0.5, np.eye(2, dtype=int))
    (run / "samples" / "confusion.csv").write_text(content)
    with pytest.raises(ValueError, match=r"confusion\.csv is damaged.*" + message):
        write_report([run], tmp_path / "r.html")


@without_charts
def test_folders_above_the_page_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rows=3)
    out = tmp_path / "new" / "folder" / "r.html"
    assert write_report([run], out) == out
    assert [path.name for path in out.parent.iterdir()] == ["r.html"]


@pytest.mark.parametrize("shape", [(16, 8, 8), (16, 28, 28), (5, 32, 32, 3), (1, 64, 64)])
def test_strips_keep_every_pixel(shape: tuple[int, ...], tmp_path: Path) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    strip(tiles).save(tmp_path / "s.png")
    found = read_strip(tmp_path / "s.png")
    assert found is not None
    assert np.array_equal(found.tiles, tiles.reshape(*shape[:3], -1))
    (uri,), exact = encode([found.image()])
    assert exact
    shown = np.asarray(Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))))
    period, channels = found.side + found.gap, found.tiles.shape[3]
    for index, tile in enumerate(found.tiles):
        part = shown[:, index * period : index * period + found.side]
        assert np.array_equal(part[..., :channels], tile)
        assert (part[..., channels] == 255).all()
    assert (shown[:, found.side : period, channels] == 0).all()


def test_photographs_of_many_runs_fit_into_the_page() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), np.uint8)
    uris, exact = encode([Strip(tiles).image()] * 8)
    assert not exact
    assert sum(map(len, uris)) < 1.4 * BUDGET
    assert Strip(tiles).size[1] == 128


def test_strip_of_another_layout_is_refused(tmp_path: Path) -> None:
    Image.new("L", (50, 28)).save(tmp_path / "s.png")
    with pytest.raises(ValueError, match=r"s\.png is damaged: expected square tiles.*50×28"):
        read_strip(tmp_path / "s.png")


def test_smoothing_keeps_lines_level_and_steep_starts() -> None:
    steep = np.linspace(10.0, 0.0, 400)
    assert np.allclose(smooth(steep)[:-10], steep[:-10])
    assert np.allclose(smooth(np.full(200, 3.0)), 3.0)
    noisy = np.random.default_rng(0).normal(size=4000)
    assert smooth(noisy).std() < 0.2 * noisy.std()
    blank = np.where(np.arange(200) % 2, np.nan, 5.0)
    assert np.array_equal(np.isnan(smooth(blank)), np.isnan(blank))
    assert np.nanmax(smooth(blank)) == 5.0


def test_thinning_keeps_the_extent_of_a_long_run() -> None:
    x = np.arange(100_000.0)
    y = np.random.default_rng(0).normal(size=len(x))
    few_x, few_y = envelope(x, y)
    assert len(few_x) <= 600
    assert (few_y.min(), few_y.max()) == (y.min(), y.max())
    assert (np.diff(few_x) > 0).all()
    assert thin(x, y)[0][-1] == x[-1]


def test_loss_axis_is_logarithmic_beyond_a_decade() -> None:
    assert spans_decade(np.array([0.01, 0.2]))
    assert not spans_decade(np.array([0.1, 0.2]))
    assert not spans_decade(np.array([0.0, 0.2]))
    assert not spans_decade(np.array([]))


def test_numbers_as_people_write_them() -> None:
    assert [plain(v) for v in (0.0, -0.5, 2e6, 1e-5)] == ["0", "-0.5", "2·10⁶", "10⁻⁵"]
    assert aligned([0.05, 12.0, None], digits=3, most=4) == ["0.0500", "12.0000", "-"]
    assert aligned([1234.4], digits=3, most=4) == ["1,234"]


def test_the_report_itself_needs_no_torch() -> None:
    # The package's front door offers networks and so imports torch; the report must add nothing.
    code = (
        "import sys, types; package = types.ModuleType('mqvae'); "
        f"package.__path__ = {list(mqvae.__path__)!r}; sys.modules['mqvae'] = package; "
        "import mqvae.report; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

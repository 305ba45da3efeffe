"""The page of the paper: its figures in Markdown, HTML and a terminal, and that it stands alone."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pixels

import reproduction.paper.cells
import reproduction.paper.html
import reproduction.paper.markdown
import reproduction.paper.study
import reproduction.paper.verdicts
from reproduction.paper.cells import shown
from reproduction.paper.html import html
from reproduction.paper.markdown import files, markdown
from reproduction.paper.page import write_page
from reproduction.paper.sections import (
    Cell,
    Claim,
    Column,
    Image,
    Line,
    Page,
    Plot,
    Row,
    Section,
    Table,
)
from reproduction.paper.terminal import text

METHODS = (
    "Without quantization",
    "VQ-VAE",
    "Gumbel-VQVAE",
    "MQ-VAE",
    "VQ-VAE + replace",
    "MQ-VAE + replace",
    "VQ-VAE + group",
    "MQ-VAE + group",
)
COLUMNS = (
    Column("mse", "MSE (e-3)", "lower", 1e-3, "mean over all numbers"),
    Column("lpips", "LPIPS (e-1)", "lower", 0.1, "AlexNet, images enlarged to 64"),
    Column("frechet_vgg", "Fréchet, VGG16", "lower", substitute=True, protocol="VGG16 features"),
    Column("class_score", "Class score", "higher", substitute=True),
    Column("ssim", "SSIM", "higher"),
    Column("perplexity", "Perplexity", "higher", 1.0, "of the codes of the test set"),
    Column("gradient_gap", "Gap (e-5)", "lower", 1e-5, "distance of two gradients"),
    Column("usage", "Usage (%)", "higher", 0.01),
)
BASE = (5.6, 0.59, 17.3, 3.95, 0.81, 180.8, 17.68, 41.0)


def table() -> Table:
    """Sixteen rows of eight figures."""
    rng = np.random.default_rng(0)
    rows = []
    for protocol in ("paper", "matched"):
        for method in METHODS:
            cells = {}
            for place, (column, base) in enumerate(zip(COLUMNS, BASE)):
                values = tuple(
                    float(v) for v in base * rng.uniform(0.5, 1.5) + rng.normal(0, 0.02, 3)
                )
                bare = method == METHODS[0]
                cells[column.key] = Cell(
                    values,
                    None if bare or column.substitute or place > 6 else round(base * 0.77, 2),
                    None if method == "VQ-VAE" else float(np.mean(values)) / base,
                    None if bare or column.substitute or method == "VQ-VAE" else 0.59,
                )
            if method == METHODS[0]:
                del cells["perplexity"], cells["usage"], cells["class_score"]
            runs = tuple(f"{method.lower().replace(' ', '-')}-{protocol}-{s}" for s in range(3))
            codebook = None if method == METHODS[0] else 6e-2 if "MQ" in method else 3e-4
            rows.append(Row(method, protocol, cells, codebook, 3000, 97 + 31.0 * len(rows), runs))
    notes = ("MQ-VAE updates its codebook by `mqvae.Meta`.",)
    return Table("Fashion-MNIST, reconstruction", COLUMNS, rows, notes)


def odd() -> Table:
    """One seed, none, figures that are not finite, no paper, text that is code elsewhere."""
    columns = (Column("mse", "MSE <b>|x|</b>", "lower"), Column("ce", "CE", None))
    cells = (
        {"mse": Cell((5.0,)), "ce": Cell((0.004, 0.006), 9.5, 1.5, 1234.0)},
        {"mse": Cell((math.nan, 1.0), 4.28, math.nan), "ce": Cell((math.inf,))},
        {"mse": Cell((), 3.5), "ce": Cell((float("-inf"), 1.0), 4.0)},
        {"mse": Cell((2.0, 2.5), None, 0.0123)},
    )
    names = ("<script>alert(1)</script>", "a|b_c_d", "*nothing*", "[x](y) & `z`")
    rows = [Row(name, "time", each) for name, each in zip(names, cells)]
    return Table("Odd & <i>ends</i>", columns, rows)


def strip(seed: int, side: int = 28, count: int = 12) -> bytes:
    written = BytesIO()
    tiles = np.random.default_rng(seed).integers(0, 256, (side, count * (side + 2) - 2), np.uint8)
    Pixels.fromarray(tiles).save(written, "PNG")
    return written.getvalue()


def curve(label: str, place: int, *, band: bool = False, points: int = 30) -> Line:
    x = np.linspace(100, 3000, points)
    y = 5 + place * 0.3 + 60 * np.exp(-x / (300 + 60 * place))
    return Line(label, x.tolist(), y.tolist(), *(((0.9 * y).tolist(), (1.1 * y).tolist()) * band))


@pytest.fixture(scope="module")
def page() -> Page:
    lines = [curve(method, i, band=True) for i, method in enumerate(METHODS[:6])]
    many = [
        curve(f"{m}, {p}", i, points=200)
        for p in ("matched", "paper")
        for i, m in enumerate(METHODS)
    ]
    gaps = Line("MQ-VAE", [1, 2, 3, 4], [1.0, math.nan, -1.0, 4.0])
    return Page(
        "cpu",
        (
            "At its own best rate VQ-VAE is as good as MQ-VAE: the paper's ×0.59 becomes ×0.98.",
            "Under the paper's protocol MQ-VAE's MSE is 0.76 of VQ-VAE's.",
            "Groups help both alike; see `python -m reproduction table-3`.",
        ),
        {
            "Sizes": "width 32, 64-dimensional codes, 1,024 of them, batch 64, 3,000 steps",
            "Hardware": "two cores of a server, one thread per run",
            "Seeds": "0, 1 and 2; <rates> chosen on 5,000 validation images",
        },
        (
            Section(
                "table-1",
                "Table 1: reconstruction on Fashion-MNIST and CIFAR-100",
                "MQ-VAE has 0.59 of VQ-VAE's MSE and 0.56 of its LPIPS.",
                (
                    "Under the paper's protocol MSE falls to 0.76 (paper 0.59).",
                    "Matched, nothing of it is left: 0.98 ± 0.02.",
                ),
                (table(),),
                missing=(
                    "CIFAR-100 was not trained: `python -m reproduction table-1 --scale paper`.",
                ),
                judged=(
                    Claim("", "MQ-VAE against VQ-VAE", "0.5", {"time": "0.8, worse"}, "no value"),
                ),
            ),
            Section(
                "figure-4",
                "Figure 4: quality against time",
                plots=(
                    Plot("figure-4-updates", "MSE against updates", "updates", "MSE (e-3)", lines),
                    Plot(
                        "figure-4-time",
                        "The same, logarithmic",
                        "seconds",
                        "MSE (e-3)",
                        lines,
                        True,
                        True,
                    ),
                    Plot(
                        "figure-4-many", "Sixteen lines", "updates", "MSE (e-3)", many, log_y=True
                    ),
                ),
            ),
            Section(
                "figure-5",
                "Figure 5: reconstructions",
                "MQ-VAE's are sharper.",
                ("No difference can be seen.",),
                plots=(
                    Plot("figure-5-gaps", "Gaps", "x < 5", "y", (gaps,), log_y=True),
                    Plot("figure-5-none", "Nothing", "x", "y", ()),
                ),
                images=tuple(
                    Image(title, strip(i))
                    for i, title in enumerate(("Originals", "VQ-VAE, matched", "MQ-VAE, matched"))
                ),
            ),
            Section("appendix-f", "Appendix F: odd", tables=(odd(),), missing=("All <else>.",)),
        ),
        (
            "python -m reproduction all --scale cpu --jobs 2",
            "python -m reproduction table-1 > 'a <b>'",
        ),
        claims=(
            Claim("table-1", "MSE", "0.59", {"paper": "0.63", "equal": "1.03"}, "does not hold"),
            Claim("figure-5", "sharper", "yes", {"paper": "no"}, "holds"),
        ),
        taken={"Length": "3,000 steps", "ν": "1"},
    )


class Reader(HTMLParser):
    """Tags and text; fails on a tag that does not close."""

    VOID = frozenset({"meta", "img", "br", "wbr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


@pytest.fixture(scope="module")
def source(page: Page) -> str:
    return html(page)


@pytest.fixture(scope="module")
def reader(source: str) -> Reader:
    return Reader(source)


def figures(page: Page) -> list[str]:
    """Everything that a table says of a method, as it is written."""
    found = []
    for section in page.sections:
        for each in section.tables:
            for cells in shown(each):
                for cell in cells:
                    found += [cell.value, cell.ratio, cell.paper, cell.paper_ratio]
    return [each for each in found if each]


def whole(page: Page) -> str:
    """The page as Markdown with those of its sections."""
    return "\n".join(markdown(page).values())


def test_every_figure_is_on_every_page(page: Page, reader: Reader) -> None:
    words = whole(page)
    terminal = "".join(text(each, width=80) for s in page.sections for each in s.tables)
    assert len(figures(page)) > 300
    for figure in figures(page):
        assert figure in reader.text
        assert figure in words
        assert figure in terminal


def test_every_sentence_is_on_both_pages(page: Page, reader: Reader) -> None:
    words = whole(page).replace("\\", "")
    sentences = [*page.headline, *page.conditions.values(), *page.commands]
    for section in page.sections:
        sentences += [section.title, section.claim, *section.verdict, *section.missing]
        sentences += [note for each in section.tables for note in each.notes]
        sentences += [run for each in section.tables for row in each.rows for run in row.runs]
        sentences += [plot.title for plot in section.plots]
        sentences += [image.title for image in section.images]
    for sentence in sentences:
        assert sentence.replace("`", "") in reader.text
        escaped = sentence.replace("<", "&lt;")
        assert (sentence if sentence in page.commands else escaped) in words
    assert reader.text.count("Not comparable to the paper's") == 1
    assert "Fréchet, VGG16† ↓" in reader.text and "| Fréchet, VGG16† ↓ |" in words
    assert "our reading: a reading of the paper's protocol" in words
    assert "baselines have one AdamW" in reader.text
    assert reader.text.index(page.headline[0]) < reader.text.index("Sizes")
    for claim in (*page.claims, *page.sections[0].judged):
        for said in (claim.claim, claim.paper, *claim.here.values(), claim.verdict):
            assert said in words and said in reader.text
    for name, value in page.taken.items():
        assert f"* {name}: {value}" in words
        assert name in reader.text and value in reader.text


def test_cells_say_what_they_have() -> None:
    first, second, third, fourth = shown(odd())
    assert (first[0].value, first[0].paper, first[0].ratio) == ("5.00", "", "")
    assert (first[1].value, first[1].paper) == ("0.00500\xa0±\xa00.00141", "9.50")
    assert (first[1].ratio, first[1].paper_ratio) == ("×1.50", "×1,234")
    assert (second[0].value, second[0].paper, second[0].ratio) == ("nan", "4.28", "")
    assert (second[1].value, second[1].order) == ("inf", None)
    assert (third[0].value, third[0].paper, third[1].value) == ("-", "3.50", "-inf")
    assert (fourth[0].value, fourth[0].ratio) == ("2.25\xa0±\xa00.35", "×0.012")
    assert fourth[1].value == "-"


@pytest.mark.parametrize(
    "module",
    [
        *(reproduction.paper.cells, reproduction.paper.html, reproduction.paper.markdown),
        *(reproduction.paper.study, reproduction.paper.verdicts),
    ],
    ids=lambda m: m.__name__,
)
def test_examples(module) -> None:
    done = doctest.testmod(module)
    assert done.attempted and not done.failed


def test_hostile_text_stays_text(source: str, reader: Reader, page: Page) -> None:
    assert "<script>alert" not in source and "<i>ends" not in source
    assert "<script>alert(1)</script>" in reader.text
    words = whole(page)
    assert "| &lt;script>alert(1)&lt;/script> |" in words
    assert "| a\\|b\\_c\\_d |" in words
    assert "| \\*nothing\\* |" in words
    assert "| \\[x\\](y) &amp; `z` |" in words


def test_markdown_tables_have_equally_many_cells(page: Page) -> None:
    blocks = re.findall(r"(?:^\|.*\|\n)+", whole(page), re.M)
    # Claims twice, eight columns in two halves for each of two protocols, and the odd table.
    assert len(blocks) == 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_page_stands_alone(source: str, reader: Reader) -> None:
    assert source.startswith("<!DOCTYPE html>")
    assert "http:" not in source and "https:" not in source and "@import" not in source
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith("#"), tag
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", source))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', source)) == set(ids)
    assert sum(tag == "img" for tag, _ in reader.tags) == 3


def test_files_are_drawings_that_stand_alone(page: Page) -> None:
    found = files(page)
    drawings = {name: content.decode() for name, content in found.items() if name.endswith("svg")}
    assert len(drawings) == 5 and len(found) == 8
    for name, drawing in drawings.items():
        assert ET.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg", name
        assert "prefers-color-scheme: dark" in drawing
        assert "http" not in drawing.replace("http://www.w3.org/2000/svg", "")
    for label in METHODS[:6]:
        assert f">{label}</text>" in drawings["figure-4-updates.svg"]
    words = whole(page)
    assert set(re.findall(r"\]\(([^/)]+\.(?:svg|png))\)", words)) == found.keys()
    pages = markdown(page).keys() - {"reproduction.md"}
    assert set(re.findall(r"\]\((reproduction/[^)]+\.md)\)", words)) == pages
    assert found["figure-5-images-1.png"] == page.sections[2].images[0].png


def test_the_same_page_gives_the_same_bytes(page: Page, source: str, tmp_path: Path) -> None:
    assert write_page(page, tmp_path / "a" / "b")[0] == tmp_path / "a" / "b" / "reproduction.md"
    write_page(page, tmp_path / "c")
    first = {p.relative_to(tmp_path / "a" / "b"): p for p in (tmp_path / "a" / "b").rglob("*.*")}
    assert len(first) == 14  # four sections have a page each
    for name, file in first.items():
        assert file.read_bytes() == (tmp_path / "c" / name).read_bytes(), name
    assert (tmp_path / "c" / "reproduction.html").read_bytes() == source.encode()


def test_pictures_of_an_earlier_page_go_and_others_stay(page: Page, tmp_path: Path) -> None:
    short = dataclasses.replace(page, sections=page.sections[2:3])
    write_page(short, tmp_path)
    (tmp_path / "reproduction" / "mine.png").write_bytes(b"mine")
    write_page(dataclasses.replace(page, sections=page.sections[3:]), tmp_path)
    assert [p.name for p in (tmp_path / "reproduction").iterdir()] == ["mine.png"]


def test_names_of_files_are_checked() -> None:
    plot = Plot("../x", "t", "x", "y", ())
    with pytest.raises(ValueError, match=r"expected letters, digits"):
        files(Page("cpu", (), {}, (Section("s", "s", plots=(plot,)),)))
    plot = Plot("x", "t", "x", "y", ())
    with pytest.raises(ValueError, match="two plots"):
        files(Page("cpu", (), {}, (Section("s", "s", plots=(plot, plot)),)))
    with pytest.raises(ValueError, match="two plots"):
        files(Page("cpu", (), {}, [Section(s, s, plots=(plot,)) for s in "ab"]))


def test_an_empty_page_and_a_debug_one() -> None:
    empty = Page("debug", (), {}, ())
    assert "the figures mean nothing" in whole(empty)
    assert "the figures mean nothing" in Reader(html(empty)).text
    assert files(empty) == {}


def test_a_terminal_of_eighty_columns_is_enough() -> None:
    for each in (table(), odd()):
        lines = text(each, width=80).splitlines()
        assert max(map(len, lines)) <= 80
        assert not any("…" in line for line in lines)
    assert "Usage" in text(table(), width=80)


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.mark.skipif(browser() is None, reason="no browser to sort in")
def test_tables_sort_in_a_browser(page: Page, source: str, tmp_path: Path) -> None:
    drive = """<script>
    const table = document.querySelector("table.sortable");
    const heads = [...table.tHead.rows[0].cells];
    const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].innerText);
    const said = [];
    const figure = (value) => value.trim().split("\\u00a0")[0];
    const click = (i) => {
      heads[i].querySelector("button").click();
      said.push([heads[i].getAttribute("aria-sort"), column(i).map(figure)]);
    };
    click(1); click(1); click(1); click(4); click(0);
    document.body.dataset.said = JSON.stringify(said);
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(source.replace("</body>", drive), encoding="utf-8")
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    dom = Reader(done.stdout)
    said = json.loads(next(a["data-said"] for t, a in dom.tags if t == "body"))
    (up, rising), (down, falling), (back, original), (first, highest), (names, methods) = said
    values = [cells[0].ours for cells in shown(page.sections[0].tables[0])[: len(METHODS)]]
    assert (up, down, back) == ("ascending", "descending", None)
    assert [float(v) for v in rising] == sorted(map(float, values))
    assert falling == rising[::-1]
    assert original == values
    assert first == "descending" and highest[-1:] == ["-"]
    numbers = [float(v.replace(",", "")) for v in highest[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    methods = [name.partition("\n")[0] for name in methods]  # less the learning rate
    assert names == "ascending" and methods == sorted(methods)

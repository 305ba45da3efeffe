"""The report in a real browser: sorted, filtered, slid, read from a keyboard and on a phone."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_report import META, make_run

from mqvae.report import page as module
from mqvae.report import write_report
from mqvae.report.codebook import Decoded
from mqvae.report.strips import Strip

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if CHROMIUM is None:
    pytest.skip("Chromium is not installed (Debian: chromium)", allow_module_level=True)

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
NAMES = ["VQ-VAE", "MQ-VAE", "VQ-VAE, fast codes"]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # As root, which a container's user often is, Chromium has no sandbox.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "a", NAMES[0], summary={"mse": 8e-3}),
        make_run(root / "b", NAMES[1], update=META, codebook_lr=6e-2, summary={"mse": 5e-3}),
        make_run(root / "c", NAMES[2], codebook_lr=6e-2, summary={"mse": 11e-3, "psnr": None}),
    ]


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def opened(browser):
    """Opens pages; in the end none has complained or asked for anything but itself."""
    troubles: list[str] = []
    contexts = []

    def open_(file: Path, viewport=WIDE, **options):
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None
                if r.url in (file.as_uri(),) or r.url.startswith("data:")
                else troubles.append(r.url)
            ),
        )
        page.goto(file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not troubles


def names(page) -> list[str]:
    rows = page.locator("table.sortable tbody th:visible").all_inner_texts()
    return [row.strip() for row in rows]


def test_a_click_on_a_head_sorts(opened, file):
    page = opened(file)
    head = page.get_by_role("columnheader", name="MSE")
    button = head.get_by_role("button")
    assert names(page) == NAMES and head.get_attribute("aria-sort") is None
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert names(page) == [NAMES[1], NAMES[0], NAMES[2]]
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert names(page) == [NAMES[2], NAMES[0], NAMES[1]]
    # Higher is better first, and what has no figure last.
    page.get_by_role("columnheader", name="PSNR").get_by_role("button").click()
    assert page.get_by_role("columnheader", name="PSNR").get_attribute("aria-sort") == "descending"
    assert head.get_attribute("aria-sort") is None
    assert names(page)[-1] == NAMES[2]


def test_what_is_filtered_out_leaves_all_of_the_page(opened, file):
    page = opened(file)
    lines = page.locator("figure:visible svg.chart g[data-run]:visible")
    before = lines.count()
    box = page.get_by_label("Filter runs")
    box.fill("mq")
    assert names(page) == [NAMES[1]]
    assert page.get_by_role("status").inner_text() == "1 of 3 shown"
    assert 0 < lines.count() < before
    shown = page.locator("[data-run]:visible").evaluate_all("all => all.map(e => e.dataset.run)")
    assert set(shown) == {"1"}
    box.fill("codebook_lr=0.06 Joint")
    assert names(page) == [NAMES[2]]
    box.fill("codebook_lr=6e-2 data.side=28")  # a number however it is written; what all share
    assert names(page) == NAMES[1:]
    box.fill("nothing like it")
    assert names(page) == []
    box.fill("")
    assert names(page) == NAMES and lines.count() == before


def test_curves_are_against_steps_or_time(opened, file):
    page = opened(file)
    loss = page.get_by_role("heading", name=re.compile("^Task loss against"))
    assert loss.all_inner_texts() == ["Task loss against steps"]
    page.get_by_label("time", exact=True).check()
    assert loss.all_inner_texts() == ["Task loss against time"]
    charts = page.locator("svg.chart:visible text").all_text_contents()
    assert "training steps" not in charts and "seconds of training" in charts
    page.get_by_label("time", exact=True).press("ArrowLeft")
    assert loss.all_inner_texts() == ["Task loss against steps"]


def test_the_slider_uncovers_the_originals_from_the_keyboard(opened, file):
    page = opened(file)
    slider = page.get_by_role("slider")
    pair = page.locator(".pair").first
    originals, rebuilt = pair.locator("img").all()
    assert pair.count() == 1 and page.locator(".pair").count() == 3
    assert originals.bounding_box() == rebuilt.bounding_box()
    assert originals.get_attribute("alt") == "" and rebuilt.get_attribute("alt")
    everything = pair.screenshot()
    for _ in range(20):
        slider.press("ArrowLeft")
    assert slider.input_value() == "0"
    assert slider.get_attribute("aria-valuetext") == "100% original"
    nothing = pair.screenshot()
    assert nothing != everything
    page.evaluate("document.querySelectorAll('.pair img + img').forEach(e => e.remove())")
    assert pair.screenshot() == nothing
    slider.press("End")
    assert slider.input_value() == "100"


@pytest.fixture
def coded(runs, tmp_path, monkeypatch) -> Path:
    """A page whose first run has six codewords, and images of two by two codes."""
    places = np.zeros((4, 2, 2, 1), int)
    places[0, 0, 1] = 2
    found = Decoded(
        "six codewords.",
        codewords=np.full((17, 26, 2), 255, np.uint8),  # three across, two down, a pixel apart
        codes=Strip(np.zeros((4, 28, 28, 3), np.uint8)),
        different=2,
        order=np.array([[9, 8, 7, 6, 5, 4]]),
        chosen=np.array([[60, 30, 10, 0, 0, 0]]),
        places=places,
    )
    monkeypatch.setattr(
        module, "decoded", lambda run: found if run.path == runs[0] else Decoded("has none.")
    )
    return write_report(runs, tmp_path / "report.html")


def test_a_codeword_chosen_stands_out_in_codebook_and_images(opened, coded):
    page = opened(coded)
    slider, frame = page.get_by_label("Codeword"), page.locator(".codebook span")
    veils = page.locator(".samples .veil path")
    assert slider.get_attribute("aria-valuetext") == "none chosen" and not frame.is_visible()
    for _ in range(3):
        slider.press("ArrowRight")
    told = slider.get_attribute("aria-valuetext")
    assert told.startswith("code 7, chosen 10 times (") and told.endswith(
        "1 time in 1 of the 4 images"
    )
    # The third of three across: at the right, on top.
    inside, around = frame.bounding_box(), page.locator(".codebook img").bounding_box()
    assert abs(inside["x"] + inside["width"] - around["x"] - around["width"]) < 2
    assert abs(inside["y"] - around["y"]) < 2
    assert veils.count() == 2  # reconstructions and codes, of this run alone
    assert all(each.get_attribute("d").count("M") == 2 for each in veils.all())
    # A click on a codeword, and on a position of an image, chooses as well; again, and none is.
    picture = page.locator(".codebook img")
    picture.click(position={"x": 5, "y": around["height"] - 5})
    assert slider.input_value() == "4" and "never chosen" in slider.get_attribute("aria-valuetext")
    codes = page.locator("img[data-places]")
    codes.click(position={"x": 3, "y": 3})
    assert slider.input_value() == "1"
    codes.click(position={"x": 3, "y": 3})
    assert slider.input_value() == "0" and not frame.is_visible()


def test_a_picture_is_enlarged_by_a_click_or_a_key_and_closed_by_one(opened, coded):
    page = opened(coded)
    shown, row = page.get_by_role("dialog"), page.locator(".samples h3").nth(1)
    button = row.get_by_role("button")
    assert button.get_attribute("aria-label").startswith(f"Enlarge {NAMES[0]} MSE 8.00")
    pair = page.locator(".pair").first
    assert pair.locator("img").count() == 2  # the originals and what became of them
    button.press("Enter")
    copies = shown.locator("img")
    assert copies.count() == 2 and shown.get_by_role("heading").is_visible()
    assert copies.first.bounding_box()["width"] == 3 * pair.bounding_box()["width"]
    assert copies.first.evaluate("each => getComputedStyle(each).imageRendering") == "pixelated"
    page.keyboard.press("Escape")
    assert not shown.is_visible()
    assert page.evaluate("document.activeElement.className") == "enlarge"
    pair.click(position={"x": 5, "y": 5})
    assert shown.is_visible()
    shown.click()
    assert not shown.is_visible()
    # Where a click chooses a codeword, the button alone enlarges.
    page.locator("img[data-places]").click(position={"x": 3, "y": 3})
    assert not shown.is_visible()
    page.locator("#codebooks").get_by_role("button").press("Enter")
    assert shown.locator("img").count() == 1


def test_pictures_come_in_the_order_of_the_rows(opened, file):
    page = opened(file)
    page.get_by_role("columnheader", name="MSE").get_by_role("button").click()
    rows = page.locator(".samples h3[data-run]").evaluate_all("all => all.map(e => e.dataset.run)")
    assert rows == ["1", "1", "0", "0", "2", "2"]  # what each made of the images, and its errors


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [NARROW, WIDE], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_window(opened, file, viewport, scheme):
    page = opened(file, viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    page.get_by_label("time", exact=True).check()
    page.get_by_label("Filter runs").fill("vq")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_everything_that_works_is_reached_by_the_tab_key_and_seen_there(opened, file):
    page = opened(file)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.id || document.activeElement.tagName,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name == "BODY":
            break
        reached.append(name)
        assert outline != "none", name
    assert {"filter", "split", "BUTTON", "INPUT", "SUMMARY", "DIV"} <= set(reached)
    unnamed = "[...document.querySelectorAll('input')].filter(e => !e.labels.length).length"
    assert page.evaluate(unnamed) == 0
    assert page.evaluate("[...document.querySelectorAll('table')].every(e => e.caption)")
    assert page.evaluate("[...document.images].every(e => e.hasAttribute('alt'))")


def test_without_a_script_all_is_there_and_nothing_pretends_to_work(browser, file):
    context = browser.new_context(viewport=WIDE, java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("input:visible").count() == 0
    assert page.get_by_role("heading", name=re.compile("^Task loss against")).count() == 2
    context.close()


def test_a_reload_leaves_the_page_as_it_was(opened, file):
    page = opened(file)
    page.get_by_label("Filter runs").fill("vq-vae")
    head = page.get_by_role("columnheader", name="MSE")
    head.get_by_role("button").dblclick()
    page.get_by_label("time", exact=True).check()
    page.locator("summary").last.click()
    page.get_by_role("slider").press("Home")
    page.evaluate("scrollTo(0, 300)")
    page.reload()
    assert page.get_by_label("Filter runs").input_value() == "vq-vae"
    assert names(page) == [NAMES[2], NAMES[0]]
    assert head.get_attribute("aria-sort") == "descending"
    assert page.get_by_label("time", exact=True).is_checked()
    assert page.locator("details").last.get_attribute("open") is not None
    assert page.get_by_role("slider").input_value() == "0"
    assert page.evaluate("scrollY") == 300
    assert page.evaluate("document.activeElement.id") == "split"


def test_a_watched_page_loads_itself_again_until_it_is_held(opened, runs, tmp_path):
    page = opened(write_report(runs[:1], tmp_path / "report.html", reload=1))
    again = "performance.getEntriesByType('navigation')[0]?.type === 'reload'"
    page.wait_for_function(again, timeout=20_000)
    page.get_by_label(re.compile("loads itself again")).uncheck()
    page.evaluate("window.before = true")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.before")

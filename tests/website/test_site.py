"""The site of the documentation is built, and its pages hold together."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mqvae
from mqvae.cli import COMMANDS

ROOT = Path(__file__).parents[2]
OLDER = {"LeastRecentlyUsed"}  # names that are read for one version more


def words(page: str) -> int:
    """Of an HTML page, without what is folded."""
    article = re.search(r"<article.*</article>", page, re.DOTALL)[0]
    article = re.sub(r"<details.*?</details>", "", article, flags=re.DOTALL)
    return len(re.sub(r"<[^>]+>", " ", article).split())


def test_the_site(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        # The theme's advertisement of its successor.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*.html")}
    for name, text in pages.items():
        # Links lead elsewhere; nothing that a page is made of comes from there.
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=\"?(https?:[^\" >]+)", text
        )
        assert not loaded, (name, loaded)
        assert 'class="arithmatex"' not in text, name
        assert not re.search(r">[\w/]+\.md</a>", text), name
        # 12 screens of a phone, which only a browser could measure.
        assert name == "404.html" or words(text) <= 2000, (name, words(text))
        # Search from a disk: its index is a script, and a frame stands in for the worker.
        assert "iframe-worker.js" in text
    assert (tmp_path / "search" / "search_index.js").is_file()
    assert (tmp_path / "math.woff").is_file()
    assert json.loads((tmp_path / "tutorial.ipynb").read_text())["nbformat"] == 4
    assert 'href="tutorial.ipynb"' in pages["tutorial.html"]
    assert '<a class="autorefs autorefs-internal"' in pages["reference/tasks.html"]
    # Indented code is coloured, and rows of sentences are cards on a phone.
    assert '<span class="nt">base</span>' in pages["training.html"]
    assert "<table data-cards>" in pages["training.html"]
    assert '<td data-title="cost">1.01</td>' in pages["methods.html"]
    commands = pages["reference/commands.html"] + pages["reference/commands-codes.html"]
    for command in COMMANDS:
        assert commands.count(f"usage: mqvae {command}") == 1
    everything = "".join(text for name, text in pages.items() if name.startswith("reference/"))
    for name in {*mqvae.__all__} - OLDER:
        assert f'id="mqvae.{name}"' in everything, name

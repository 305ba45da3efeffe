"""What the documentation shows runs, and what it names exists."""

import re
from pathlib import Path

import pytest

from mqvae.settings import preset_names

ROOT = Path(__file__).parent.parent


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/training.md"])
def test_python_blocks_run(name):
    found = blocks(name)
    assert found
    for block in found:
        exec(compile(block, name, "exec"), {"__name__": "block"})


def test_the_library_examples_are_short():
    assert len(blocks("README.md")[0].strip().splitlines()) <= 20
    assert len(blocks("CONTRIBUTING.md")[0].strip().splitlines()) <= 40


def test_commands_name_presets_that_exist():
    named = set()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        named |= set(re.findall(r"mqvae train ([a-z][\w/-]+)(?![\w/.-])", path.read_text()))
    named -= {"methods/NAME"}
    assert "digits-tiny" in named
    assert named <= set(preset_names()), named


def test_every_method_is_documented():
    text = (ROOT / "docs" / "methods.md").read_text()
    for name in preset_names():
        if name.startswith("methods/"):
            assert f"`{name.removeprefix('methods/')}`" in text, name

"""What the documentation shows runs, and what it names exists."""

import importlib.util
import json
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mqvae
from mqvae.cli import COMMANDS, main
from mqvae.cli.completion import options_of
from mqvae.config import from_arguments, method_names
from mqvae.config.presets import is_known

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def hooks():
    """docs/hooks.py, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(name: str) -> list[str]:
    """What a page types into a shell: `mqvae …`, without what stands beside it."""
    text = re.sub(r"\s*\\\n\s+", " ", (ROOT / name).read_text())
    fenced = re.findall(r"```(?:bash|console|sh|shell)\n(.*?)```", text, re.DOTALL)
    lines = re.findall(r"^ {4}(mqvae .*)", text, re.MULTILINE)
    lines += re.findall(r"^(?:\$ )?(mqvae .*)", "\n".join(fenced), re.MULTILINE)
    typed = [part for line in lines for part in re.split(r" {2,}| #", line)[0].split(" && ")]
    return [re.sub(r"\[(--[^]]*)\]", r"\1", line) for line in typed if line.startswith("mqvae ")]


# -- Python ----------------------------------------------------------------------------------------

# Run in tests/tokenizer/test_sharing.py and tests/tokenizer/test_export.py, and below.
ELSEWHERE = {"docs/tokenizer.md", "docs/tutorial.md"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What pages say is there: images and vectors of one's own, runs, and codes."""
    folder = tmp_path_factory.mktemp("there")
    (folder / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (9 * i, 99, 0)).save(folder / "photos" / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "digits-tiny", "--steps", "1", "--out", "runs/first"]) == 0
        assert main(["encode", "runs/first", "photos", "--fit", "--out", "codes"]) == 0
        np.save("vectors.npy", np.random.default_rng(0).standard_normal((600, 6), np.float32))
        assert main(["train", "vectors.npy", "--steps", "1", "--out", "runs/ids"]) == 0
    return folder


@pytest.mark.parametrize("name", [n for n in PAGES if blocks(n) and n not in ELSEWHERE])
def test_python_blocks_run(name, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "block"}
    for block in blocks(name):
        exec(compile(block, name, "exec"), names)


def test_the_tutorial_leads_from_images_to_samples(tmp_path, monkeypatch):
    """The cells of its notebook, one after the other, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(30):
        colours = torch.randint(256, (36, 40, 3), dtype=torch.uint8)
        Image.fromarray(colours.numpy()).save(tmp_path / "photos" / f"{i}.png")
    # Each layer is traced.
    train = ["--network.width", "8", "--network.residual_blocks", "0"]
    train += ["--quantizer.num_codes", "64"]
    smaller = {
        "train": [*train, "--data.batch_size", "8", "--data.validation", "8"],
        "prior": ["--width", "8", "--layers", "2", "--batch-size", "8"],
    }
    names = {"__name__": "block"}
    for cell in hooks().notebook((ROOT / "docs/tutorial.md").read_text())["cells"]:
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            assert not re.search(r"^```|^ {4}mqvae |]\(", source, re.MULTILINE)
        elif not source.startswith("!"):
            exec(compile(source, "docs/tutorial.md", "exec"), names)
        else:
            for line in source.splitlines():
                few = shlex.split(re.sub(r"--(steps|count) \d+", r"--\1 3", line))[1:]
                assert main([*few, *smaller.get(few[0], [])]) == 0, line
    assert names["codes"].shape == (2, 8, 12) and names["images"].shape == (2, 3, 32, 48)


def test_fine_tuning_leads_from_images_to_a_report(tmp_path, monkeypatch):
    """All its commands, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        colours = torch.randint(256, (70, 64, 3), dtype=torch.uint8)
        Image.fromarray(colours.numpy()).save(tmp_path / "photos" / f"{i}.png")
    for command in commands("docs/fine-tuning.md"):
        few = ["--steps", "2"] if " train " in command else []
        assert main([*shlex.split(command)[1:], *few]) == 0, command
    psnr = [
        json.loads(Path("runs", run, "evaluations/test-last.json").read_text())["psnr"]
        for run in ("before", "tuned")
    ]
    assert psnr[0] == pytest.approx(psnr[1], abs=3) and psnr[0] != psnr[1]
    assert "photos-f8" in Path("report.html").read_text()


@pytest.mark.parametrize(
    "words", ["DDP", "torchrun", "mixed precision", "gradient accumulation", "pretrained", "mask"]
)
def test_a_search_finds_the_guide(words):
    assert words.lower() in (ROOT / "docs" / "guides.md").read_text().lower()


def test_the_library_examples_are_short():
    assert len(blocks("README.md")[0].strip().splitlines()) <= 20
    assert len(blocks("CONTRIBUTING.md")[0].strip().splitlines()) <= 40


# -- commands --------------------------------------------------------------------------------------

MINE = """
import mqvae

class Mine(mqvae.VQVAE):
    pass
"""


@cache
def known(command):
    return {*options_of(command), "--help"}


@pytest.mark.parametrize("name", [name for name in PAGES if commands(name)])
def test_commands_are_taken(name, tmp_path, monkeypatch):
    (tmp_path / "my.yaml").write_text("base: fashion-mnist-demo\n")
    (tmp_path / "my_module.py").write_text(MINE)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        Image.new("L", (80, 80), i).save(tmp_path / "photos" / f"{i}.png")
    np.save(tmp_path / "vectors.npy", np.eye(20, 8, dtype=np.float32))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in commands(name):
        command, *arguments = shlex.split(line)[1:]
        assert command in COMMANDS, line
        options = {a.partition("=")[0] for a in arguments if a.startswith("--")}
        if command == "train" and not options & {"--resume", "--help", "--help-all"}:
            preset, *rest = ["my.yaml" if a.endswith(".yaml") else a for a in arguments]
            # A sweep's values, NAME=A,B, are options of their own.
            swept = [f"--{a.partition(',')[0]}" for a in rest if re.match(r"[a-z_.]+=", a)]
            rest = [a for a in rest if a != "--sweep" and not re.match(r"[a-z_.]+=", a)]
            from_arguments([preset, *rest, *swept])
        else:
            assert options <= known(command), line


def test_commands_are_found():
    pages = ("vqgan", "training", "training-settings", "data-large")
    found = [line for page in pages for line in commands(f"docs/{page}.md")]
    assert "mqvae train my.yaml --task Adversarial --task.perceptual_weight 0" in found
    assert "mqvae decode runs/first codes/ --out images/" in commands("docs/data.md")
    assert any(line.endswith("--optimizer.codebook_lr 10") for line in found)


def test_commands_name_presets_that_exist():
    named = set()
    for name in PAGES:
        named |= set(
            re.findall(r"mqvae train ([a-z][\w/-]+)(?![\w/.-])", (ROOT / name).read_text())
        )
    named -= {"methods/NAME"}
    assert "digits-tiny" in named
    assert all(is_known(name) for name in named if not name.endswith("/")), named


def test_every_method_is_documented():
    pages = [ROOT / "docs" / name for name in ("methods.md", "methods-quantizers.md")]
    text = "".join(page.read_text() for page in pages)
    for name in method_names():
        assert f"`{name}`" in text, name


# -- the reference ---------------------------------------------------------------------------------

OLDER = {"LeastRecentlyUsed"}  # names that are read for one version more


def test_every_public_name_is_in_the_reference_once():
    pages = (ROOT / "docs" / "reference").glob("*.md")
    named = re.findall(r"^::: mqvae\.(\w+)$", "\n".join(p.read_text() for p in pages), re.MULTILINE)
    assert sorted(named) == sorted({*mqvae.__all__} - OLDER)

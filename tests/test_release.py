"""What a release and a shell are told."""

import fnmatch
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

import mqvae
from mqvae.cli import COMMANDS, main
from mqvae.provenance import UNKNOWN

ROOT = Path(__file__).parent.parent


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # Between two releases it is of the last one; before the first, of that.
    if "dev" not in mqvae.__version__ and mqvae.__version__ != UNKNOWN:
        assert citation["version"] == mqvae.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", citation["version"])
    assert citation["license"] == "MIT" and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()


def test_the_public_gate_is_the_one_by_hand():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    gate = set(re.findall(r"^(make \S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert {"make lint", "make numerics", "make test-all"} <= gate
    # The public host has machines for two jobs.
    gate = gate - {"make test-all"} | {"make test", "make test-beside"}
    assert gate <= set(commands)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {command.removeprefix("make ") for command in gate} <= set(targets)


def test_the_wheel_carries_what_the_program_reads(tmp_path):
    hatchling = pytest.importorskip("hatchling.builders.wheel")
    pytest.importorskip("hatch_vcs")  # which the version comes from
    pytest.importorskip("hatch_fancy_pypi_readme")
    [path] = hatchling.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(path) as wheel:
        found = set(wheel.namelist())
        weights = [file for file in wheel.infolist() if "/weights/tokenizers/" in file.filename]
        tokenizers = sum(file.compress_size for file in weights)
        code = sum(file.compress_size for file in wheel.infolist()) - tokenizers
        [metadata] = [name for name in found if name.endswith(".dist-info/METADATA")]
        _, readme = wheel.read(metadata).decode().split("\n\n", 1)
    # What an index shows has no link or picture that is only in the repository.
    assert readme.startswith("# mqvae") and "mqvae train photos/" in readme
    assert set(re.findall(r"\]\(([^)]*)", readme)) <= set(re.findall(r"https?:[^)]*", readme))
    assert "Held-out photographs" not in readme
    folders = {name.partition("/")[0] for name in found}
    version = mqvae.__version__.replace("+", r"\+")
    # That of a changed tree has the day at its end.
    assert len(folders) == 2 and "mqvae" in folders
    assert re.fullmatch(rf"mqvae-{version}([+.]d\d{{8}})?\.dist-info", max(folders))
    package = ROOT / "mqvae"
    read = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {str(p.relative_to(ROOT)) for p in read} <= found
    kinds = ("py.typed", ".pyi", "presets/*.yaml", "presets/methods/*.yaml")
    kinds += ("report/templates/*", "data/digits.npz", "weights/tokenizers/digits/*")
    for kind in kinds:
        assert fnmatch.filter(found, f"mqvae/*{kind}"), kind
    assert code < 6e5 and tokenizers < 8e6


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch, (folder / "mqvae.bash").open("w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["completion"]) == 0
    return folder / "mqvae.bash"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["doc"], {"doctor"}),
        ([""], set(COMMANDS)),
        (["train", "digits"], {"digits-tiny"}),
        (["train", "digits-tiny", "--trainer.dev"], {"--trainer.devices"}),
        (["train", "--res"], {"--resume"}),
        (["evaluate", "--che"], {"--checkpoint"}),
        (["encode", "some-run"], set()),
    ],
)
def test_a_shell_completes(script, typed, completed):
    words = " ".join(f"'{word}'" for word in ["mqvae", *typed])
    code = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _mqvae; "
    done = subprocess.run(
        ["bash", "--norc", "-euc", code + 'echo "${COMPREPLY[@]}"'],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == completed


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_completions_of_bash(script, tmp_path):
    done = subprocess.run(
        ["zsh", "-f", "-c", f"source {script}; print $_comps[mqvae]; whence -w _mqvae"],
        env={**os.environ, "ZDOTDIR": str(tmp_path)},  # where its cache goes
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "_bash_complete -o default -F _mqvae",
        "_mqvae: function",
    ]

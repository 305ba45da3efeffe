"""What a release and a shell are told."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import mqvae
from mqvae.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mqvae.__version__
    assert citation["license"] == "MIT" and citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()


def test_the_public_gate_is_the_one_by_hand():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step.get("run") for step in workflow["jobs"]["gate"]["steps"]]
    assert {"make install", "make lint", "make test"} <= set(commands)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"install", "lint", "test"} <= set(targets)


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

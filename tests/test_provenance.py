"""Which code a result is of: version, commit, and whether the tree was clean."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mqvae
from mqvae import provenance
from mqvae.provenance import Code, of
from mqvae.training import versions

ROOT = Path(__file__).parent.parent
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(root, *arguments):
    named = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    options = {"check": True, "capture_output": True, "text": True}
    return subprocess.run(["git", "-C", str(root), *named, *arguments], **options).stdout.strip()


def commit(root, text):
    (root / "mqvae" / "__init__.py").write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "a commit")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path):
    """A checkout of two commits."""
    root = tmp_path / "tree"
    (root / "mqvae").mkdir(parents=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, root)
    git(tmp_path, "init", "-q", "tree")
    commit(root, "1")
    commit(root, "2")
    return root


def built(root):
    """The version that a build of the tree says."""
    pytest.importorskip("hatch_vcs")
    command = [sys.executable, "-m", "hatchling", "version"]
    options = {"check": True, "capture_output": True, "text": True, "cwd": root}
    return subprocess.run(command, **options).stdout.strip()


@needs_git
def test_a_checkout_says_commit_and_version(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert of(checkout / "mqvae") == Code(f"0.1.dev2+g{head[:9]}", head, True)
    git(checkout, "tag", "v1.4.2")
    git(checkout, "tag", "other-9")  # no version
    assert of(checkout / "mqvae") == Code("1.4.2", head, True)
    after = commit(checkout, "3")
    short = git(checkout, "describe", "--tags", "--long", "--match", "v*").rpartition("-")[2]
    assert of(checkout / "mqvae") == Code(f"1.4.3.dev1+{short}", after, True)


@needs_git
@pytest.mark.covering(1)
@pytest.mark.parametrize("tag", [None, "v1.4.2", "v1.4.2rc1"])
@pytest.mark.parametrize("since", [0, 1])
def test_a_build_says_the_version_that_the_checkout_says(checkout, tag, since):
    if tag:
        git(checkout, "tag", tag)
    if since:
        commit(checkout, "3")
    assert built(checkout) == of(checkout / "mqvae").version


@needs_git
def test_a_changed_package_is_told(checkout):
    (checkout / "README.md").write_text("no code")
    assert of(checkout / "mqvae").clean
    (checkout / "mqvae" / "new.py").write_text("x = 1")
    assert of(checkout / "mqvae").clean is False
    (checkout / "mqvae" / "new.py").unlink()
    (checkout / "mqvae" / "__init__.py").write_text("x = 1")
    assert of(checkout / "mqvae").clean is False
    assert of(checkout / "mqvae").described()["tree"] == "changed"


def test_a_folder_that_was_copied_says_that_it_does_not_know(tmp_path):
    (tmp_path / "mqvae").mkdir()
    assert of(tmp_path / "mqvae") == Code("0.0", None, None)
    assert of(tmp_path / "mqvae").described() == {"commit": "unknown", "tree": "unknown"}
    # As a source distribution has it.
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: mqvae\nVersion: 1.2.3\n")
    assert of(tmp_path / "mqvae") == Code("1.2.3", None, None)
    (tmp_path / "PKG-INFO").write_text("Name: mqvae\nVersion: 1.2.3.dev4+gabcdef123\n")
    assert of(tmp_path / "mqvae") == Code("1.2.3.dev4+gabcdef123", "abcdef123", True)


@needs_git
def test_git_that_fails_fails_nothing(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    assert of(checkout / "mqvae").version == "0.0"
    monkeypatch.undo()
    (checkout / ".git" / "HEAD").write_text("nonsense")
    assert of(checkout / "mqvae").version == "0.0"


def test_files_say_which_code_made_them():
    assert versions()["mqvae"] == mqvae.__version__ == provenance.code().version
    assert set(versions()) == {"mqvae", "torch", "python", "commit", "tree"}
    if (ROOT / ".git").exists() and shutil.which("git"):
        assert versions()["commit"] == git(ROOT, "rev-parse", "HEAD")
        assert versions()["tree"] in ("clean", "changed")


def test_importing_mqvae_asks_nobody():
    check = "import sys, mqvae; assert not {'mqvae.provenance', 'subprocess'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", check], env=environment, check=True, timeout=60)

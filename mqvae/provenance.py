"""Which code this is: its version, its commit, and whether it was changed since."""

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
UNKNOWN = "0.0"  # as pyproject.toml has it, for a folder that was copied without .git
SECONDS = 10  # that git may take


@dataclass(frozen=True)
class Code:
    """The code that is running."""

    # As `pip` knows it; of a checkout by its tags and commits, as a build would say it.
    version: str
    commit: str | None = None  # its commit; None where that is not known
    # Whether the package is as that commit has it; None where that is not known.
    clean: bool | None = None

    def described(self) -> dict[str, str]:
        """As files have it that say what they were made with."""
        trees = {True: "clean", False: "changed", None: "unknown"}
        return {"commit": self.commit or "unknown", "tree": trees[self.clean]}


@cache
def code() -> Code:
    """The code that is running, asked once for all: of git in a checkout, else of the build."""
    return of(PACKAGE)


def of(package: Path) -> Code:
    """The code of a package's folder; never fails."""
    root = package.parent
    if (root / ".git").exists():
        try:
            return _of_checkout(root, package)
        except (OSError, subprocess.SubprocessError, ValueError):
            pass  # no git, or none that reads this
    version = _of_build(root)
    commit = re.search(r"\+g([0-9a-f]{7,40})\b", version)
    # A build says of a changed tree on which day it was.
    clean = None if commit is None else not re.search(r"\.d\d{8}$", version)
    return Code(version, commit[1] if commit else None, clean)


def _of_checkout(root: Path, package: Path) -> Code:
    commit = _git(root, "rev-parse", "HEAD")
    clean = not _git(root, "status", "--porcelain", "--", package.name)
    try:
        told = _git(root, "describe", "--tags", "--long", "--match", "v[0-9]*")
        tag, distance, short = told.rsplit("-", 2)
        version = tag.removeprefix("v")
    except subprocess.CalledProcessError:  # there is no tag
        version, distance = UNKNOWN, _git(root, "rev-list", "--count", "HEAD")
        short = f"g{commit[:9]}"
    if distance != "0":
        first, last = re.fullmatch(r"(.*?)(\d+)", version).groups()  # type: ignore[union-attr]
        version = f"{first}{int(last) + 1}.dev{distance}+{short}"
    return Code(version, commit, clean)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return done.stdout.strip()


def _of_build(root: Path) -> str:
    """The version that a wheel or a source distribution has recorded."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution("mqvae")
        # Another tree may be installed than the one that runs.
        if Path(str(found.locate_file("mqvae"))).resolve() == root / "mqvae":
            return found.version
    except PackageNotFoundError:
        pass
    try:
        text = (root / "PKG-INFO").read_text(encoding="utf-8")
    except OSError:
        return UNKNOWN
    told = re.search(r"^Version: (\S+)$", text, re.MULTILINE)
    return told[1] if told and re.search(r"^Name: mqvae$", text, re.MULTILINE) else UNKNOWN

"""What may import what."""

import ast
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mqvae
import mqvae.core

ROOT = Path(mqvae.__file__).parent

# Imports point one way: a part imports itself, parts of its own row, and rows above.
ORDER = [
    {"cache", "errors", "notebook", "optional", "places", "provenance", "ranges", "shown"},
    {"core", "files"},
    {"coding", "data", "networks", "refine", "weights"},
    {"progress", "runs", "tasks"},
    {"config", "metrics"},
    {"tokenizer", "training"},
    {"diagnosis", "prior", "report"},
    {"cli"},
    {"__main__"},
]
ROW = {part: row for row, parts in enumerate(ORDER) for part in parts}

NOT_FOR_CORE = [
    "PIL",
    "huggingface_hub",
    "jsonargparse",
    "lightning",
    "lightning_fabric",
    "matplotlib",
    "pytorch_lightning",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
    "torch_fidelity",
    "torchmetrics",
    "torchvision",
    "yaml",
]

ALONE = """
import sys

blocked = set({blocked!r})

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}: it is blocked", name=name)

sys.meta_path.insert(0, Absent())
import importlib
for name in {names!r}:
    importlib.import_module(name)
ours = [name.split(".") for name in sys.modules if name.startswith("mqvae.")]
print(*sorted({{part for _, part, *_ in ours}}))
print(*sorted(blocked & {{name.partition(".")[0] for name in sys.modules}}))
"""


def import_alone(names: list[str], blocked: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a new process in which some packages are absent."""
    return subprocess.run(
        [sys.executable, "-c", ALONE.format(blocked=blocked, names=names)],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_core_imports_with_torch_alone():
    names = [m.name for m in pkgutil.walk_packages(mqvae.core.__path__, "mqvae.core.")]
    assert {"mqvae.core.rules", "mqvae.core.hypergradients", "mqvae.core.quantizers"} <= set(names)
    done = import_alone(["mqvae", *names], NOT_FOR_CORE)
    assert done.returncode == 0, done.stderr
    # Nor does the root bring in anything above it.
    assert done.stdout == "core errors shown\n\n"


def test_the_root_imports_without_torch():
    done = import_alone(["mqvae"], ["torch", "numpy", *NOT_FOR_CORE])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n\n"


def test_every_public_name_is_there():
    assert {"Meta", "VQNetwork", "VectorQuantizer", "vqvae"} <= set(mqvae.__all__)
    assert set(dir(mqvae)) >= set(mqvae.__all__)
    assert len(set(mqvae.__all__)) == len(mqvae.__all__)
    others = {"LeastRecentlyUsed": "ReplaceUnused"}  # its name in 0.1
    for name in mqvae.__all__:
        assert getattr(mqvae, name).__name__ == others.get(name, name)
    with pytest.raises(AttributeError, match="Nothing"):
        _ = mqvae.Nothing


def test_what_is_blocked_is_absent():
    done = import_alone(["yaml"], ["yaml"])
    assert done.returncode == 1
    assert "it is blocked" in done.stderr


def module_of(path: Path, root: Path) -> tuple[str, ...]:
    """mqvae/core/passes.py → ("core", "passes"), mqvae/__init__.py → ()."""
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of all that a file imports, inside functions too."""
    package = ("mqvae", *path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from mqvae import core` names a part, `from mqvae import Meta` the root.
                name = f"{base}.{alias.name}"
                known = base != "mqvae" or alias.name in ROW
                yield node.lineno, name if known else base


def complaints(root: Path) -> list[str]:
    """Imports that point the wrong way."""
    found = []
    for path in sorted(root.rglob("*.py")):
        module = module_of(path, root)
        if not module:
            continue  # the public names
        part = module[0]
        if part not in ROW:
            found.append(f"{path.relative_to(root)}: give mqvae.{part} a place in ORDER.")
            continue
        for line, name in imports(path, root):
            top, *rest = name.split(".")
            where = f"{path.relative_to(root)}:{line} imports {name}"
            if top == "mqvae" and not rest:
                # The root's names are those of these parts: they would import themselves.
                if part in {"core", "networks", "tasks"}:
                    found.append(f"{where}, which imports {part}.")
            elif top == "mqvae":
                if rest[0] != part and ROW.get(rest[0], len(ORDER)) >= ROW[part]:
                    found.append(f"{where}, which is not below {part}.")
            elif part == "core" and top != "torch" and top not in sys.stdlib_module_names:
                found.append(f"{where}: the core stands on torch alone.")
    return found


def test_imports_point_one_way():
    assert not complaints(ROOT), "\n".join(complaints(ROOT))


def graph_of(root: Path, part: str) -> dict[str, set[str]]:
    """Modules of a part, and those that each imports: late, and for types alone, too.

    Who imports from a package imports the package as well, unless it is inside.
    """
    modules = {".".join(("mqvae", *module_of(p, root))): p for p in (root / part).rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = graph.setdefault(module, set())
        for _, name in imports(path, root):
            names = name.split(".")
            above = [".".join(names[: end + 1]) for end in range(len(names))]
            known = [name for name in above if name in modules]
            found |= {m for m in known if not f"{module}.".startswith(f"{m}.")}
            found |= set(known[-1:]) - {module}
    return graph


def test_the_core_has_no_circle():
    graph = graph_of(ROOT, "core")
    assert len(graph) > 30
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "line",
    [
        "from mqvae.core import a",
        "def f():\n    import mqvae.core.a",
        "if TYPE_CHECKING:\n    from mqvae.core.a import A",
        "from .a import A",
    ],
)
def test_a_circle_is_found(tmp_path, line):
    (tmp_path / "core").mkdir()
    (tmp_path / "core/__init__.py").write_text("")
    (tmp_path / "core/a.py").write_text("from mqvae.core.b import B")
    TopologicalSorter(graph_of(tmp_path, "core")).prepare()
    (tmp_path / "core/b.py").write_text(line)
    with pytest.raises(CycleError):
        TopologicalSorter(graph_of(tmp_path, "core")).prepare()


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("core/a.py", "import numpy", "core/a.py:1 imports numpy: the core stands on torch alone."),
        (
            "core/a.py",
            "def f():\n    from PIL import Image",
            "core/a.py:2 imports PIL.Image: the core",
        ),
        ("core/a.py", "from mqvae.networks.vqvae import vqvae", "which is not below core."),
        (
            "core/a.py",
            "from ..tasks import Reconstruction",
            "imports mqvae.tasks.Reconstruction, which",
        ),
        ("core/a.py", "from mqvae import Meta", "core/a.py:1 imports mqvae, which imports core."),
        ("networks/a.py", "import mqvae.data", "which is not below networks."),
        (
            "networks/__init__.py",
            "from mqvae import tasks",
            "imports mqvae.tasks, which is not below",
        ),
        ("data/a.py", "from mqvae.training import Training", "which is not below data."),
        ("metrics.py", "from . import report", "imports mqvae.report, which is not below metrics."),
        ("tasks.py", "from mqvae.cli import main", "which is not below tasks."),
        ("training.py", "import mqvae.tokenizer", "which is not below training."),
        ("report/a.py", "import mqvae.cli", "which is not below report."),
        ("core/a.py", "import mqvae.other", "which is not below core."),
        ("other.py", "", "other.py: give mqvae.other a place in ORDER."),
        ("core/a.py", "import math\nimport torch.nn\nfrom .passes import call", None),
        ("networks/a.py", "import numpy\nfrom mqvae.core.network import VQNetwork", None),
        ("tasks.py", "from mqvae import Meta", "tasks.py:1 imports mqvae, which imports tasks."),
        ("tasks.py", "from mqvae.networks.discriminator import D", None),
        ("training.py", "from mqvae import Meta", None),
        ("cli.py", "import mqvae\nfrom mqvae import config, report", None),
    ],
)
def test_the_check_sees_what_it_should(tmp_path, path, text, complaint):
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    found = complaints(tmp_path)
    if complaint is None:
        assert not found
    else:
        assert len(found) == 1
        assert complaint in found[0]


WRITTEN = re.compile(r"\bmqvae(?:\.[A-Za-z_]\w*)+")

FRESH = """
import os, sys
from functools import reduce
import jsonargparse, torch  # once, not in every child
import mqvae

for name in sys.argv[1:]:
    child = os.fork()  # each where nothing else is imported
    if not child:
        reduce(getattr, name.split(".")[1:], mqvae)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="asks a fresh interpreter for each name")
def test_what_pages_write_is_reachable_after_import_mqvae():
    root = Path(mqvae.__file__).parents[1]
    pages = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("examples/*.py")]
    names = {name for page in pages for name in WRITTEN.findall(page.read_text(encoding="utf-8"))}
    assert "mqvae.training.begin" in names
    # Of each module one name; its others are there once it is imported.
    by_module = {name.rpartition(".")[0]: name for name in sorted(names) if name.count(".") > 1}
    by_module = {m: n for m, n in by_module.items() if m.count(".") > 1 or m == "mqvae.training"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *by_module.values()],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout == "", done.stderr
    for name in sorted(names):
        reduce(getattr, name.split(".")[1:], mqvae)


def test_modules_that_are_reachable_are_no_public_names():
    stub = Path(mqvae.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    assert set(re.findall(r"^from \. import (\w+) as", stub, re.MULTILINE)) == mqvae.MODULES
    assert not mqvae.MODULES & set(mqvae.__all__)

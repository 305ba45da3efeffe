"""`mqvae doctor`."""

import platform
import sys
from collections.abc import Iterator
from typing import NamedTuple


class Finding(NamedTuple):
    """A line of the answer.

    Attributes:
        name: What was looked for.
        here: Whether it is there.
        text: Where or which it is, or how to get it; and what it is for.
    """

    name: str
    here: bool
    text: str


def doctor() -> int:
    """Show versions, devices, data sets, trained networks and optional packages that are here.

    Of what is missing it says what it would be for and how to get it. Downloads nothing.
    """
    for title, findings in (
        ("Program", _program()),
        ("Devices", _devices()),
        ("Data sets", _data()),
        ("Trained networks", _weights()),
        ("Optional packages", _extras()),
    ):
        _show(title, list(findings))
    return 0


def _program() -> Iterator[Finding]:
    from importlib.metadata import version

    from mqvae.training import versions

    for name, number in versions().items():
        yield Finding(name, True, number)
    yield Finding("torchvision", True, version("torchvision"))
    yield Finding("system", True, f"{platform.system()} {platform.release()}, {platform.machine()}")


def _devices() -> Iterator[Finding]:
    import torch

    from mqvae.training import device_name

    yield Finding("cpu", True, device_name(torch.device("cpu")))
    for number in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(number).total_memory / 2**30
        name = f"cuda:{number}"
        yield Finding(name, True, f"{device_name(torch.device(name))}, {memory:.0f} GiB")
    if not torch.cuda.is_available():
        built = f"made for CUDA {torch.version.cuda}" if torch.version.cuda else "made without CUDA"
        yield Finding("cuda", False, f"no GPU that this torch, {built}, can use: trains on the cpu")
    if torch.backends.mps.is_available():
        yield Finding("mps", True, "Apple's GPU")


def _data() -> Iterator[Finding]:
    from mqvae.data import DATASETS, DataNotFound, cache_folder, load
    from mqvae.optional import ExtraMissing

    for name, row in DATASETS.items():
        try:
            yield Finding(name, True, load(name, "test", download=False).source)
        except DataNotFound as error:
            advice = str(error).strip().splitlines()[-1]  # where it was looked for comes before
            folder = cache_folder(name)
            if row.downloads:
                advice = f"downloaded when first asked for, or to be put into {folder}. {advice}"
            else:
                advice = advice.replace(" there", f" into {folder}")
            yield Finding(name, False, advice)
        except (OSError, ValueError, ExtraMissing) as error:
            yield Finding(name, False, str(error))


def _weights() -> Iterator[Finding]:
    from mqvae.weights import NETWORKS, find

    for name, network in NETWORKS.items():
        path = find(name)
        text = str(path) if path else f"mqvae weights {name}"
        yield Finding(name, path is not None, f"{text} (for {network.purpose})")


def _extras() -> Iterator[Finding]:
    from importlib.metadata import version

    from mqvae.optional import EXTRAS

    for name, extra in EXTRAS.items():
        here = not extra.missing
        packages = (module.replace("_", "-") for module in extra.modules)
        there = ", ".join(f"{each} {version(each)}" for each in packages) if here else ""
        text = there or f"pip install 'mqvae[{name}]'"
        yield Finding(name, here, f"{text} (for {extra.enables})")


def _show(title: str, findings: list[Finding]) -> None:
    """A line each; on a terminal, folded to its width and in colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = max(len(finding.name) for finding in findings)
    if not sys.stdout.isatty():
        print(title)
        for name, here, text in findings:
            print(f"  {name:<{width}}  {_word(here):<7}  {text}")
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for least in (width + 2, len(_word(False)), 1):
        table.add_column(min_width=least)
    for name, here, text in findings:
        table.add_row(
            Text(f"  {name}"), Text(_word(here), "green" if here else "yellow"), Text(text)
        )
    console = Console(highlight=False)
    console.print(Text(title, "bold"))
    console.print(table)


def _word(here: bool) -> str:
    return "here" if here else "missing"

"""What a step, the quantizer, a whole run, memory and processes cost: `python -m benchmarks`.

Sections are measured one by one. Each leaves `performance/SECTION.json` and its pictures in the
folder it is given, and the pages there, `PAGES`, are made of all of them.
"""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import Table, hardware
from mqvae.errors import MqvaeError
from mqvae.files import read_json
from mqvae.optional import require

SECTIONS = {
    "step": "what a step of each method costs, relative to the VQ-VAE's",
    "quantizer": "the quantizer beside the bare matrix product and a peer",
    "whole": "the loop around the step, the start, evaluation and encoding",
    "scaling": "how times grow with sizes, as plots",
    "memory": "the most memory that a step of each rule takes",
    "processes": "a step at two processes, what it sends, and many GPUs by a model",
}

CHECKS = "checks"
"""The section of `python -m benchmarks gpu`'s own."""

ON_CPUS = "processes"
"""The one that is measured on CPUs alone."""

OF_A_PRESET = ("memory", "processes")
"""Those that measure the steps of any preset."""

PAGES = {
    "performance.md": ("Performance of a training step", ("step", "memory", CHECKS)),
    "performance-quantizer.md": (
        "Performance of the quantizer and of a whole run",
        ("quantizer", "whole"),
    ),
    "performance-sizes.md": (
        "Performance at growing sizes and over processes",
        ("scaling", "processes"),
    ),
}
"""Title and sections of each page."""

INTRODUCTION = """\
Made by `python -m benchmarks`; the numbers are in `performance/`. What is compared takes turns
within one process, in an order drawn anew every round, after two rounds that do not count. A ratio
is that of the medians; the quartiles are of the ratios within a round. *At most* is a bound set
beforehand, *held* whether the ratio stayed below it.{} More measurements: {}.
"""

COUNTS = """ *By operation count* takes encoder
and decoder alike and a backward pass for two forward ones. What was tried and did not pay is in
[benchmarks/notes.md](../benchmarks/notes.md)."""

ABSENT = """\
## Not measured on a GPU

Missing here: {}. Missing elsewhere: the tables and figures at the scale `paper`
([reproduction.md](reproduction.md) is of the scale `cpu`), the tests of `tests/test_cuda.py`, and
several processes by NCCL. One command does all but the last, and resumes where it was stopped:

    python -m benchmarks gpu --out docs --minutes 60
"""


def measure(
    section: str,
    out: Path,
    *,
    device: str = "cpu",
    rounds: int | None = None,
    only: str = "",
    preset: str | None = None,
) -> list[Table]:
    """Measure a section and write its files and the page.

    Args:
        section: One of `SECTIONS`.
        out: Folder of the page.
        device: `cpu` or `cuda`.
        rounds: Turns of each contestant; None for the section's own.
        only: Rows whose name holds this.
        preset: Whose steps the sections `OF_A_PRESET` measure, or the path of a YAML file; None
            for the demo's.

    Raises:
        ValueError: if there is no such section or preset, or nothing in it holds `only`, or it is
            one whole.
        ExtraMissing: if matplotlib, which draws the plots, is not installed.
    """
    require("matplotlib")  # before measuring, not after
    if preset is not None and section not in OF_A_PRESET:
        raise MqvaeError(
            f"the section '{section}' has sizes of its own: leave out --preset, which is for "
            f"{' and '.join(OF_A_PRESET)}."
        )
    if only and section == "scaling":
        raise MqvaeError(f"the section '{section}' is one whole: leave out --only.")
    if section == "scaling":
        from benchmarks import scaling

        tables = scaling.run(device=device, rounds=rounds)
    elif section in OF_A_PRESET:
        from benchmarks import memory, processes

        of = {"memory": memory.run, "processes": processes.run}[section]
        tables = of(device=device, rounds=rounds, only=only, preset=preset)
    else:
        from benchmarks import quantizer, step, whole

        sections = {"step": step.run, "quantizer": quantizer.run, "whole": whole.run}
        if section not in sections:
            raise MqvaeError(f"there is no section '{section}': {', '.join(SECTIONS)}.")
        tables = sections[section](device=device, rounds=rounds, only=only)
    if not any(table.rows for table in tables):
        raise MqvaeError(f"no row's name holds '{only}' in the section '{section}'.")
    write(section, tables, out, device=device, rounds=rounds, only=only, preset=preset)
    return tables


def write(
    section: str,
    tables: Sequence[Table],
    out: Path,
    *,
    device: str,
    rounds: int | None,
    only: str,
    preset: str | None = None,
) -> None:
    """The section's JSON and pictures, and the page of all sections."""
    from benchmarks.plots import draw

    path = file_of(out, section, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [
        ("--accelerator", device if device != "cpu" else ""),
        ("--rounds", str(rounds or "")),
    ]
    options.append(("--only", f"'{only}'" if only else ""))
    options.append(("--preset", preset or ""))
    named = "gpu" if section == CHECKS else section
    command = " ".join(
        ["python -m benchmarks", named, *(f"{name} {value}" for name, value in options if value)]
    )
    pictures = [made.name for table in tables if (made := draw(table, path.parent, device))]
    content: dict[str, Any] = {
        "section": section,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(device),
        "pictures": pictures,
        "tables": [table.json() for table in tables],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    for name in PAGES:
        (out / name).write_text(page(path.parent, name), encoding="utf-8")


def file_of(out: Path, section: str, device: str) -> Path:
    """Where the results of a section are, those of each kind of device by themselves."""
    return out / "performance" / f"{section}{'' if device == 'cpu' else f'-{device}'}.json"


def page(folder: Path, name: str = "performance.md") -> str:
    """One of `PAGES`, from the sections in a folder."""
    title, sections = PAGES[name]
    others = ", ".join(f"[{other}]({other})" for other in PAGES if other != name)
    first = name == "performance.md"
    parts = [f"# {title}\n", INTRODUCTION.format(COUNTS if first else "", others)]
    for section in sections:
        words = {**SECTIONS, CHECKS: "tests, and the paper's sizes"}[section]
        for suffix, where in (("", ""), ("-cuda", " on a GPU")):
            path = folder / f"{section}{suffix}.json"
            if not path.is_file():
                continue
            content = read_json(path)
            machine = ", ".join(f"{name} {value}" for name, value in content["hardware"].items())
            parts.append(
                f"## {section.capitalize()}{where}: {words}\n\n"
                f"`{content['command']}`, {content['date']}, on {machine}.\n"
            )
            parts += [Table(**table).markdown() + "\n" for table in content["tables"]]
            parts += [f"![{name}](performance/{name})\n" for name in content["pictures"]]
    absent = [s for s in SECTIONS if s != ON_CPUS and not (folder / f"{s}-cuda.json").is_file()]
    if first and absent:
        parts.append(ABSENT.format(", ".join(absent)))
    return "\n".join(parts)

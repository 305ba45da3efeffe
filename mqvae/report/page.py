"""The page: its words in order, and the file."""

import math
import os
import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mqvae.errors import MqvaeError
from mqvae.files import write_whole
from mqvae.report.charts import COLOURS, mark
from mqvae.report.codebook import decoded
from mqvae.report.curves import codes, dynamics, training
from mqvae.report.limits import limits
from mqvae.report.pictures import codebooks, matrices, samples
from mqvae.report.rates import rates
from mqvae.report.reading import read_runs
from mqvae.report.run import Run
from mqvae.report.settings import settings, sought, written
from mqvae.report.tables import (
    as_csv,
    comparisons,
    details,
    figures,
    measured_on,
    one_rule,
    others,
    results,
    swept,
)
from mqvae.report.words import count, enumerate_words


def write_report(
    runs: Sequence[Path], out: Path, *, title: str | None = None, reload: float | None = None
) -> Path:
    """Runs -> one self-contained HTML page.

    The page has the results with the cost of a step beside them, curves, pictures, codebooks, code
    usage and settings. It loads nothing from elsewhere, and the same runs give the same bytes. A
    run that is still training is shown as far as it got.

    Args:
        runs: folders that `mqvae train` wrote; cost and first figure are compared to the first.
        out: the page to write, whole or not at all; folders above it are made.
        title: heading of the page; None names the dataset.
        reload: seconds after which the page loads itself again; None if it does not.

    Returns:
        `out`.

    Raises:
        ValueError: no runs, a path that is not a run, a damaged file in one, or `out` is a folder.

    >>> write_report([], Path("report.html"))
    Traceback (most recent call last):
    ValueError: no runs: expected at least one folder that `mqvae train` wrote, got none
    """
    out = Path(out)
    if out.is_dir():
        raise MqvaeError(f"{out} is a folder: expected the name of a file, such as report.html")
    read = read_runs(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    page = render(read, title=title, folder=out.parent, reload=reload)
    write_whole(out, page.encode(errors="replace"))
    return out


def render(
    runs: Sequence[Run],
    *,
    title: str | None = None,
    folder: Path = Path(),
    reload: float | None = None,
) -> str:
    """The page as text.

    Args:
        runs: the runs, in the order of their rows.
        title: heading of the page; None names the dataset.
        folder: where the page will lie; commands name the runs from there.
        reload: seconds after which the page loads itself again; None if it does not.
    """
    weights = [decoded(run) for run in runs]
    found = settings(runs)
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    return (
        environment("mqvae.report")
        .get_template("page.html")
        .render(
            title=title or f"Vector-quantized networks on {enumerate_words(datasets)}",
            lead=_lead(runs, datasets),
            runs=runs,
            marks=[mark(run.name, i) for i, run in enumerate(runs)],
            columns=(columns := [*swept(found), *results(runs)]),
            csv=quote(as_csv(runs, columns)),
            rule=one_rule(runs),
            many=len(runs) > COLOURS,
            comparisons=comparisons(runs),
            measured=measured_on(runs),
            others=others(runs),
            notes=_notes(runs),
            figures=[figure for figure in figures(runs).values() if figure.protocol],
            rates=rates(runs),
            training=training(runs),
            dynamics=dynamics(runs),
            samples=samples(runs, details(runs), weights),
            codebooks=codebooks(runs, weights),
            matrices=matrices(runs),
            promised=any(run.pictures is None or run.pictures for run in runs),
            codes=codes(runs),
            limits=limits(runs),
            settings=found,
            example=next((f"{key}={row[0]}" for key, row in found.differing.items()), "seed=0"),
            sought=sought(runs, found),
            reload=reload,
            origins=_origins(runs),
            commands=_commands(runs, folder),
        )
    )


@cache
def environment(*packages: str) -> Environment:
    """Where templates are looked for, package by package; what they are given is escaped."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["breakable"] = breakable
    return made


def breakable(name: str) -> Markup:
    """A dotted name that may wrap behind its dots.

    >>> breakable("data.side")
    Markup('data.<wbr>side')
    """
    return Markup(re.sub(r"(?<=\w)\.(?=[a-zA-Z_])", ".<wbr>", escape(name)))


def _lead(runs: Sequence[Run], datasets: Sequence[str]) -> str:
    """What is compared, in one sentence."""
    planned = {run.steps if run.finished else run.planned_steps for run in runs}
    tested = {run.images for run in runs if isinstance(run.protocol.get("images"), int)}
    each, same = (" each", "the same ") if len(runs) > 1 else ("", "")
    sentence = f"{count(len(runs), 'network')} trained".capitalize()
    if len(planned) == 1 and (steps := planned.pop()):
        sentence += f" for {steps:,} steps{each}"
    sentence += f" on {enumerate_words(datasets)}"
    for images in tested if len(tested) == 1 else ():
        done = "" if all(run.protocol for run in runs) else ", where finished,"
        sentence += f" and{done} measured on {same}{images}"
    return f"{sentence}."


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing two rows."""
    notes = []
    protocols = {written(run.protocol) for run in runs if run.protocol}
    described = {(key, each.protocol) for run in runs for key, each in run.figures.items()}
    described = {(key, protocol) for key, protocol in described if protocol}
    if len({run.dataset for run in runs}) > 1:
        notes.append("The runs were trained on different data: their rows cannot be compared.")
    elif len({run.kind for run in runs}) > 1:
        notes.append("The runs have different tasks: their rows cannot be compared.")
    elif len(protocols) > 1 or len({key for key, _ in described}) < len(described):
        notes.append("The runs were measured under different protocols (below): compare with care.")
    if len({run.steps for run in runs if run.finished}) > 1:
        notes.append("The runs made different numbers of steps.")
    for run in runs:
        step = run.number("step")
        if run.figures and step is not None and run.steps is not None and step < run.steps:
            notes.append(
                f"{run.name} was measured at step {step:,.0f}; it has made {run.steps:,} steps."
            )
        values = ((figure.title, run.number(key)) for key, figure in run.figures.items())
        bad = [f"{name} is {v}" for name, v in values if v is not None and not math.isfinite(v)]
        if bad:
            notes.append(f"{run.name}: {enumerate_words(bad)} on {run.images}.")
        if skipped := run.number("skipped_steps"):
            notes.append(
                f"{run.name} skipped {skipped:,.0f} training steps, in which a number was not "
                "finite."
            )
        if run.failure:
            cause = run.failure.get("cause")
            notes.append(f"{run.name} failed, and is shown as far as it got: {cause}")
    if unfinished := [run.name for run in runs if not run.finished and not run.failure]:
        notes.append(f"Unfinished, shown as far as it got: {enumerate_words(unfinished)}.")
    return notes


def _origins(runs: Sequence[Run]) -> dict[str, list[str]]:
    """When, where and with what the runs were made: small print, enough to do it again."""
    told: dict[str, list[object]] = {
        "Data": [run.summary.get("source") for run in runs],
        "Protocol": [run.protocol for run in runs],
        "Device": [run.summary.get("device") for run in runs],
        "Versions": [run.summary.get("versions") for run in runs],
    }
    date = f"{max(run.written for run in runs):%Y-%m-%d %H:%M} UTC"
    return {"Date": [date]} | {name: _distinct(runs, values) for name, values in told.items()}


def _commands(runs: Sequence[Run], folder: Path) -> list[str]:
    """What makes runs and page again, from the page's folder."""
    paths = [Path(os.path.relpath(run.path, folder)).as_posix() for run in runs]
    commands = [["train", f"{path}/config.yaml", "--out", f"{path}-again"] for path in paths]
    commands += [["evaluate", path] for path in paths]
    commands += [["report", *paths, "--out", "report.html"]]
    return [shlex.join(["mqvae", *command]) for command in commands]


def _distinct(runs: Sequence[Run], values: Sequence[object]) -> list[str]:
    """One line where all runs that know a value agree, otherwise one per run."""
    known = [(run.name, written(value)) for run, value in zip(runs, values, strict=True) if value]
    if len({value for _, value in known}) <= 1:
        return [value for _, value in known[:1]]
    return [f"{name}: {value}" for name, value in known]

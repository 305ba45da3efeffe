"""The page: its sections in order, and the file."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from mqvae.report.figures import codes, curves_section, dynamics, samples
from mqvae.report.markup import Html, element, join, text
from mqvae.report.run import Run, read_runs
from mqvae.report.tables import results, settings, written
from mqvae.report.words import count, enumerate_words


def write_report(runs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Runs -> one self-contained HTML page.

    The page has the results with the cost of a step beside them, curves, samples, code usage and
    settings. It loads nothing from elsewhere, and the same runs give the same bytes. A run that is
    still training is shown as far as it got.

    Args:
        runs: folders that `mqvae train` wrote; cost and MSE are compared to the first.
        out: the page to write, whole or not at all; folders above it are made.
        title: heading of the page; None names the dataset.

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
        raise ValueError(f"{out} is a folder: expected the name of a file, such as report.html")
    read = read_runs(runs)
    page = render(read, title=title, folder=out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def render(runs: Sequence[Run], *, title: str | None = None, folder: Path = Path()) -> str:
    """The page as text.

    Args:
        runs: the runs, in the order of their rows.
        title: heading of the page; None names the dataset.
        folder: where the page will lie; commands name the runs from there.
    """
    datasets = list(dict.fromkeys(run.dataset for run in runs))
    heading = title or f"Vector-quantized networks on {enumerate_words(datasets)}"
    sections = [
        _results(runs),
        curves_section(runs),
        dynamics(runs),
        samples(runs),
        codes(runs),
        element("section", element("h2", "Settings"), settings(runs)),
    ]
    template = Template(_resource("page.html"))
    return template.substitute(
        title=text(heading),
        style=_resource("style.css").strip(),
        lead=text(_lead(runs, datasets)),
        sections=join([section for section in sections if section], "\n"),
        footer=_footer(runs, folder),
    )


def _resource(name: str) -> str:
    return files("mqvae.report").joinpath(name).read_text(encoding="utf-8")


def _lead(runs: Sequence[Run], datasets: Sequence[str]) -> str:
    """What is compared, in one sentence."""
    planned = {run.steps if run.finished else run.planned_steps for run in runs}
    updates = planned.pop() if len(planned) == 1 else None
    each = " each" if len(runs) > 1 else ""
    trained = f" for {updates:,} updates{each}" if updates else ""
    sentence = f"{count(len(runs), 'network')} trained{trained} on {enumerate_words(datasets)}"
    tested = {(_images(run), str(run.protocol.get("split", "test"))) for run in runs}
    tested = {(images, split) for images, split in tested if images}
    if len(tested) == 1:
        images, split = tested.pop()
        same = "the same " if len(runs) > 1 else ""
        sentence += f" and measured on {same}{images:,} {split} images"
    return sentence[0].upper() + sentence[1:] + "."


def _images(run: Run) -> int | None:
    images = run.protocol.get("images")
    return images if isinstance(images, int) else None


def _results(runs: Sequence[Run]) -> Html:
    caption = "Quality on the test set, and what it cost."
    if len(runs) > 1:
        caption += " Bold: best of its column. × beside the cost: ratio to the first run."
    explain = (
        "Perplexity: how many codes are in effective use. Usage: share of codes chosen at least "
        "once. Gradient gap: how far the gradient that reaches the encoder, taken at the quantized "
        "point, is from the one at the encoder's own output. Cost of a step: median time of one "
        "update."
    )
    return element(
        "section",
        element("h2", "Results"),
        results(runs, caption),
        *_in_words(runs),
        *(element("p", note, class_="note") for note in _notes(runs)),
        element("p", explain, class_="explain"),
    )


def _in_words(runs: Sequence[Run]) -> list[Html]:
    """Every other run's MSE against the first run's, better or worse."""
    first = runs[0]
    reference, cost = first.figure("mse"), first.figure("seconds_per_step")
    sentences = []
    for run in runs[1:]:
        mse, seconds = run.figure("mse"), run.figure("seconds_per_step")
        if mse is None or not reference:
            continue
        change = 100 * (mse / reference - 1)
        if not math.isfinite(change):
            verdict = "an MSE that cannot be compared"
        elif abs(change) < 0.05:
            verdict = "the same MSE"
        else:
            verdict = f"an MSE {abs(change):.1f}% {'lower' if change < 0 else 'higher'}"
        if seconds is not None and cost:
            verdict += f", at {seconds / cost:.2f} times the cost of a step"
        sentences.append(element("li", element("strong", run.name), f": {verdict}."))
    if not sentences:
        return []
    lead = element("p", "Against ", element("strong", first.name), ":")
    return [lead, element("ul", *sentences)]


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing two rows."""
    notes = []
    measured = [run for run in runs if run.protocol]
    if len({run.dataset for run in runs}) > 1:
        notes.append("The runs were trained on different data: their rows cannot be compared.")
    elif len({written(run.protocol) for run in measured}) > 1:
        notes.append("The runs were measured under different protocols (below): compare with care.")
    if len({run.steps for run in runs if run.finished}) > 1:
        notes.append("The runs made different numbers of updates.")
    if unfinished := [run.name for run in runs if not run.finished]:
        notes.append(f"Unfinished, shown as far as it got: {enumerate_words(unfinished)}.")
    return notes


def _footer(runs: Sequence[Run], folder: Path) -> Html:
    """When, where and how: small print that is enough to do it again."""
    parameters = [run.figure("parameters") for run in runs]
    entries = [
        ("Date", [f"{max(run.written for run in runs):%Y-%m-%d %H:%M} UTC"]),
        ("Data", _distinct(runs, [run.figures.get("source") for run in runs])),
        ("Protocol", _distinct(runs, [run.protocol for run in runs])),
        ("Parameters", _distinct(runs, [p and f"{p:,.0f}" for p in parameters])),
        ("Device", _distinct(runs, [run.figures.get("device") for run in runs])),
        ("Versions", _distinct(runs, [run.figures.get("versions") for run in runs])),
    ]
    relative = [Path(os.path.relpath(run.path, folder)).as_posix() for run in runs]
    paths = [shlex.quote(path) for path in relative]
    commands = [
        f"mqvae train {shlex.quote(f'{path}/config.yaml')} --out {shlex.quote(f'{path}-again')}"
        for path in relative
    ]
    commands += [f"mqvae evaluate {path}" for path in paths]
    commands.append(f"mqvae report {' '.join(paths)} --out report.html")
    parts = []
    for name, lines in entries:
        if lines:
            shown = [element("div", line) for line in lines]
            parts += [element("dt", name), element("dd", *shown)]
    shown = [element("div", element("code", command)) for command in commands]
    parts += [element("dt", "Commands, from this page's folder"), element("dd", *shown)]
    return element("dl", *parts)


def _distinct(runs: Sequence[Run], values: Sequence[object]) -> list[str]:
    """One line where all runs that know a value agree, otherwise one per run."""
    known = [(run.name, written(value)) for run, value in zip(runs, values, strict=True) if value]
    if len({value for _, value in known}) <= 1:
        return [value for _, value in known[:1]]
    return [f"{name}: {value}" for name, value in known]

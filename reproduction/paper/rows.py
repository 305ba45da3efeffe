"""Results become rows."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from mqvae.metrics import CODES, METRICS
from reproduction.paper.comparison import Comparison
from reproduction.paper.methods import METHODS, paper_value
from reproduction.paper.results import Results
from reproduction.paper.sections import Cell, Column, Protocol, Row, Table
from reproduction.paper.work import Run

RECONSTRUCTION = (
    "mse",
    "training_mse",
    "lpips",
    "fid",
    "frechet_vgg16",
    "inception_score",
    "class_score",
    "perplexity",
    "usage",
    "gradient_gap",
)
ADVERSARIAL = ("perceptual_loss", *RECONSTRUCTION)
CLASSIFICATION = (
    *("accuracy", "f1", "cross_entropy", "training_cross_entropy", "perplexity", "gradient_gap"),
)
KEYS = {
    "reconstruction": RECONSTRUCTION,
    "classification": CLASSIFICATION,
    "adversarial": ADVERSARIAL,
}
SUBSTITUTES = {"frechet_vgg16": "fid", "class_score": "inception_score"}
SHORT = {
    "inception_score": "IS",
    "class_score": "Class score",
    "frechet_vgg16": "Fréchet, VGG16",
    "gradient_gap": "Gap",
}


def _title(key: str) -> tuple[str, float]:
    """A metric's title with its unit, and its scale."""
    of_training = key.startswith("training_")
    row = METRICS[key.removeprefix("training_")]
    title = SHORT.get(key, row.title) + " in training" * of_training
    unit = row.unit or f"e{math.log10(row.scale):.0f}"
    return (title, 1.0) if row.scale == 1 else (f"{title} ({unit})", row.scale)


TITLES = {key: _title(key) for keys in KEYS.values() for key in keys}


IN_WORDS: Mapping[Protocol, str] = {
    "paper": "Our reading",
    "equal": "6e-2 for all",
    "matched": "Matched",
    "time": "Equal time",
}


def table(
    comparison: Comparison,
    number: int | None,
    results: Results,
    costs: Mapping[str, float],
) -> Table | None:
    """A comparison as far as it has been run; None if nothing has.

    Args:
        comparison: What is compared.
        number: The paper's table with the same rows; None if it has none.
        results: What was measured.
        costs: Of a step, by method, relative to VQ-VAE's.
    """
    found, elsewhere = _found(comparison, results, costs)
    if not found:
        return None
    described = _described([content for _, _, made in found for _, content in made])
    columns = [
        _column(key, described[key], comparison.task)
        for key in KEYS[comparison.task]
        if key in described
    ]
    rows = []
    for protocol, method, all_made in found:
        made = [(run, content) for run, content in all_made if "figures" in content]
        if not made:
            continue
        cells = {}
        for column in columns:
            values = _values(made, column)
            # Not measured of some seeds alone.
            if _has(method, column) and len(values) == len(made):
                published = _published(number, comparison, method, column)
                cells[column.key] = Cell(values, published)
        rows.append(_row(protocol, method, made, cells, results))
    rows = [_with_ratios(row, rows) for row in rows]
    own = number is None or any(c.paper is not None for row in rows for c in row.cells.values())
    title = title_of(comparison) + ("" if own else ", which the paper's table does not have")
    return Table(title, columns, rows, [*_notes(found, comparison), *elsewhere], folded=True)


def _has(method: str, column: Column) -> bool:
    """Whether there is such a metric: without a codebook there is none of codes."""
    return column.key not in CODES or METHODS[method].has_codes


def by_protocol(made: Table, key: str) -> Table:
    """One metric of a table: a row for each method, a column for the paper and each protocol.

    Args:
        made: The table.
        key: Of the metric.
    """
    column = next(column for column in made.columns if column.key == key)
    shown = list(dict.fromkeys(row.protocol for row in made.rows))
    rows: dict[str, dict[str, Cell]] = {}
    for row in made.rows:
        cell = row.cells.get(key)
        cells = rows.setdefault(row.method, {})
        if cell is None:
            continue
        detail = "" if row.rate is None else f"at {row.rate:g}"
        if row.protocol == "time":
            detail = f"{row.steps:,} steps"
        if cell.paper is not None:
            cells["said"] = Cell((cell.paper,), None, cell.paper_ratio)
        cells[row.protocol] = replace(cell, paper=None, paper_ratio=None, detail=detail)
    columns = [Column(each, IN_WORDS[each], None) for each in shown]
    if any("said" in cells for cells in rows.values()):
        columns.insert(0, Column("said", "The paper", None))
    better = f", {column.better} is better" if column.better else ""
    mark = " (stands for one that cannot be had)" if column.substitute else ""
    title = f"{column.title}{mark}{better}: {made.title}"
    return Table(title, columns, [Row(method, "all", cells) for method, cells in rows.items()])


def of_runs(title: str, runs: Sequence[Run], task: str, results: Results) -> Table | None:
    """Single runs beside each other, whatever their learning rates; None if there are none."""
    found = [(run, content) for run in runs if (content := results.get(run))]
    found = [(run, content) for run, content in found if "figures" in content]
    described = _described([content for _, content in found])
    columns = [_column(key, described[key], task) for key in KEYS[task] if key in described]
    rows = []
    for run, content in found:
        cells = {c.key: Cell(v) for c in columns if (v := _values([(run, content)], c))}
        rows.append(_row("all", run.method, [(run, content)], cells, results))
    return Table(title, columns, rows) if rows else None


def lacking(
    comparison: Comparison, results: Results, costs: Mapping[str, float], made: Table | None
) -> Iterator[str]:
    """The rows that a table lacks, and those that lack seeds or metrics."""
    parts: dict[str, list[str]] = {}
    found, _ = _found(comparison, results, costs)
    count = {(protocol, method): len(made) for protocol, method, made in found}
    for protocol in comparison.protocols:
        for method in comparison.rows(protocol):
            there = count.get((protocol, method), 0)
            if there < comparison.seeds:
                seeds = f", {there} of {comparison.seeds} seeds" if there else ""
                words = f"{IN_WORDS[protocol].lower()}{seeds}"
                parts.setdefault(method, []).append(words)
    where = comparison.dataset
    if comparison.size:
        where += ", {:,} codes of {}".format(*comparison.size)
    if made is None:
        yield f"{where}, in every protocol: {', '.join(comparison.methods)}."
        return
    if parts:
        told = (f"{method} ({'; '.join(words)})" for method, words in parts.items())
        yield f"{where}: {', '.join(told)}."
    for column in made.columns:
        without = dict.fromkeys(
            r.method for r in made.rows if column.key not in r.cells and _has(r.method, column)
        )
        if without:
            yield f"{where}, {column.title} of all seeds: {', '.join(without)}."


_Found = list[tuple[Protocol, str, list[tuple[Run, dict[str, Any]]]]]
"""The runs of each row in each protocol, with their results."""


def _found(
    comparison: Comparison, results: Results, costs: Mapping[str, float]
) -> tuple[_Found, list[str]]:
    """The rows as far as there are results, all on as many test images as most of them.

    Returns:
        The rows; and a sentence for each run on other images, which no number can be compared with.
    """
    found: _Found = []
    for protocol in comparison.protocols:
        for method in comparison.rows(protocol):
            if made := _made(comparison, protocol, method, results, costs):
                found.append((protocol, method, made))
    contents = {run: content for _, _, made in found for run, content in made}
    counts = Counter(n for content in contents.values() if (n := _images(content)))
    usual = max(counts, key=lambda n: (counts[n], n), default=None)  # the larger of a tie
    others = {run: n for run, content in contents.items() if (n := _images(content)) != usual and n}
    kept = [
        (protocol, method, [(run, content) for run, content in made if run not in others])
        for protocol, method, made in found
    ]
    words = [
        f"Left out, measured on {n:,} test images, and the others on {usual:,}: {run.words}."
        for run, n in others.items()
    ]
    return [row for row in kept if row[2]], words


def _images(content: Mapping[str, Any]) -> int | None:
    return content.get("protocol", {}).get("images")


def _usual(values: Sequence[Any]) -> Any:
    """The most frequent of what there is, of several the last."""
    there = [value for value in reversed(values) if value is not None]
    return max(there, key=there.count, default=None)


def _described(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What metrics are, by the protocol that most results have of them."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for content in contents:
        for key, about in content.get("described", {}).items():
            found.setdefault(key, []).append(about)
    return {key: _usual(about) for key, about in found.items()}


def _made(
    comparison: Comparison,
    protocol: Protocol,
    method: str,
    results: Results,
    costs: Mapping[str, float],
) -> list[tuple[Run, dict[str, Any]]]:
    """The runs of a row that there are, with their results."""
    try:
        runs = comparison.runs(protocol, method, results, costs)
    except LookupError:
        return []
    return [(run, content) for run in runs if (content := results.get(run)) is not None]


def _values(made: Sequence[tuple[Run, dict[str, Any]]], column: Column) -> tuple[float, ...]:
    """A metric of each run, where it was measured by the column's protocol."""
    return tuple(
        content["figures"][column.key] / column.scale
        for _, content in made
        if column.key in content["figures"]
        and content["described"][column.key]["protocol"] == column.protocol
    )


def _published(
    number: int | None, comparison: Comparison, method: str, column: Column
) -> float | None:
    if number is None or column.substitute:
        return None
    value = paper_value(number, comparison.dataset, method, column.key)
    return None if value is None else value / column.scale


def _column(key: str, described: Mapping[str, Any], task: str) -> Column:
    title, scale = TITLES[key]
    if key == "gradient_gap" and task == "classification":
        title, scale = "Gap", 1.0
    better: Literal["lower", "higher"] | None = described["better"]
    return Column(key, title, better, scale, described["protocol"], key in SUBSTITUTES)


def _row(
    protocol: Protocol,
    method: str,
    made: Sequence[tuple[Run, dict[str, Any]]],
    cells: Mapping[str, Cell],
    results: Results,
) -> Row:
    seconds = [content["seconds"] for _, content in made if "seconds" in content]
    return Row(
        method,
        protocol,
        cells,
        made[0][0].rate,
        made[0][0].steps,
        statistics.fmean(seconds) if seconds else 0.0,
        tuple(results.name(run) for run, _ in made),
        tuple(run.seed for run, _ in made),
    )


def _with_ratios(row: Row, rows: Sequence[Row]) -> Row:
    reference = other(row, rows, METHODS[row.method].against)
    if reference is None:
        return row
    cells = {}
    for key, cell in row.cells.items():
        base = reference.cells.get(key)
        pairs = paired(row, reference, key)
        ours, theirs = (sum(values) for values in zip(*pairs, strict=True)) if pairs else (0, 0)
        ratio = ours / theirs if theirs else None
        published = None
        if cell.paper is not None and base and base.paper:
            published = cell.paper / base.paper
        cells[key] = Cell(cell.values, cell.paper, ratio, published)
    return replace(row, cells=cells)


def paired(row: Row, base: Row, key: str) -> list[tuple[float, float]]:
    """A figure of two rows, seed by seed, for the seeds that both have."""
    both = [
        dict(zip(each.seeds, each.cells[key].values, strict=True)) if key in each.cells else {}
        for each in (row, base)
    ]
    return [(both[0][seed], both[1][seed]) for seed in both[0] if seed in both[1]]


def other(row: Row, rows: Sequence[Row], method: str | None) -> Row | None:
    """The row of another method in the same protocol."""
    found = (each for each in rows if (each.method, each.protocol) == (method, row.protocol))
    return next(found, None)


def title_of(comparison: Comparison) -> str:
    """Data set, size and length of a comparison."""
    steps = comparison.scale.steps(comparison.task, comparison.dataset)
    size = ", {:,} codes of {}".format(*comparison.size) if comparison.size else ""
    few = comparison.few
    images = f", {few.images:,} training images of {few.side} × {few.side}" if few else ""
    return f"{comparison.dataset}{images}{size}, {steps:,} steps"


def _notes(found: _Found, comparison: Comparison) -> Iterator[str]:
    for protocol, method, made in found:
        for run, content in made:
            if "failed" in content:
                where = f"{method}, {IN_WORDS[protocol].lower()}, seed {run.seed}"
                yield f"{where}: {content['failed']}"
    if comparison.tuned is not None:
        yield f"Learning rates are those that were best in {title_of(comparison.tuned)}."
    if any("+" in (METHODS[method].against or "") for _, method, _ in found):
        yield "Ratios of MQ-VAE + replace and + group are to VQ-VAE + replace and + group."
    finished = [content for _, _, made in found for _, content in made if "device" in content]
    yield f"Trained on: {'; '.join(dict.fromkeys(each['device'] for each in finished))}."
    images = {each["protocol"]["images"] for each in finished if "protocol" in each}
    if images:
        yield f"Measured on {' or '.join(f'{count:,}' for count in sorted(images))} test images."

"""The table of results, and the settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mqvae.report.charts import swatch
from mqvae.report.markup import Html, breakable, element, join, table
from mqvae.report.run import Run, is_number
from mqvae.report.words import aligned, duration


@dataclass(frozen=True)
class Quality:
    """A column of the table of results: how a figure is called, scaled and compared."""

    key: str
    title: str
    better: Literal["less", "more"] | None
    unit: str = ""
    factor: float = 1.0
    digits: int = 3
    most: int = 4


QUALITIES = (
    Quality("mse", "MSE", "less", "×10⁻³", 1e3),
    Quality("psnr", "PSNR", "more", "dB", digits=4, most=2),
    Quality("perplexity", "Perplexity", "more", most=2),
    Quality("usage", "Usage", "more", "%", 1e2, most=1),
    Quality("gradient_gap", "Gradient gap", "less", "×10⁻⁵", 1e5),
)
FURTHER = (
    Quality("lpips", "LPIPS", "less"),
    Quality("fid", "FID", "less"),
    Quality("ssim", "SSIM", "more"),
    Quality("inception_score", "Inception score", "more"),
    Quality("accuracy", "Accuracy", "more"),
    Quality("f1", "F1", "more"),
)
# Numbers in summary.json and evaluation.json that say nothing about quality.
OTHER = frozenset(
    {"steps", "step", "seconds", "wall_seconds", "seconds_per_step", "parameters", "seed"}
)


def qualities(runs: Sequence[Run]) -> list[Quality]:
    """The columns: those that every run has, then whatever else an evaluation measured."""
    known = {quality.key: quality for quality in FURTHER}
    taken = OTHER | {quality.key for quality in QUALITIES}
    keys = dict.fromkeys(key for run in runs for key, v in run.figures.items() if is_number(v))
    extra = [key for key in keys if key not in taken]
    extra.sort(key=lambda key: list(known).index(key) if key in known else len(known))
    return [
        *QUALITIES,
        *(known.get(key, Quality(key, key.replace("_", " "), None)) for key in extra),
    ]


def best(values: Sequence[float | None], shown: Sequence[str], better: str | None) -> set[int]:
    """Rows that hold the best value as shown; none where there is nothing to choose from."""
    finite = {i: v for i, v in enumerate(values) if v is not None and math.isfinite(v)}
    if better is None or len(finite) < 2:
        return set()
    choose = min if better == "less" else max
    winner = shown[choose(finite, key=lambda i: finite[i])]
    rows = {i for i in finite if shown[i] == winner}
    return set() if len(rows) == len(finite) else rows


def results(runs: Sequence[Run], caption: str) -> Html:
    """A row per run: its quality, and beside it what a step costs."""
    head = [element("th", "Run", scope="col"), element("th", "Update rule", scope="col")]
    columns: list[list[Html]] = []
    for quality in qualities(runs):
        head.append(_heading(quality))
        raw = [run.figure(quality.key) for run in runs]
        values = [None if value is None else quality.factor * value for value in raw]
        shown = aligned(values, digits=quality.digits, most=quality.most)
        winners = best(values, shown, quality.better)
        columns.append(
            [
                element("td", element("strong", cell, class_="best") if i in winners else cell)
                for i, cell in enumerate(shown)
            ]
        )
    for title, unit in (("Cost of a step", "ms"), ("Training time", ""), ("Updates", "")):
        head.append(_heading(Quality("", title, None, unit)))
    columns += [
        _costs(runs),
        [element("td", duration(run.seconds)) for run in runs],
        [element("td", _updates(run)) for run in runs],
    ]
    rows = []
    for index, run in enumerate(runs):
        label = [swatch(index), " ", run.name]
        if not run.finished:
            label += [" ", element("span", "unfinished", class_="tag")]
        name = element("th", element("span", *label, class_="name"), scope="row")
        rule, detail = run.rule
        rule_cell = element(
            "td", rule, " ", element("span", detail, class_="detail"), class_="text"
        )
        rows.append([name, rule_cell, *(column[index] for column in columns)])
    return table(caption, head, rows, class_="results")


def _heading(quality: Quality) -> Html:
    parts: list[str] = [quality.title]
    if quality.better:
        hint = f"{quality.better} is better"
        arrow = {"less": "↓", "more": "↑"}[quality.better]
        parts += [" ", element("span", arrow, title=hint, role="img", aria_label=hint)]
    if quality.unit:
        parts += [" ", element("span", quality.unit, class_="unit")]
    return element("th", *parts, scope="col")


def _costs(runs: Sequence[Run]) -> list[Html]:
    """Milliseconds of a step, and the ratio to the first run's."""
    seconds = [run.figure("seconds_per_step") for run in runs]
    shown = aligned([None if s is None else 1e3 * s for s in seconds], digits=3, most=2)
    cells = []
    for second, cell in zip(seconds, shown, strict=True):
        parts: list[str] = [cell]
        if second is not None and seconds[0]:
            parts += [" ", element("span", f"{second / seconds[0]:.2f}×", class_="ratio")]
        cells.append(element("td", *parts))
    return cells


def _updates(run: Run) -> str:
    done, planned = run.steps, run.planned_steps
    if done is None:
        return "-"
    if run.finished or planned is None or done >= planned:
        return f"{done:,}"
    return f"{done:,} of {planned:,}"


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and written values; an empty group has no line.

    >>> flatten({"data": {"side": 28, "root": None}, "devices": [0, 1]})
    {'data.side': '28', 'data.root': 'none', 'devices': '0, 1'}
    """
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = written(value)
    return flat


def written(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(written, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} = {written(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(runs: Sequence[Run]) -> Html:
    """What differs between the runs, openly; what all of them share, folded away."""
    flat = [flatten({k: v for k, v in run.config.items() if k != "name"}) for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = {key: [each.get(key) for each in flat] for key in keys}
    shared = [key for key in keys if len(set(rows[key])) == 1]
    parts = []
    if len(runs) > 1:
        parts.append(_differing(runs, {key: rows[key] for key in keys if key not in shared}))
    head = [element("th", title, scope="col") for title in ("Setting", "Value")]
    title = "Shared by all runs" if len(runs) > 1 else "Settings of the run"
    body = [[_key(key), _value(rows[key][0])] for key in shared]
    parts.append(
        element(
            "details",
            element("summary", f"{title} ({len(shared)})"),
            table(title, head, body, class_="settings shared"),
        )
    )
    return join(parts)


def _differing(runs: Sequence[Run], rows: dict[str, list[str | None]]) -> Html:
    if not rows:
        return element("p", "The runs have the same settings.")
    head = [element("th", "Setting", scope="col")]
    head += [
        element("th", element("span", swatch(i), " ", run.name, class_="name"), scope="col")
        for i, run in enumerate(runs)
    ]
    body = [[_key(key), *map(_value, values)] for key, values in rows.items()]
    return table("What differs between the runs", head, body, class_="settings")


def _key(key: str) -> Html:
    return element("th", element("code", breakable(key)), scope="row")


def _value(value: str | None) -> Html:
    return element("td", "-" if value is None else breakable(value), class_="text")

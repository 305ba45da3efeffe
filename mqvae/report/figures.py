"""The figures of the page: curves, gradient dynamics, samples, code usage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mqvae.report.charts import DENSE, NARROW, Line, curves, ranks, swatch
from mqvae.report.markup import Html, element
from mqvae.report.run import Run
from mqvae.report.strips import Strip, encode_strips, read_strip
from mqvae.report.words import enumerate_words


def legend(runs: Sequence[Run], shown: Sequence[int]) -> Html:
    """The runs with their colours."""
    return element(
        "ul", *(element("li", swatch(i), " ", runs[i].name) for i in shown), class_="legend"
    )


def curves_section(runs: Sequence[Run]) -> Html:
    """Loss and perplexity, against updates and against time."""
    title = element("h2", "Training")
    shown = [i for i, run in enumerate(runs) if len(run.column("step"))]
    if not shown:
        return element("section", title, element("p", "No run has logged a step yet."))
    elapsed = np.concatenate([runs[i].column("seconds") for i in shown])
    longest = float(elapsed[np.isfinite(elapsed)].max(initial=0.0))
    unit, seconds = next(
        (name, size)
        for name, size, limit in (("hours", 3600, 7200), ("minutes", 60, 180), ("seconds", 1, -1))
        if longest > limit
    )
    dense = any(len(runs[i].column("step")) >= DENSE for i in shown)
    axes = (("step", 1, "updates"), ("seconds", seconds, f"{unit} of training"))
    figures = []
    for key, quantity in (("task", "Task loss"), ("perplexity", "Perplexity of a batch")):
        for column, size, xlabel in axes:
            lines = [Line(runs[i].column(column) / size, runs[i].column(key), i) for i in shown]
            against = "updates" if column == "step" else "time"
            figures.append(
                _figure(
                    f"{quantity} against {against}",
                    curves(
                        lines,
                        name=f"{key}-{column}",
                        xlabel=xlabel,
                        alt=_describe(f"{quantity} against {against}.", runs, lines),
                        log=None if key == "task" else False,
                    ),
                )
            )
    return element(
        "section",
        title,
        *([element("p", "Faint: as logged. Strong: moving average.", class_="explain")] * dense),
        legend(runs, shown),
        element("div", *figures, class_="charts"),
    )


def dynamics(runs: Sequence[Run]) -> Html | None:
    """Norms, ratio and cosine of the two parts of the hypergradient; None if no run has any."""
    shown = [i for i, run in enumerate(runs) if run.has_dynamics]
    if not shown:
        return None
    norms, ratios, cosines = [], [], []
    for i in shown:
        steps, direct = runs[i].column("step"), runs[i].column("direct_norm")
        indirect = runs[i].column("indirect_norm")
        known = np.isfinite(direct) & (direct > 0)
        ratio = np.divide(indirect, direct, out=np.full_like(direct, np.nan), where=known)
        norms += [Line(steps, direct, i), Line(steps, indirect, i, "second")]
        ratios.append(Line(steps, ratio, i))
        cosines.append(Line(steps, runs[i].column("cosine"), i))
    charts = (
        ("Norms of the direct and the indirect part", "norms", norms, True, False),
        ("Indirect over direct norm", "ratio", ratios, None, False),
        ("Cosine between the two parts", "cosine", cosines, False, True),
    )
    figures = [
        _figure(
            title,
            curves(
                lines,
                name=name,
                xlabel="updates",
                alt=_describe(f"{title}, against updates.", runs, lines),
                log=log,
                zero=zero,
                width=NARROW,
            ),
        )
        for title, name, lines, log, zero in charts
    ]
    kinds = [
        element("li", swatch(-1), " direct part"),
        element("li", swatch(-1, kind="second"), " indirect part"),
    ]
    entries = [element("li", swatch(i), " ", runs[i].name) for i in shown]
    explain = (
        "The codebook's hypergradient has a direct part and an indirect one, which comes through "
        "the network's look-ahead step."
    )
    return element(
        "section",
        element("h2", "Gradient dynamics"),
        element("p", explain, class_="explain"),
        element("ul", *entries, *kinds, class_="legend"),
        element("div", *figures, class_="charts three"),
    )


def samples(runs: Sequence[Run]) -> Html:
    """Originals on top, and under them the reconstructions of each run, in the same columns."""
    title = element("h2", "Test images and their reconstructions")
    originals = [read_strip(run.path / "samples" / "originals.png") for run in runs]
    rebuilt = [read_strip(run.path / "samples" / "reconstructions.png") for run in runs]
    # Runs that drew the same images share one row of originals; one without any joins the first.
    groups: list[tuple[Strip | None, list[int]]] = []
    for i in sorted(range(len(runs)), key=lambda i: originals[i] is None):
        original = originals[i]
        fitting = [g for g in groups if original is None or _same(g[0], original)]
        if fitting:
            fitting[0][1].append(i)
        else:
            groups.append((original, [i]))
    rows: list[tuple[str, str, Strip | None]] = []
    for original, members in groups:
        if original is not None:
            own = enumerate_words([runs[i].name for i in members])
            rows.append(("Originals", f"of {own}" if len(groups) > 1 else "", original))
        for i in sorted(members):
            mse = runs[i].figure("mse")
            detail = "" if mse is None else f"MSE {1e3 * mse:.2f}×10⁻³"
            rows.append((runs[i].name, detail, rebuilt[i]))
    strips = [strip for _, _, strip in rows if strip is not None]
    if not strips:
        return element("section", title, element("p", "No run has written samples yet."))
    uris, exact = encode_strips(strips)
    pictures = iter(zip(strips, uris, strict=True))
    cells: list[Html] = []
    for name, detail, strip in rows:
        cells.append(element("h3", name, *([element("span", detail)] if detail else [])))
        if strip is None:
            cells.append(element("p", "no samples yet", class_="explain"))
            continue
        strip, uri = next(pictures)
        width, height = strip.size
        alt = f"{len(strip.tiles)} test images" if name == "Originals" else f"{name}'s versions"
        cells.append(
            element(
                "img",
                src=uri,
                width=width,
                height=height,
                alt=f"{alt}, side by side",
                class_="small" if strip.scale > 1 else None,
            )
        )
    caption = "Every column is one image of the test set."
    if strips[0].scale > 1:
        caption += f" Shown at {strips[0].scale:g} times their size, pixel by pixel."
    if not exact:
        caption += " Compressed for this page; the run folders have them exactly."
    return element(
        "section",
        title,
        element(
            "figure",
            element(
                "div",
                element("div", *cells, class_="samples"),
                class_="scroll",
                tabindex=0,
                role="region",
                aria_label="Test images and their reconstructions",
            ),
            element("figcaption", caption),
        ),
    )


def codes(runs: Sequence[Run]) -> Html:
    """How often each code is chosen, the most frequent first; one chart per run, same axes."""
    title = element("h2", "Code usage")
    shares = {
        i: np.concatenate(run.counts) / sum(group.sum() for group in run.counts)
        for i, run in enumerate(runs)
        if any(group.any() for group in run.counts)
    }
    if not shares:
        return element("section", title, element("p", "No run has counted its codes yet."))
    positive = np.concatenate([share[share > 0] for share in shares.values()])
    figures = []
    for i, share in shares.items():
        used, total = runs[i].codes_used
        perplexity = runs[i].perplexity
        detail = f"{used:,} of {total:,} codes used"
        detail += "" if perplexity is None else f", perplexity {perplexity:,.1f}"
        chart = ranks(
            share,
            run=i,
            name=f"codes-{i}",
            alt=f"{runs[i].name}: share of every code, most frequent first; {detail}.",
            total=max(len(each) for each in shares.values()),
            lowest=float(positive.min()),
            highest=float(positive.max()),
        )
        head = element("figcaption", element("h3", swatch(i), " ", runs[i].name), detail)
        figures.append(element("figure", head, chart))
    explain = (
        "Share of all choices on the test set that fell on each code, most frequent first. "
        "Dashed: all codes equally often."
    )
    return element(
        "section",
        title,
        element("p", explain, class_="explain"),
        element("div", *figures, class_="charts three"),
    )


def _figure(title: str, chart: Html) -> Html:
    return element("figure", element("h3", title), chart)


def _same(one: Strip | None, other: Strip) -> bool:
    return one is not None and np.array_equal(one.tiles, other.tiles)


def _describe(title: str, runs: Sequence[Run], lines: Sequence[Line]) -> str:
    """A chart in words: where every run ends."""
    ends = []
    for line in lines:
        known = line.y[np.isfinite(line.y)]
        if len(known):
            ends.append(f"{runs[line.run].name} {known[-1]:.3g}")
    return f"{title} Last values: {enumerate_words(ends)}." if ends else title

"""The pictures of the performance page, from its tables."""

from pathlib import Path

from benchmarks.table import Table

OURS, THEIRS, FLOOR = "#1f5fa8", "#b0642c", "#8a8a8a"


def draw(table: Table, folder: Path, device: str = "cpu") -> Path | None:
    """The picture of a table on a device, if it has one; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawers = {
        "step-demo": _bars,
        "step-paper": _bars,
        "step-methods": _bars,
        "quantizer": _shapes,
        "scaling-quantizer": _lines,
        "scaling-step": _lines,
    }
    if table.name not in drawers or not table.rows:
        return None
    drawers[table.name](table)
    path = folder / f"{table.name}{'' if device == 'cpu' else f'-{device}'}.png"
    pyplot.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
    pyplot.close()
    return path


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _bars(table: Table) -> None:
    """Ratios of steps, longest last, with quartiles and what was aimed at."""
    from matplotlib import pyplot

    rows = sorted(table.rows, key=lambda row: -_number(row["ratio"]))
    _, axes = pyplot.subplots(figsize=(8, 0.26 * len(rows) + 1))
    for i, row in enumerate(rows):
        theirs = str(row["step"]).startswith(("Betty", "double"))
        ratio = _number(row["ratio"])
        axes.barh(i, ratio, color=THEIRS if theirs else OURS, height=0.7)
        axes.plot(
            [_number(row["lower quartile"]), _number(row["upper quartile"])],
            [i, i],
            color="black",
            linewidth=1,
        )
        if row.get("at most") is not None:
            axes.plot([_number(row["at most"])] * 2, [i - 0.45, i + 0.45], color="red", linewidth=2)
        end = max(
            ratio, _number(row["upper quartile"]), _number(row.get("at most") or float("-inf"))
        )
        axes.text(end + 0.05, i, f"{ratio:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [str(row["step"]) for row in rows], fontsize=8)
    axes.set_xlabel("time of a step, Joint is 1; black: quartiles, red: target")
    axes.set_title(f"{table.title}\n{table.under()}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _shapes(table: Table) -> None:
    """Ratios to the matrix product, one group of bars per shape."""
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(str(row["N × K × D"]) for row in table.rows))
    kinds = list(dict.fromkeys(str(row["what"]) for row in table.rows))
    colours = [FLOOR, OURS, "#6ea6dd", THEIRS, "#dda97c"]
    _, axes = pyplot.subplots(figsize=(8, 3.2))
    for j, kind in enumerate(kinds):
        for row in table.rows:
            if row["what"] == kind:
                place = shapes.index(str(row["N × K × D"])) + (j - (len(kinds) - 1) / 2) * 0.16
                ratio = _number(row["ratio"])
                first = str(row["N × K × D"]) == shapes[0]
                axes.bar(place, ratio, 0.15, color=colours[j], label=kind if first else None)
                axes.text(place, ratio * 1.06, f"{ratio:.2g}", ha="center", fontsize=7)
    axes.set_yscale("log")
    axes.set_xticks(range(len(shapes)), shapes, fontsize=8)
    axes.set_ylabel("time, the product is 1", fontsize=8)
    axes.set_title(f"{table.title} (N × K × D)", fontsize=9)
    axes.legend(fontsize=7, loc="upper left", ncols=2)
    axes.set_ylim(top=axes.get_ylim()[1] * 4)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(table: Table) -> None:
    """Times against each size that was swept."""
    from matplotlib import pyplot

    swept = list(dict.fromkeys(str(row["swept"]) for row in table.rows))
    series = [c for c in table.columns() if c.endswith(", ms")]
    _, panels = pyplot.subplots(1, len(swept), figsize=(3.3 * len(swept), 2.9), sharey=True)
    for panel, name in zip(panels, swept, strict=True):
        rows = [row for row in table.rows if row["swept"] == name]
        x = [_number(row["value"]) for row in rows]
        for column, colour in zip(series, (FLOOR, OURS, THEIRS), strict=True):
            panel.plot(
                x,
                [_number(row[column]) for row in rows],
                marker="o",
                markersize=3,
                color=colour,
                label=column.removesuffix(", ms"),
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(name, fontsize=8)
        panel.set_xticks(x, [f"{v:.0f}" for v in x], fontsize=7)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms", fontsize=8)
    panels[0].legend(fontsize=7)
    panels[len(panels) // 2].set_title(f"{table.title} (the others: {table.under()})", fontsize=9)

"""Error against bits, as SVG files that stand alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduction.figures import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fbf", "#d1480f", "#2b8a3e", "#8a3ea8", "#a07000", "#0b8793")
OTHERS = "#7a7a7a"


def draw(
    results: Results,
    file: Path,
    *,
    x: str,
    data: str,
    families: Sequence[str],
    others: Sequence[str] = (),
) -> None:
    """Draw MSE against bits, seed 0.

    Args:
        results: What is drawn.
        file: The SVG file.
        x: "entropy" or "prior_bits".
        data: The data set.
        families: Each a curve over its rows.
        others: Rows that stand alone, each with its label; without those whose error is above all
            curves, which would leave no room for these.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": file.name, "font.size": 10}):
        shown = _shown(results, x, data, families, others)
        figure, axes = plt.subplots(
            figsize=(4.8, 3.4 + 0.17 * (len(families) + len(shown))), layout="constrained"
        )
        for colour, family in zip(COLOURS, families, strict=False):
            points = results.points(family, x, "mse", data)
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, [1e3 * y for y in ys], "o-", color=colour, ms=4.5, lw=1.6)
                axes.plot([], [], "o-", color=colour, ms=4.5, lw=1.6, label=family)
                for row in results.of_family(family):
                    bits, error = results.value(row, x, data), results.value(row, "mse", data)
                    if bits is not None and error is not None:
                        _write(axes, _what(results.rows[row]), bits, 1e3 * error, colour)
        for number, (row, (bits, error)) in enumerate(shown.items(), 1):
            axes.plot(bits, 1e3 * error, "x", color=OTHERS, ms=5)
            label = f"{number}: {results.rows[row]['label']}"
            axes.plot([], [], "x", color=OTHERS, ms=5, label=label)
            _write(axes, str(number), bits, 1e3 * error, OTHERS)
        # Both plots of a data set have the same scale of errors.
        known = [1e3 * error for error in _errors(results, data, families)]
        if known:
            margin = 0.06 * (max(known) - min(known) or max(known))
            axes.set_ylim(min(known) - margin, max(known) + margin)
        what = {"entropy": "Entropy", "prior_bits": "Bits under a PixelCNN"}[x]
        axes.set_xlabel(f"{what}, bits a position")
        axes.set_ylabel("MSE (e-3), test images")
        axes.grid(color="#e4e4e4", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=8.5)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def _errors(results: Results, data: str, families: Sequence[str]) -> list[float]:
    """MSE of the rows of families, those that have one."""
    rows = [row for family in families for row in results.of_family(family)]
    return [error for row in rows if (error := results.value(row, "mse", data)) is not None]


def _shown(
    results: Results, x: str, data: str, families: Sequence[str], others: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Bits and MSE of the rows that stand alone and are not above all curves."""
    most = max(_errors(results, data, families), default=float("inf"))
    found = {}
    for row in others:
        bits, error = results.value(row, x, data), results.value(row, "mse", data)
        if bits is not None and error is not None and error <= most:
            found[row] = (bits, error)
    return found


def _what(row: Mapping[str, Any]) -> str:
    """What tells a row from others of its family: bits that were asked for, or codewords."""
    options = row["options"]
    if "quantizer.rate.bits" in options:
        return f"{options['quantizer.rate.bits']:g} bits"
    return f"{options['quantizer.num_codes']:,}"


def _write(axes: "Axes", text: str, x: float, y: float, colour: str) -> None:
    """Text beside a point."""
    axes.annotate(text, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=8, color=colour)

"""The error of every row against the bits of its codes; not in the paper."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproduction.paper.figures import FASHION
from reproduction.paper.runner import Work
from reproduction.paper.sections import Line, Plot, Section
from reproduction.paper.study import Experiment, Study

ALIVE = 7.0  # bits from which on a codebook of 1,024 codes has not collapsed
LOOKING = ("mqvae.Meta", "mqvae.MetaNetwork", "mqvae.MetaBoth")


@dataclass(frozen=True)
class Point:
    """A row.

    Attributes:
        kind: What keeps its codes in use, and whether it looks ahead.
        bits: Entropy of its codes, of all groups of an embedding; mean over the seeds.
        mse: Of test images; mean over the seeds.
        groups: Codes of an embedding.
    """

    kind: str
    bits: float
    mse: float
    groups: int


class ErrorByBits(Experiment):
    """MSE against the order-0 entropy of codes, all rows of one length."""

    name = "bits"
    title = "How much of it is bits"
    claim = "Nothing: higher perplexity need not mean better performance (Section 5.2)."

    def wants(self, study: Study) -> Iterator[Work]:
        yield from ()  # what other tables are made of

    def section(self, study: Study) -> Section:
        datasets = study.datasets(FASHION)
        points = list(_points(study, datasets[0])) if datasets else []
        single = [point for point in points if point.groups == 1]
        if len(single) < 3 or len({point.bits for point in single}) < 2:
            return Section(self.name, self.title, self.claim, missing=["Three rows or more."])
        kinds = sorted({point.kind for point in single})
        lines = []
        for kind in kinds:
            of_kind = sorted((p.bits, p.mse) for p in single if p.kind == kind)
            lines.append(Line(kind, *zip(*of_kind, strict=True)))
        plot = Plot(
            "bits",
            f"{datasets[0]}: every row with one code an embedding, mean over its seeds",
            "bits of a code, log₂ of the perplexity",
            "MSE of test images",
            lines,
            log_y=True,
            points=True,
        )
        said = list(_said(single, [point for point in points if point.groups > 1]))
        return Section(self.name, self.title, self.claim, said, (), [plot])


def _points(study: Study, dataset: str) -> Iterator[Point]:
    """The rows at the scale's length; seeds of one row are one point."""
    steps = study.scale.steps("reconstruction", dataset)
    rows: dict[str, list[tuple[Mapping[str, Any], Mapping[str, float]]]] = {}
    for content in study.results.contents():
        asks = content["asks"]
        if asks["kind"] != "run" or "figures" not in content or asks["steps"] != steps:
            continue
        data, quantizer = asks["data"], asks["quantizer"]["class_path"]
        if data["name"] != dataset or data.get("limit") or quantizer == "mqvae.NoQuantizer":
            continue
        if "mse" in content["figures"] and "Adversarial" not in asks["task"]["class_path"]:
            row = json.dumps({k: v for k, v in asks.items() if k != "seed"}, sort_keys=True)
            rows.setdefault(row, []).append((asks, content["figures"]))
    for seeds in rows.values():
        groups = int(seeds[0][0]["quantizer"]["init_args"].get("groups", 1))
        bits = statistics.fmean(math.log2(figures["perplexity"]) for _, figures in seeds)
        mse = statistics.fmean(figures["mse"] for _, figures in seeds)
        yield Point(_kind(seeds[0][0]), groups * bits, mse, groups)


def _kind(asks: Mapping[str, Any]) -> str:
    quantizer, update = asks["quantizer"], asks["update"]
    if quantizer["class_path"] == "mqvae.GumbelQuantizer":
        return "Gumbel-VQ"
    written = json.dumps(update)
    looks = "with a look-ahead" if update["class_path"] in LOOKING else "without a look-ahead"
    kept = quantizer["init_args"].get("replacement") or "ransport" in written
    return f"{looks}, codes kept in use" if kept else looks


def _said(single: Sequence[Point], grouped: Sequence[Point]) -> Iterator[str]:
    change, share, line = _fit(single)
    yield (
        f"Over {len(single)} rows with one code an embedding the MSE changes by {change:+.0%} a "
        f"bit, and bits explain {share:.0%} of the variance of its logarithm: what keeps codes in "
        "use, or has more of them, gains bits before anything else."
    )
    alive = [point for point in single if point.bits >= ALIVE]
    if len(alive) > 2:
        change, share, line = _fit(alive)
        yield (
            f"Over the {len(alive)} of them with {ALIVE:g} bits or more: {change:+.0%} a bit, "
            f"{share:.0%} of the variance."
        )
        apart = {
            kind: statistics.fmean(math.log(p.mse) - line(p.bits) for p in alive if p.kind == kind)
            for kind in sorted({point.kind for point in alive})
        }
        told = "; ".join(f"{kind} {math.expm1(each):+.0%}" for kind, each in apart.items())
        yield f"MSE beside that line at the same bits, mean over rows: {told}."
    if grouped:
        best = min(grouped, key=lambda point: point.mse)
        yield (
            f"With {best.groups} codes an embedding the lowest MSE is {best.mse / 1e-3:.2f}e-3, at "
            f"{best.bits:.0f} bits an embedding: a bit of another group buys less."
        )


def _fit(points: Sequence[Point]) -> tuple[float, float, Any]:
    """Least squares of log MSE on bits: change of the MSE a bit, share of variance, the line."""
    x, y = [point.bits for point in points], [math.log(point.mse) for point in points]
    slope, intercept = statistics.linear_regression(x, y)
    share = statistics.correlation(x, y) ** 2 if len(set(y)) > 1 else 1.0
    return math.expm1(slope), share, lambda bits: intercept + slope * bits

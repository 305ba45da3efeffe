"""Rules for a codebook beside each other: which one needs no tuning; not in the paper."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mqvae.paper.comparison import Comparison
from mqvae.paper.further import Costs
from mqvae.paper.rows import FEW, costs_table, other, paired, table
from mqvae.paper.runner import Work
from mqvae.paper.sections import Line, Plot, Protocol, Row, Section, Table
from mqvae.paper.study import Experiment, Study

TASK = "reconstruction"
FASHION, PHOTOS = "fashion-mnist", "photos"
BOUND = "No quantization"
RECOMMENDED = "EMA + replace"  # what the preset of that name is
FINAL = (
    *(BOUND, "VQ-VAE", "VQ-VAE + replace", RECOMMENDED),
    *("MQ-VAE", "MQ-VAE, amortized", "Transport", "EMA + transport"),
)
ELSEWHERE = (BOUND, "VQ-VAE", RECOMMENDED, "EMA + transport")  # at other sizes, of other images
WITHOUT_LOOKING = ("VQ-VAE", "VQ-VAE + replace", RECOMMENDED)
SIEVE = (
    *("EMA, 0.99", "EMA, 0.9", "MQ-VAE + replace", "MQ-VAE, amortized + replace"),
    *("MQ-VAE, amortized + replace, best of 4",),
    *("VQ-VAE + replace by error", "VQ-VAE + replace by task gradient"),
    *("VQ-VAE + cosine", "VQ-VAE + affine", "VQ-VAE + linear map", "VQ-VAE + rotation"),
    *("VQ-VAE + warm start", "VQ-VAE + gradual warm start"),
    *("VQ-VAE, SGD", "VQ-VAE, Adagrad", "VQ-VAE, row-wise Adam"),
    *("VQ-VAE + batch norm", "VQ-VAE + layer norm", "FSQ", "LFQ", "BSQ"),
)
COSTING = ("VQ-VAE", *(name for name in (*FINAL, *SIEVE) if name != "VQ-VAE"))
RATED = ("VQ-VAE", "VQ-VAE + replace", "MQ-VAE", "Transport")
PROTOCOLS: Sequence[Protocol] = ("matched", "time")  # the paper compares none of this
SAME = 0.02  # ratios this near 1 are no difference, where seeds differ by 5%
LOW_RATE = 3e-4  # the paper's of encoder and decoder


class Rules(Experiment):
    """Rules beside each other at one size of codebook."""

    name = "codebooks"
    title = "Codebooks compared"
    claim = ""
    page = name
    datasets = (FASHION, PHOTOS)

    def _finals(self, study: Study) -> Iterator[Comparison]:
        """The scale's own size; others, and other images, at the rates that were best there."""
        own: Comparison | None = None
        for dataset in study.datasets(self.datasets):
            for size in (None, *(study.scale.sizes if dataset != PHOTOS else ())):
                methods, protocols = (ELSEWHERE, PROTOCOLS[:1]) if own else (FINAL, PROTOCOLS)
                of = (study.scale, TASK, dataset, methods, study.seeds, size, protocols)
                yield (comparison := Comparison(*of, tuned=own))
                own = own or comparison

    def _sieve(self, study: Study) -> Iterator[Comparison]:
        """All rules, one seed, fewer updates: the first round, which the others have passed."""
        short = study.scale.sieve
        for dataset in study.datasets((FASHION,)):
            steps = {**study.scale.steps_of, dataset: short["steps"]}
            scale = replace(study.scale, rates=short["rates"], steps_of=steps)
            yield Comparison(scale, TASK, dataset, (*FINAL, *SIEVE), 1, protocols=("matched",))

    def wants(self, study: Study) -> Iterator[Work]:
        costs = study.costs(TASK, COSTING)
        for comparison in (*self._finals(study), *self._sieve(study)):
            yield from comparison.wanted(study.results, costs)
        for comparison in self._sieve(study):
            for method in RATED:
                for rate in (LOW_RATE, *comparison.grid(method)):
                    yield comparison.run(method, rate, 0)
        yield Costs(study.scale.name, TASK, COSTING)

    def section(self, study: Study) -> Section:
        costs = study.costs(TASK, COSTING)
        tables, said, plots = [], [], []
        for comparison in (*self._finals(study), *self._sieve(study)):
            made = table(comparison, None, study.results, costs)
            if made is None or all(row.method == BOUND for row in made.rows):
                continue
            tables.append(made)
            of_all = len(comparison.methods) > len(FINAL)
            said += list(_order(made, comparison.scale.rates) if of_all else _verdicts(made))
        for comparison in self._sieve(study):
            lines = list(_by_rate(study, comparison))
            said += list(_flatness(lines))
            if lines:
                plots.append(
                    Plot(
                        f"codebooks-{comparison.dataset}-rates",
                        f"{comparison.dataset}, seed 0",
                        "learning rate of the codebook",
                        "MSE of test images",
                        lines,
                        log_x=True,
                        log_y=True,
                    )
                )
        work = Costs(study.scale.name, TASK, COSTING)
        if content := study.results.get(work):
            tables.append(costs_table(content, study.results.name(work)))
        said += [
            f"A step of {name} takes {ratio:.2f} times as long as VQ-VAE's."
            for name, ratio in costs.items()
            if name in FINAL and name not in ("VQ-VAE", BOUND)
        ]
        missing = [] if tables else ["Not run."]
        return Section(self.name, self.title, self.claim, said, tables, plots, missing=missing)


def _verdicts(made: Table) -> Iterator[str]:
    """What a look-ahead adds to the best rule without one, over the seeds that both have."""
    rows = [row for row in made.rows if row.protocol == "matched" and "mse" in row.cells]
    without = [row for row in rows if row.method in WITHOUT_LOOKING]
    if not without:
        return
    best = min(without, key=lambda row: row.cells["mse"].mean)
    found = {row.method: [a / b for a, b in paired(row, best, "mse")] for row in rows}
    looking = {
        name: ratios
        for name, ratios in found.items()
        if ratios and name not in (*WITHOUT_LOOKING, BOUND)
    }
    adds = "; ".join(f"{name} {said(ratios)}" for name, ratios in looking.items())
    yield (
        f"{made.title}, matched rates: of the rules that do not look ahead {best.method} is best, "
        f"MSE {_mean(best)}." + (f" What a look-ahead adds to it: {adds}." if adds else "")
    )
    for row in rows:
        if row.method in WITHOUT_LOOKING and row is not best and found[row.method]:
            yield f"{made.title}: {row.method} {_mean(row)}, {said(found[row.method])}."
    own = other(best, rows, RECOMMENDED)
    if own is not None and "usage" in own.cells:
        yield (
            f"{made.title}: the preset `recommended` is {own.method}; "
            f"{own.cells['usage'].mean:.1f}% of its codes are in use."
        )


def _order(made: Table, rates: Sequence[float]) -> Iterator[str]:
    """All rules from the best on."""
    rows = [row for row in made.rows if "mse" in row.cells and row.method != BOUND]
    rows.sort(key=lambda row: row.cells["mse"].mean)
    yield (
        f"{made.title}, one seed, codebook rates {', '.join(f'{rate:g}' for rate in rates)} or the "
        "paper protocol's, MSE e-3 from the best rule on: "
        + ", ".join(f"{row.method} {row.cells['mse'].mean:.2f}" for row in rows)
        + "."
    )


def _mean(row: Row) -> str:
    cell = row.cells["mse"]
    return f"{cell.mean:.2f}e-3" + (f" ± {cell.spread:.2f}" if cell.spread is not None else "")


def said(ratios: Sequence[float], figure: str = "MSE") -> str:
    """Paired ratios of a figure to another rule's in words, with what they say."""
    mean = f"{statistics.fmean(ratios):.2f} of its {figure}"
    if len(ratios) == 1:
        return f"{mean} (one seed), {_judged(ratios)}"
    return (
        f"{mean} ({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} seeds), "
        f"{_judged(ratios)}"
    )


def _judged(ratios: Sequence[float]) -> str:
    if len(ratios) < FEW:
        return "too few seeds for a verdict"
    if all(abs(ratio - 1) < SAME for ratio in ratios):
        return "nothing"
    if max(ratios) < 1:
        return "better with every seed"
    return "worse with every seed" if min(ratios) > 1 else "seeds disagree"


def _by_rate(study: Study, comparison: Comparison) -> Iterator[Line]:
    """The first seed's MSE against the codebook's rate."""
    for method in RATED:
        rates = sorted({LOW_RATE, *(rate for rate in comparison.grid(method) if rate is not None)})
        points = []
        for rate in rates:
            content = study.results.get(comparison.run(method, rate, 0))
            if content and "figures" in content:
                points.append((rate, content["figures"]["mse"]))
        if len(points) > 1:
            yield Line(method, *zip(*points, strict=True))
    for method in (RECOMMENDED, "EMA + transport"):
        content = study.results.get(comparison.run(method, None, 0))
        if content and "figures" in content:
            ends = (LOW_RATE, max(study.scale.rates))
            yield Line(f"{method}, no rate", ends, (content["figures"]["mse"],) * 2)


def _flatness(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if line.label in RATED:
            yield (
                f"{line.label}: from a codebook rate of {line.x[0]:g} to {line.x[-1]:g} the MSE of "
                f"seed 0 lies between {min(line.y) / 1e-3:.2f}e-3 and {max(line.y) / 1e-3:.2f}e-3, "
                f"a factor of {max(line.y) / min(line.y):.2f}."
            )

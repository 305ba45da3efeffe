"""Rules for a codebook beside each other: which one needs no tuning; not in the paper."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reproduction.paper.comparison import Comparison
from reproduction.paper.costs import costs_table
from reproduction.paper.further import Beginning
from reproduction.paper.rows import lacking, paired, table
from reproduction.paper.runner import Work
from reproduction.paper.sections import Cell, Column, Line, Plot, Protocol, Row, Section, Table
from reproduction.paper.study import Experiment, Study
from reproduction.paper.verdicts import FEW, direction

TASK = "reconstruction"
FASHION, PHOTOS = "fashion-mnist", "photos"
BOUND = "No quantization"
AVERAGES = "EMA + replace"
RECOMMENDED = "EMA + replace + warm start"  # what the method of that name is
FINAL = (
    *(BOUND, "VQ-VAE", "VQ-VAE + replace", AVERAGES, RECOMMENDED),
    *("MQ-VAE", "MQ-VAE, amortized", "MQ-VAE + replace", "Transport", "EMA + transport"),
)
LIKE = {  # what looks ahead, and the same without: both with replacement, or neither
    "MQ-VAE": "VQ-VAE",
    "MQ-VAE, amortized": "VQ-VAE",
    "MQ-VAE + replace": "VQ-VAE + replace",
    "Transport": "VQ-VAE + replace",  # neither leaves a code unused
    "EMA + transport": AVERAGES,
}
WITHOUT_LOOKING = ("VQ-VAE", "VQ-VAE + replace", AVERAGES)
ELSEWHERE = (BOUND, *WITHOUT_LOOKING, "EMA + transport")  # at other sizes, of other images
FIRST_ROUND = (
    *("EMA, 0.99", "EMA, 0.9", "MQ-VAE, amortized + replace"),
    *("VQ-VAE + cosine", "VQ-VAE + affine", "VQ-VAE + linear map", "VQ-VAE + rotation"),
    *("VQ-VAE + warm start", "VQ-VAE + gradual warm start"),
    *("VQ-VAE, SGD", "VQ-VAE, Adagrad", "VQ-VAE, row-wise Adam"),
    *("VQ-VAE + batch norm", "VQ-VAE + layer norm", "FSQ", "LFQ", "BSQ"),
)
COSTING = ("VQ-VAE", *(name for name in (*FINAL, *FIRST_ROUND) if name != "VQ-VAE"))
RATED = ("VQ-VAE", "VQ-VAE + replace", "MQ-VAE", "Transport")
PROTOCOLS: Sequence[Protocol] = ("matched", "time")  # the paper compares none of this
SAME = 0.005  # what is nearer to 1 is written as 1.00
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

    def _first_round(self, study: Study) -> Iterator[Beginning]:
        """All rules at some rates each, one seed, the first steps of a run."""
        steps = study.scale.judged_after[TASK]
        for dataset in study.datasets((FASHION,)):
            own = study.comparison(TASK, dataset, (*FINAL, *FIRST_ROUND))
            for method in own.methods:
                rates = study.scale.first_round
                if method in RATED:
                    rates = sorted({LOW_RATE, study.scale.network_rate(TASK), *rates})
                for rate in [None] if own.paper_rate(method) is None else rates:
                    yield Beginning(own.run(method, rate, 0), steps)

    def wants(self, study: Study) -> Iterator[Work]:
        costs = study.costs(TASK, COSTING)
        for comparison in self._finals(study):
            yield from comparison.wanted(study.results, costs)
        yield from self._first_round(study)
        yield from study.costing(TASK, COSTING).values()

    def section(self, study: Study) -> Section:
        costs = study.costs(TASK, COSTING)
        finals: dict[str, Table] = {}
        missing: list[str] = []
        for comparison in self._finals(study):
            made = table(comparison, None, study.results, costs)
            missing += lacking(comparison, study.results, costs, made)
            if made is None or all(row.method == BOUND for row in made.rows):
                continue
            finals[_size(comparison)] = made
        like, best = _beside_like(finals), _beside_best(finals)
        said = list(_first(like, best, finals))
        tables = [each for each in (like, best) if each is not None]
        tables += finals.values()
        plots = []
        tried = {
            work: content
            for work in self._first_round(study)
            if (content := study.results.get(work))
        }
        if any("failed" not in content for content in tried.values()):
            tables.append(_all_rules(study, tried))
            lines = list(_by_rate(tried))
            said += _flatness(lines, study.scale.judged_after[TASK])
            plots.append(
                Plot(
                    "codebooks-rates",
                    f"{tables[-1].title}, seed 0",
                    "learning rate of the codebook",
                    "MSE of validation images",
                    lines,
                    log_x=True,
                    log_y=True,
                )
            )
        if of_steps := costs_table(study.costing(TASK, COSTING), study.results):
            tables.append(of_steps)
        return Section(self.name, self.title, self.claim, said, tables, plots, missing=missing)


def _beside_like(finals: Mapping[str, Table]) -> Table | None:
    """The MSE of what looks ahead over that of the same rule without."""
    cells: dict[str, dict[str, Cell]] = {}
    for size, made in finals.items():
        there = _matched(made)
        for name, base in LIKE.items():
            if name in there and base in there:
                found = _ratios(there[name], there[base])
                if found:
                    cells.setdefault(f"{name} over {base}", {})[size] = _told(found)
    return _ratio_table(
        "What a look-ahead adds: MSE over that of the same rule without", cells, finals
    )


def _beside_best(finals: Mapping[str, Table]) -> Table | None:
    """The MSE of rules that do not look ahead over that of the best of them."""
    cells: dict[str, dict[str, Cell]] = {}
    for size, made in finals.items():
        there = {name: row for name, row in _matched(made).items() if name in WITHOUT_LOOKING}
        if not there:
            continue
        best = min(there.values(), key=lambda row: row.cells["mse"].mean)
        for name, row in there.items():
            ratios = [] if row is best else _ratios(row, best)
            told = _told(ratios) if ratios else Cell((1.0,), detail=f"MSE {_mean(best)}")
            cells.setdefault(name, {})[size] = told
    return _ratio_table("Rules that do not look ahead: MSE over that of the best", cells, finals)


def _ratio_table(
    title: str, cells: Mapping[str, Mapping[str, Cell]], finals: Mapping[str, Table]
) -> Table | None:
    columns = [Column(size, size, "lower") for size in finals]
    rows = [Row(name, "matched", of_sizes) for name, of_sizes in cells.items()]
    return Table(f"{title}, matched learning rates", columns, rows) if rows else None


def _matched(made: Table) -> dict[str, Row]:
    """Rows at matched learning rates by their methods."""
    return {r.method: r for r in made.rows if r.protocol == "matched" and "mse" in r.cells}


def _told(ratios: Sequence[float]) -> Cell:
    """Paired ratios, and what they say."""
    return Cell(tuple(ratios), detail=judged(ratios))


def _first(like: Table | None, best: Table | None, finals: Mapping[str, Table]) -> Iterator[str]:
    """What a reader takes home."""
    if like is not None:
        told = [c.detail for row in like.rows for c in row.cells.values() if len(c.values) >= FEW]
        if told:
            yield (
                "At matched learning rates a look-ahead lowers the MSE with every seed in "
                f"{told.count('better with every seed')} of {len(told)} comparisons with the same "
                f"rule without one, and raises it in {told.count('worse with every seed')}."
            )
    if best is not None:
        own = [c.mean for r in best.rows if r.method == AVERAGES for c in r.cells.values()]
        if own:
            yield (
                f"{AVERAGES}, which has no codebook learning rate, has {min(own):.2f} to "
                f"{max(own):.2f} times the MSE of the best rule without a look-ahead."
            )
    for made in finals.values():
        there = _matched(made)
        if RECOMMENDED in there and AVERAGES in there:
            ratios = _ratios(there[RECOMMENDED], there[AVERAGES])
            if ratios:
                yield f"{RECOMMENDED}, the method `recommended`, has {said(ratios)} of {AVERAGES}."


def _size(comparison: Comparison) -> str:
    """A comparison's data set and codebook, short enough for a column."""
    codes = comparison.scale.settings[TASK]["quantizer"]["init_args"]
    number, dim = comparison.size or (codes.get("num_codes", 1024), codes["dim"])
    return f"{comparison.dataset}, {number:,} × {dim}"


def _ratios(row: Row, base: Row) -> list[float]:
    return [ours / theirs for ours, theirs in paired(row, base, "mse")]


Tried = Mapping[Beginning, Mapping[str, Any]]
"""Rules at a rate each, and what came of it."""


def _ended(tried: Tried, method: str) -> dict[float | None, Mapping[str, Any]]:
    """What came of a rule by its rates, where it did not fail."""
    return {
        work.run.rate: content
        for work, content in tried.items()
        if work.run.method == method and "failed" not in content
    }


def _rates(tried: Tried) -> list[float]:
    """From the lowest on."""
    return sorted({work.run.rate for work in tried if work.run.rate is not None})


def _all_rules(study: Study, tried: Tried) -> Table:
    """The first round: each rule at the best of its rates, and what it is at the others."""
    columns = [
        Column("mse", "MSE (e-3)", "lower", 1e-3, "of validation images, at the best rate"),
        Column("perplexity", "Perplexity", "higher", 1.0, "of the batches before"),
        *(
            Column(f"{rate:g}", f"at {rate:g}", "lower", 1e-3, "MSE (e-3) at this rate")
            for rate in _rates(tried)
        ),
    ]
    steps, rates = study.scale.judged_after[TASK], study.scale.first_round
    rows = []
    for method in dict.fromkeys(work.run.method for work in tried):
        ended = _ended(tried, method)
        if not ended:
            continue
        errors = {rate: content["validation"] / 1e-3 for rate, content in ended.items()}
        best = min(errors, key=lambda rate: errors[rate])
        cells = {
            "mse": Cell((errors[best],)),
            "perplexity": Cell((ended[best]["perplexity"],)),
            **{f"{rate:g}": Cell((error,)) for rate, error in errors.items() if rate is not None},
        }
        names = tuple(study.results.name(work) for work in tried if work.run.method == method)
        rows.append(Row(method, "matched", cells, best, steps, runs=names))
    rows.sort(key=lambda row: row.cells["mse"].mean)
    dataset = study.datasets((FASHION,))[0]
    title = f"{dataset}, all rules after {steps:,} of {study.scale.steps(TASK):,} steps"
    notes = [
        f"Each rule at codebook learning rates of {' or '.join(f'{rate:g}' for rate in rates)}; "
        "a few at lower ones as well.",
        "One seed: less than a tenth is no difference.",
        *(f"{work.words}: {each['failed']}" for work, each in tried.items() if "failed" in each),
    ]
    return Table(title, columns, rows, notes)


def _mean(row: Row) -> str:
    cell = row.cells["mse"]
    return f"{cell.mean:.2f}e-3" + (f" ± {cell.spread:.2f}" if cell.spread is not None else "")


def judged(ratios: Sequence[float]) -> str:
    """What paired ratios of a metric that is better lower say of a rule."""
    if len(ratios) < FEW:
        return "one seed" if len(ratios) == 1 else "too few for a verdict"
    if all(abs(ratio - 1) < SAME for ratio in ratios):
        return "no significant difference"
    return direction(ratios, lower=True)


def said(ratios: Sequence[float], metric: str = "MSE") -> str:
    """Paired ratios of a metric to another rule's in words, with what they say."""
    mean = f"{statistics.fmean(ratios):.2f} times the {metric}"
    if len(ratios) == 1:
        return f"{mean} (one seed, no verdict)"
    over = f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} seeds"
    return f"{mean} ({over}, {judged(ratios)})"


def _by_rate(tried: Tried) -> Iterator[Line]:
    """The MSE against the codebook's rate."""
    rates = _rates(tried)
    for method in (*RATED, AVERAGES, "EMA + transport"):
        errors = {rate: each["validation"] for rate, each in _ended(tried, method).items()}
        if None in errors and rates:
            yield Line(f"{method}, no rate", (rates[0], rates[-1]), (errors[None],) * 2)
        elif len(errors) > 1:
            yield Line(method, *zip(*errors.items(), strict=True))


def _flatness(lines: Sequence[Line], steps: int) -> Iterator[str]:
    for line in lines:
        if line.label in RATED:
            yield (
                f"{line.label}: from a codebook learning rate of {line.x[0]:g} to {line.x[-1]:g} "
                f"the MSE after {steps:,} steps lies between {min(line.y) / 1e-3:.2f}e-3 and "
                f"{max(line.y) / 1e-3:.2f}e-3, a factor of {max(line.y) / min(line.y):.2f} (one "
                "seed)."
            )

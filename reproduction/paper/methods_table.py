"""A table of methods on some data sets, its sentences and its pictures."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mqvae.metrics import METRICS
from reproduction.paper.comparison import Comparison
from reproduction.paper.methods import paper_value
from reproduction.paper.rows import by_protocol, lacking, of_runs, table, title_of
from reproduction.paper.runner import Work
from reproduction.paper.scales import load_scale
from reproduction.paper.sections import Claim, Image, Line, Plot, Protocol, Section, Table
from reproduction.paper.study import Experiment, Study, placed
from reproduction.paper.verdicts import OF_PAPER, best_by_every, claim, every, verdicts
from reproduction.paper.work import Run

BOUND = "No quantization"
WITHOUT_INCEPTION = (
    "FID and IS: the weights of Inception were not there; the Fréchet distance by VGG16 and the "
    "class score stand for them."
)


@dataclass(frozen=True)
class MethodsTable(Experiment):
    """Methods beside each other on some data sets.

    Attributes:
        name: As a command takes it.
        title: One line.
        claim: What the paper says.
        number: Of the paper's table.
        task: "reconstruction" or "classification".
        datasets: In the paper's order; further ones are ours.
        methods: Rows.
        judged: The metrics that are judged.
        pairs: A method, and the one that it is compared with.
        protocols: In which they are compared.
        best: How many of the pairs the paper says are better by every metric.
        claimed: What comes first on the page: words, a pair and a metric.
    """

    name: str
    title: str
    claim: str
    number: int | None
    task: str
    datasets: Sequence[str]
    methods: Sequence[str]
    judged: Sequence[str]
    pairs: Sequence[tuple[str, str]] = ()
    protocols: Sequence[Protocol] = Comparison.protocols
    best: int = 0
    claimed: Sequence[tuple[str, tuple[str, str], str]] = ()

    def comparison(self, study: Study, dataset: str) -> Comparison:
        """Its methods on one of its data sets."""
        made = study.comparison(self.task, dataset, self.methods)
        return replace(made, protocols=self.protocols)

    def wants(self, study: Study) -> Iterator[Work]:
        costs = study.costs(self.task, self.methods)
        for dataset in study.datasets(self.datasets):
            yield from self.comparison(study, dataset).wanted(study.results, costs)
        if "time" in self.protocols:
            yield from study.costing(self.task, self.methods).values()

    def section(self, study: Study) -> Section:
        tables, sentences, judged = [], [], []
        missing: list[str] = []
        costs = study.costs(self.task, self.methods)
        ran = []
        for dataset in study.datasets(self.datasets):
            comparison = self.comparison(study, dataset)
            made = table(comparison, self.number, study.results, costs)
            missing += lacking(comparison, study.results, costs, made)
            if made is None:
                continue
            ran.append(dataset)
            keys = [key for key in self.judged if any(key in row.cells for row in made.rows)]
            tables += [*(by_protocol(made, key) for key in keys), made]
            rows = [row for key in keys for row in verdicts(made, key, self.pairs)]
            judged += [(dataset, row) for row in rows]
            told = [every(made, *pair) for pair in self.pairs[: self.best]]
            sentences += [(dataset, said) for said in told if said]
            shown = {column.key for column in made.columns}
            if self.number and "frechet_vgg16" in shown and "fid" not in shown:
                missing.append(WITHOUT_INCEPTION)
        missing += [
            f"{name}: its files were not there when this was run."
            for name in self.datasets
            if study.scale.dataset is None and name not in study.datasets(self.datasets)
        ]
        several = len(ran) > 1
        return Section(
            self.name,
            placed(self.title, ran, self.datasets),
            self.claim,
            [
                *(f"{dataset}. {said}" if several else said for dataset, said in sentences),
                *self.more(study, tables),
            ],
            [*tables, *self.more_tables(study)],
            list(self.plots(study)),
            list(self.images(study)),
            missing,
            [
                replace(row, claim=f"{dataset}. {row.claim}") if several else row
                for dataset, row in judged
            ],
        )

    def claims(self, study: Study) -> Iterator[Claim]:
        costs = study.costs(self.task, self.methods)
        for dataset in study.datasets(self.datasets):
            made = table(self.comparison(study, dataset), self.number, study.results, costs)
            if made is None:
                continue
            for words, pair, key in self.claimed:
                if found := claim(self.name, words, made, pair, key):
                    yield found
            if self.best and self.number is not None:
                pairs = self.pairs[: self.best]
                papers = list(self._best_in_paper(dataset, pairs))
                found = best_by_every(self.name, made, pairs, papers) if papers else None
                if found and self.number == 1:
                    yield found
            return

    def _best_in_paper(self, dataset: str, pairs: Sequence[tuple[str, str]]) -> Iterator[bool]:
        """Whether the paper's own values are better, metric by metric and pair by pair."""
        for pair in pairs:
            for key in OF_PAPER:
                ours, theirs = (paper_value(self.number or 0, dataset, name, key) for name in pair)
                if ours is not None and theirs is not None:
                    higher = METRICS[key].better == "higher"
                    yield ours > theirs if higher else ours < theirs

    def more(self, study: Study, tables: Sequence[Table]) -> Iterator[str]:
        """Further sentences."""
        yield from ()

    def more_tables(self, study: Study) -> Iterator[Table]:
        """Further tables."""
        yield from ()

    def plots(self, study: Study) -> Iterator[Plot]:
        """Its plots."""
        yield from ()

    def images(self, study: Study) -> Iterator[Image]:
        """Strips of images."""
        yield from ()


@dataclass(frozen=True)
class AtSizes(MethodsTable):
    """A table at the sizes of another scale, on the page of the scale `cpu`.

    Attributes:
        at: Name of that scale.
    """

    at: str = ""

    def comparison(self, study: Study, dataset: str) -> Comparison:
        if study.scale.name == "cpu":
            study = replace(study, scale=load_scale(self.at))
        return super().comparison(study, dataset)


def single(study: Study, comparison: Comparison, method: str) -> Run | None:
    """The first seed of a method as the paper has it, else at whatever learning rate there is."""
    rates = [comparison.paper_rate(method), *comparison.grid(method)]
    runs = (comparison.run(method, rate, 0) for rate in rates)
    return next((run for run in runs if study.results.get(run) is not None), None)


def strips(study: Study, task: str, dataset: str, methods: Sequence[str]) -> Iterator[Image]:
    """Originals, and what the first seed of each method makes of them."""
    comparison = study.comparison(task, dataset, methods)
    found = {}
    for method in methods:
        run = single(study, comparison, method)
        content = None if run is None else study.results.get(run)
        for name, png in (content or {}).get("strips", {}).items():
            found["Original" if name == "original" else method] = base64.b64decode(png)
    for title in sorted(found, key=lambda title: title != "Original"):
        yield Image(title, found[title])


class WithSingles(MethodsTable):
    """A table of which single runs are there, at learning rates of no protocol."""

    def more_tables(self, study: Study) -> Iterator[Table]:
        for dataset in study.datasets(self.datasets):
            comparison = self.comparison(study, dataset)
            made = table(comparison, self.number, study.results, {})
            runs = [single(study, comparison, method) for method in self.methods]
            there = [run for run in runs if run is not None]
            title = f"{title_of(comparison)}, seed 0, no verdict"
            if paper_value(self.number or 0, dataset, self.methods[0], "lpips") is None:
                title += ", which the paper's table does not have"
            if made is None and (found := of_runs(title, there, self.task, study.results)):
                yield found


class WithPictures(MethodsTable):
    """A table with what the networks make of some images."""

    def images(self, study: Study) -> Iterator[Image]:
        for dataset in study.datasets(self.datasets):
            yield from strips(study, self.task, dataset, self.methods)


class WithOverfitting(MethodsTable):
    """Classifiers, and how their loss on held-out images goes while that on training ones falls."""

    shown = (BOUND, "VQ-VAE", "MQ-VAE")

    def _curves(self, study: Study) -> Iterator[tuple[str, str, Line, Line]]:
        """Data set, method, loss on training images, loss on held-out ones; the first seed."""
        for dataset in study.datasets(self.datasets):
            comparison = self.comparison(study, dataset)
            for method in self.methods:
                content = study.results.get(
                    comparison.run(method, comparison.paper_rate(method), 0)
                )
                curve = (content or {}).get("curve", {})
                pairs = list(zip(curve.get("step", ()), curve.get("validation", ()), strict=False))
                kept = [(step, value) for step, value in pairs if value is not None]
                if kept:
                    steps, values = zip(*kept, strict=True)
                    training = Line(f"{method}, training", curve["step"], curve["task"])
                    yield dataset, method, training, Line(f"{method}, held out", steps, values)

    def plots(self, study: Study) -> Iterator[Plot]:
        of_dataset: dict[str, list[Line]] = {}
        for dataset, method, training, held_out in self._curves(study):
            if method in self.shown:
                of_dataset.setdefault(dataset, []).extend((training, held_out))
        for dataset, lines in of_dataset.items():
            title = f"{dataset}, our reading of the paper's protocol, seed 0"
            yield Plot(f"{self.name}-{dataset}", title, "update", "cross-entropy", lines)

    def more(self, study: Study, tables: Sequence[Table]) -> Iterator[str]:
        for row in (row for each in tables for row in each.rows):
            gap = row.cells.get("gradient_gap")
            if (row.method, row.protocol) == ("VQ-VAE", "paper") and gap and gap.paper:
                yield (
                    f"VQ-VAE's gap is {gap.mean:.3g} here and {gap.paper:g} in the paper, which "
                    "does not say how it sums a batch, nor how large that is where it measures: "
                    "values cannot be compared, ratios can."
                )
        for dataset, method, _, held_out in self._curves(study):
            least = min(held_out.y)
            step = held_out.x[list(held_out.y).index(least)]
            if held_out.y[-1] > 1.05 * least:
                yield (
                    f"{dataset}, {method} overfits: its CE on held-out images is lowest after "
                    f"{step:,} steps, {least:.2f}, and ends at {held_out.y[-1]:.2f}."
                )

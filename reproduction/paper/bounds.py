"""How much a codebook could win, and how long a run must be; not in the paper."""

from collections.abc import Iterator, Mapping

from reproduction.paper.figures import FASHION
from reproduction.paper.further import Beginning, Diagnosis
from reproduction.paper.rows import IN_WORDS
from reproduction.paper.runner import Work
from reproduction.paper.sections import Cell, Column, Line, Plot, Protocol, Row, Section, Table
from reproduction.paper.study import Experiment, Study
from reproduction.paper.work import Run


class Bounds(Experiment):
    """How much any codebook rule could win; not in the paper."""

    name = "bounds"
    title = "How much a codebook could win"
    claim = "Nothing: these diagnoses are ours. They train nothing."
    methods = ("VQ-VAE", "MQ-VAE", "VQ-VAE + replace", "MQ-VAE + replace")

    def _runs(self, study: Study) -> Iterator[tuple[Protocol, Run]]:
        for dataset in study.datasets(FASHION):
            comparison = study.comparison("reconstruction", dataset, self.methods)
            for protocol, _, run in comparison.first_runs(study.results):
                yield protocol, run

    def wants(self, study: Study) -> Iterator[Work]:
        for dataset in study.datasets(FASHION):
            comparison = study.comparison("reconstruction", dataset, ("No quantization",))
            yield comparison.run("No quantization", None, 0)
            yield from study.comparison("reconstruction", dataset, self.methods).choices(
                study.results
            )
        for _, run in self._runs(study):
            yield from (run, Diagnosis(run))

    def section(self, study: Study) -> Section:
        columns = [
            Column("mse", "MSE (e-3)", "lower", 1e-3, "as trained, all test images"),
            Column("refit", "Refitted", "lower", 1e-3, "the codebook by k-means to convergence"),
            Column("before", "MSE, some", "lower", 1e-3, "as trained, on the images of the next"),
            Column("nearest", "Best of 4", "lower", 1e-3, "of the 4 nearest codes, by task loss"),
        ]
        rows, gains = [], []
        for protocol, run in self._runs(study):
            content = study.results.get(Diagnosis(run))
            if content is None:
                continue
            refit, nearest = content["refit"], content["nearest"]
            values = {
                "mse": refit["before"],
                "refit": refit["after"],
                "before": nearest["before"],
                "nearest": nearest["after"],
            }
            cells = {key: Cell((value / 1e-3,)) for key, value in values.items()}
            runs = (study.results.name(Diagnosis(run)),)
            rows.append(Row(run.method, protocol, cells, run.rate, run.steps, runs=runs))
            gains.append(
                (
                    f"{run.method}, {IN_WORDS[protocol].lower()}",
                    refit["after"] / refit["before"] - 1,
                    nearest["after"] / nearest["before"] - 1,
                )
            )
        said = [
            f"{label}: refitting the codebook changes the MSE by {_percent(refit)}, the best of "
            f"the 4 nearest codes by {_percent(nearest)}."
            for label, refit, nearest in gains
        ]
        for dataset in study.datasets(FASHION):
            comparison = study.comparison("reconstruction", dataset, ("No quantization",))
            bound = study.results.get(comparison.run("No quantization", None, 0))
            if bound and "figures" in bound:
                said.insert(0, f"Without quantization the MSE is {bound['figures']['mse']:.2e}.")
        tables = [Table("Seed 0, the network as trained", columns, rows)] if rows else []
        missing = [] if rows else ["The diagnoses: not run."]
        return Section(self.name, self.title, self.claim, said, tables, missing=missing)


class Settled(Experiment):
    """Whether a scale's length is enough; not in the paper."""

    name = "scale"
    title = "How long a run must be"
    claim = (
        "Nothing: the number of its training steps is not told. Each point is a run of its own, "
        "whose learning rates rise and fall over its whole length."
    )
    rates: Mapping[str, float | None] = {
        "No quantization": None,
        "VQ-VAE": 6e-2,
        "EMA + replace": None,
        "MQ-VAE": 6e-2,
    }

    def _runs(self, study: Study, method: str) -> list[Run]:
        dataset = study.datasets(FASHION)[0]
        comparison = study.comparison("reconstruction", dataset, (method,))
        rate = self.rates[method]
        return [comparison.run(method, rate, 0, steps=steps) for steps in study.scale.lengths]

    def wants(self, study: Study) -> Iterator[Work]:
        if study.datasets(FASHION):
            for method in self.rates:
                yield from self._runs(study, method)

    def section(self, study: Study) -> Section:
        lines: list[Line] = []
        missing: list[str] = []
        orders: dict[int, dict[str, float]] = {}
        for method in self.rates if study.datasets(FASHION) else ():
            found = []
            for run in self._runs(study, method):
                content = study.results.get(run)
                if content is not None and "figures" in content:
                    found.append((run.steps, content["figures"]["mse"]))
                    orders.setdefault(run.steps, {})[method] = content["figures"]["mse"]
            lacks = [f"{s:,}" for s in study.scale.lengths if s not in dict(found)]
            if lacks:
                missing.append(f"{method} after {', '.join(lacks)} steps.")
            if found:
                lines.append(Line(method, [s for s, _ in found], [m for _, m in found]))
        if not lines:
            return Section(self.name, self.title, self.claim, missing=missing)
        said = [
            f"After {steps:,} steps, in order: "
            + ", ".join(f"{m} {mse / 1e-3:.2f}" for m, mse in sorted(o.items(), key=_second))
            + " (MSE e-3)."
            for steps, o in sorted(orders.items())
        ]
        said += self._early(study)
        plot = Plot(
            "scale",
            "Test MSE by the length of a run, seed 0",
            "training steps",
            "MSE",
            lines,
            log_x=True,
            log_y=True,
        )
        return Section(self.name, self.title, self.claim, said, (), [plot], missing=missing)

    def _early(self, study: Study) -> Iterator[str]:
        """Whether rates early in a run are in the order in which they end, where whole runs say."""
        dataset, after = study.datasets(FASHION)[0], study.scale.judged_after["reconstruction"]
        comparison = study.comparison("reconstruction", dataset, Bounds.methods)
        for method in comparison.methods:
            found = {}
            for rate in comparison.grid(method):
                early = Beginning(comparison.run(method, rate, 0), after)
                content = study.results.get(early.run)
                if content is not None and "curve" in content:
                    losses = (early.seen(content["curve"])["validation"], content["validation"])
                    found[f"{rate:g}"] = losses
            if len(found) > 2:
                orders = [sorted(found, key=lambda rate: found[rate][at]) for at in (0, 1)]
                first, last = (", ".join(order) for order in orders)
                at_the_end = "the same" if first == last else last
                yield (
                    f"{method}, codebook learning rates by the loss on validation images, the "
                    f"best first: after {after:,} steps {first}; at the end {at_the_end}."
                )


def _percent(change: float) -> str:
    shown = f"{100 * change:+.1f}%"
    return "0.0%" if shown in ("+0.0%", "-0.0%") else shown


def _second(pair: tuple[str, float]) -> float:
    return pair[1]

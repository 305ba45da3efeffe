"""Figures 3 and 4: samples of a prior, and quality against time."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reproduction.paper.figures import CHEAP, FASHION
from reproduction.paper.further import PriorCurve
from reproduction.paper.rows import IN_WORDS
from reproduction.paper.runner import Work
from reproduction.paper.sections import Claim, Line, Plot, Protocol, Section
from reproduction.paper.study import Experiment, Study, placed
from reproduction.paper.verdicts import PAPERS, in_both


class QualityByTime(Experiment):
    """Figure 4."""

    name = "figure-4"
    title = "Figure 4: quality against time, MSE of validation images in place of FID"
    claim = "MQ-VAE reaches VQ-VAE's final quality in much less time."
    methods = ("VQ-VAE", "MQ-VAE", *CHEAP)

    def wants(self, study: Study) -> Iterator[Work]:
        for dataset in study.datasets(FASHION):
            comparison = study.comparison("reconstruction", dataset, self.methods)
            yield from comparison.wanted(study.results, {})
        yield from study.costing("reconstruction", self.methods).values()

    def _curves(
        self, study: Study, protocol: Protocol, dataset: str
    ) -> dict[str, list[Mapping[str, Any]]]:
        """By method, those of the seeds that there are."""
        comparison = study.comparison("reconstruction", dataset, self.methods)
        curves: dict[str, list[Mapping[str, Any]]] = {}
        for method in self.methods:
            try:
                runs = comparison.runs(protocol, method, study.results, {})
            except LookupError:
                continue
            found = [study.results.get(run) for run in runs]
            curves[method] = [c["curve"] for c in found if c and "curve" in c]
        return curves

    def claims(self, study: Study) -> Iterator[Claim]:
        costs = study.costs("reconstruction", self.methods)
        for dataset in study.datasets(FASHION)[:1]:
            here: dict[Protocol, str] = {}
            verdict: dict[Protocol, str] = {}
            for protocol in (*PAPERS, "matched"):
                curves = self._curves(study, protocol, dataset)
                times = _times(curves, "MQ-VAE", costs)
                if times:
                    here[protocol] = _shown(times)
                    passed = [time for time in times if time is not None and time < 1]
                    verdict[protocol] = "holds" if len(passed) == len(times) else "does not hold"
            if here:
                words = "MQ-VAE reaches VQ-VAE's final MSE (the paper: FID) in a part of its time"
                both = {protocol: verdict.get(protocol, "missing") for protocol in PAPERS}
                yield Claim(self.name, words, "much less", here, in_both(both))

    def section(self, study: Study) -> Section:
        costs = study.costs("reconstruction", self.methods)
        plots, said, missing = [], [], []
        for dataset in study.datasets(FASHION):
            for protocol in (*PAPERS, "matched"):
                curves = self._curves(study, protocol, dataset)
                lacks = [name for name in self.methods if not curves.get(name)]
                if lacks:
                    missing.append(f"{dataset}, {IN_WORDS[protocol].lower()}: {', '.join(lacks)}.")
                lines = []
                for method, of_seeds in curves.items():
                    if of_seeds and method in costs:
                        total = study.scale.steps("reconstruction")
                        lines.append(_over_seeds(method, of_seeds, costs[method] / total))
                if len(lines) < 2:
                    continue
                plots.append(
                    Plot(
                        f"figure-4-{dataset}-{protocol}",
                        f"{dataset}, {IN_WORDS[protocol].lower()}",
                        "time, VQ-VAE's whole run = 1",
                        "MSE of validation images",
                        lines,
                        log_y=True,
                    )
                )
                said += list(_passes(protocol, curves, costs))
        if len(costs) < 2:
            missing.append("The costs of a step: not measured.")
        missing.append("FID, or the distance by VGG16 in its place, while runs train.")
        return Section(self.name, self.title, self.claim, said, (), plots, missing=missing)


def _validation(curve: Mapping[str, Any]) -> list[tuple[float, float]]:
    pairs = zip(curve["step"], curve.get("validation", []), strict=False)
    return [(step, value) for step, value in pairs if value is not None]


def _over_seeds(label: str, curves: Sequence[Mapping[str, Any]], scale: float) -> Line:
    """Mean and range over seeds of validation losses, against steps times a factor."""
    points = [_validation(curve) for curve in curves]
    steps = [step for step, _ in points[0]]
    columns = [[of_seed[i][1] for of_seed in points if i < len(of_seed)] for i in range(len(steps))]
    several = len(points) > 1
    return Line(
        label,
        [step * scale for step in steps],
        [statistics.fmean(column) for column in columns],
        [min(column) for column in columns] if several else None,
        [max(column) for column in columns] if several else None,
    )


def _passes(
    protocol: Protocol,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    costs: Mapping[str, float],
) -> Iterator[str]:
    """When each method passes what VQ-VAE ends with, paired by seed."""
    for method in curves:
        if method != "VQ-VAE" and (times := _times(curves, method, costs)):
            yield (
                f"{IN_WORDS[protocol]}: {method} passes VQ-VAE's final validation MSE after "
                f"{_shown(times)} of VQ-VAE's time, seed by seed."
            )


def _times(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], method: str, costs: Mapping[str, float]
) -> list[float | None]:
    """When a method passes what VQ-VAE ends with, VQ-VAE's whole run being 1; None for never."""
    times: list[float | None] = []
    if method not in costs:
        return times
    for ours, theirs in zip(curves.get(method, ()), curves.get("VQ-VAE", ()), strict=False):
        points, goal = _validation(ours), _validation(theirs)[-1][1]
        passed = next((step for step, value in points if value <= goal), None)
        times.append(None if passed is None else passed / points[-1][0] * costs[method])
    return times


def _shown(times: Sequence[float | None]) -> str:
    if all(time is None for time in times):
        return "never"
    return ", ".join("never" if time is None else f"{time:.2f}" for time in times)


class SamplesOfPriors(Experiment):
    """Figure 3."""

    name = "figure-3"
    title = "Figure 3: samples of a PixelCNN over the codes, a distance by VGG16 in place of FID"
    claim = "Samples of a prior over MQ-VAE's codes are better than those over VQ-VAE's throughout."
    datasets = ("fashion-mnist", "svhn")
    methods = ("VQ-VAE", "MQ-VAE")

    def _curves(self, study: Study, dataset: str) -> Iterator[tuple[Protocol, str, PriorCurve]]:
        comparison = study.comparison("reconstruction", dataset, self.methods)
        for protocol, method, run in comparison.first_runs(study.results):
            yield protocol, method, PriorCurve(run)

    def wants(self, study: Study) -> Iterator[Work]:
        for dataset in study.datasets(self.datasets):
            yield from study.comparison("reconstruction", dataset, self.methods).choices(
                study.results
            )
            for _, _, curve in self._curves(study, dataset):
                yield from (curve.run, curve)

    def section(self, study: Study) -> Section:
        plots, verdicts, said, missing, ran = [], [], [], [], []
        for dataset in study.datasets(self.datasets):
            distance = "distance"
            found: dict[Protocol, dict[str, Sequence[float]]] = {}
            runs: dict[str, tuple[str, list[str], Mapping[str, Any]]] = {}
            for protocol, method, curve in self._curves(study, dataset):
                content = study.results.get(curve)
                if content is None or "points" not in content:
                    continue
                distance = content["distance"]
                found.setdefault(protocol, {})[method] = [value for _, value in content["points"]]
                # One run may be a method's in both protocols: MQ-VAE's, if its rate is the best.
                made = runs.setdefault(study.results.name(curve), (method, [], content))
                made[1].append(IN_WORDS[protocol].lower())
            lines: list[Line] = []
            for method, protocols, measured in runs.values():
                label = f"{method}, {' and '.join(protocols)}"
                steps, values = zip(*measured["points"], strict=True)
                lines.append(Line(label, steps, values))
                said.append(
                    f"{dataset}, {label}: {values[-1]:.1f} after {steps[-1]:,} updates, where "
                    f"reconstructions are at {measured['reconstructions']:.1f}; "
                    f"{measured['bits_per_code']:.2f} bits per code, "
                    f"{measured['independent_bits_per_code']:.2f} if positions were independent."
                )
            for protocol, curves in found.items():
                if set(curves) == set(self.methods):
                    of_methods = (curves[method] for method in self.methods)
                    where = f"{dataset}, {IN_WORDS[protocol].lower()}"
                    verdicts.append(f"{where}: {_throughout(*of_methods)}")
            if not lines:
                missing.append(f"{dataset}: {', '.join(self.methods)}, in every protocol.")
                continue
            ran.append(dataset)
            missing.append(f"{dataset}: seeds 1 and 2.")
            name = {"fid": "FID", "frechet_vgg16": "Fréchet distance, VGG16 (not FID)"}
            plots.append(
                Plot(
                    f"figure-3-{dataset}",
                    f"{dataset}: samples against test images, seed 0",
                    "updates of the prior",
                    name.get(distance, distance),
                    lines,
                )
            )
        title = placed(self.title, ran, self.datasets)
        return Section(self.name, title, self.claim, verdicts + said, (), plots, missing=missing)

    def claims(self, study: Study) -> Iterator[Claim]:
        for dataset in study.datasets(self.datasets):
            ends: dict[Protocol, dict[str, Sequence[float]]] = {}
            for protocol, method, curve in self._curves(study, dataset):
                content = study.results.get(curve) or {}
                if "points" in content:
                    values = [value for _, value in content["points"]]
                    ends.setdefault(protocol, {})[method] = values
            here: dict[Protocol, str] = {}
            for protocol, found in ends.items():
                if set(found) == set(self.methods):
                    theirs, ours = (found[method] for method in self.methods)
                    here[protocol] = f"{ours[-1] / theirs[-1]:.2f}, one seed"
            if here:
                words = "distance of a PixelCNN's samples over MQ-VAE's codes to VQ-VAE's (FID)"
                verdict = {p: "one seed, no verdict" if p in here else "missing" for p in PAPERS}
                yield Claim(self.name, words, "below 1", here, in_both(verdict))
                return


def _throughout(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Whether samples over MQ-VAE's codes are the nearer ones, as the paper has it."""
    nearer = sum(our < their for their, our in zip(theirs, ours, strict=True))
    return (
        f"samples over MQ-VAE's codes are nearer to test images at {nearer} of {len(ours)} points, "
        f"and their distance is {ours[-1] / theirs[-1]:.2f} times that over VQ-VAE's in the end; "
        "one seed, no verdict."
    )

"""Figures 3 and 4: samples of a prior, and quality against time."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from reproduction.paper.comparison import Comparison
from reproduction.paper.figures import CHEAP, FASHION
from reproduction.paper.further import Along, PriorCurve
from reproduction.paper.rows import IN_WORDS
from reproduction.paper.runner import Work
from reproduction.paper.sections import Claim, Column, Line, Plot, Protocol, Section
from reproduction.paper.study import Experiment, Study, placed
from reproduction.paper.verdicts import FEW, PAPERS, Beside, in_both

SHOWN: tuple[Protocol, ...] = (*PAPERS, "matched")
DISTANCES = {"fid": "FID", "frechet_vgg16": "Fréchet distance, VGG16 (not FID)"}


class QualityByTime(Experiment):
    """Figure 4."""

    name = "figure-4"
    title = "Figure 4: quality against time, MSE and a distance by VGG16 in place of FID"
    claim = "MQ-VAE reaches VQ-VAE's final quality in much less time."
    methods = ("VQ-VAE", "MQ-VAE", *CHEAP)

    def wants(self, study: Study) -> Iterator[Work]:
        for dataset in study.datasets(FASHION):
            comparison = study.comparison("reconstruction", dataset, self.methods)
            for protocol in SHOWN:
                yield from self._along(study, protocol, dataset).values()
            yield from comparison.wanted(study.results, {})
        yield from study.costing("reconstruction", self.methods).values()

    def _along(self, study: Study, protocol: Protocol, dataset: str) -> dict[str, Along]:
        """What measures the distance in training, of the first seed, by method."""
        comparison, found = study.comparison("reconstruction", dataset, self.methods), {}
        for method in self.methods:
            with suppress(LookupError):  # its learning rate cannot be told yet
                run = comparison.runs(protocol, method, study.results, {})[0]
                found[method] = Along(replace(run, final=False))
        return found

    def _distances(
        self, study: Study, protocol: Protocol, dataset: str
    ) -> tuple[dict[str, list[Mapping[str, Any]]], str]:
        """By method, the distance in training in the form of a curve; and which distance it is."""
        curves: dict[str, list[Mapping[str, Any]]] = {}
        name = "frechet_vgg16"
        for method, along in self._along(study, protocol, dataset).items():
            content = study.results.get(along)
            if content and "points" in content:
                step, value = zip(*content["points"], strict=True)
                curves[method] = [{"step": step, "validation": value}]
                name = content["distance"]
        return curves, DISTANCES[name]

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
            for protocol in SHOWN:
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
        plots: list[Plot] = []
        said: list[str] = []
        missing: list[str] = []
        for dataset in study.datasets(FASHION):
            for protocol in SHOWN:
                words = f"{dataset}, {IN_WORDS[protocol].lower()}"
                distances, distance = self._distances(study, protocol, dataset)
                for name, y, curves in (
                    ("", "MSE of validation images", self._curves(study, protocol, dataset)),
                    ("-distance", distance, distances),
                ):
                    if lacks := [each for each in self.methods if not curves.get(each)]:
                        missing.append(f"{words}, {y}: {', '.join(lacks)}.")
                    total = study.scale.steps("reconstruction")
                    lines = [
                        _over_seeds(method, of_seeds, costs[method] / total)
                        for method, of_seeds in curves.items()
                        if of_seeds and method in costs
                    ]
                    if len(lines) < 2:
                        continue
                    file = f"figure-4-{dataset}-{protocol}{name}"
                    x = "time, VQ-VAE's whole run = 1"
                    title = f"{words}, distance" if name else words
                    plots.append(Plot(file, title, x, y, lines, log_y=True))
                    said += _passes(protocol, curves, costs, y)
        if len(costs) < 2:
            missing.append("The costs of a step: not measured.")
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
    what: str,
) -> Iterator[str]:
    """When each method passes what VQ-VAE ends with, paired by seed."""
    for method in curves:
        if method == "VQ-VAE" or not (times := _times(curves, method, costs)):
            continue
        goal, seeds = f"VQ-VAE's last {what}", "" if len(times) > 1 else " (one seed)"
        if all(time is None for time in times):
            yield f"{IN_WORDS[protocol]}: {method} never reaches {goal}{seeds}."
            continue
        yield (
            f"{IN_WORDS[protocol]}: {method} reaches {goal} after {_shown(times)} of VQ-VAE's "
            f"time{seeds or ', seed by seed'}."
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
    datasets = ("fashion-mnist", "svhn", "photos")
    methods = ("VQ-VAE", "MQ-VAE")

    def _comparison(self, study: Study, dataset: str) -> Comparison:
        made = study.comparison("reconstruction", dataset, self.methods)
        return replace(made, protocols=(*PAPERS, "matched"))

    def _priors(self, study: Study, dataset: str) -> Iterator[tuple[Protocol, str, PriorCurve]]:
        """Of every method in every protocol, the first seeds first."""
        comparison = self._comparison(study, dataset)
        for seed in range(study.seeds):
            for protocol in comparison.protocols:
                for method in self.methods:
                    with suppress(LookupError):  # its learning rate cannot be told yet
                        run = comparison.runs(protocol, method, study.results, {})[seed]
                        yield protocol, method, PriorCurve(replace(run, final=False))

    def wants(self, study: Study) -> Iterator[Work]:
        for dataset in study.datasets(self.datasets):
            yield from self._comparison(study, dataset).choices(study.results)
            for _, _, prior in self._priors(study, dataset):
                yield from (prior.run, prior)

    def _found(self, study: Study, dataset: str) -> dict[Protocol, dict[str, "_Samples"]]:
        """What there is, by protocol, method and seed."""
        found: dict[Protocol, dict[str, _Samples]] = {}
        for protocol, method, prior in self._priors(study, dataset):
            content = study.results.get(prior)
            if content is not None and "points" in content:
                of_method = found.setdefault(protocol, {}).setdefault(method, {})
                of_method[prior.run.seed] = content
        return found

    def section(self, study: Study) -> Section:
        plots, verdicts, said, missing, ran = [], [], [], [], []
        for dataset in study.datasets(self.datasets):
            lines: dict[str, tuple[list[str], str, _Samples]] = {}
            found = self._found(study, dataset)
            for protocol, methods in found.items():
                words = IN_WORDS[protocol].lower()
                for method, samples in methods.items():
                    # One run may be a method's in several protocols.
                    run = self._comparison(study, dataset).runs(protocol, method, study.results, {})
                    key = study.results.name(PriorCurve(replace(run[0], final=False)))
                    lines.setdefault(key, ([], method, samples))[0].append(words)
                if set(methods) == set(self.methods):
                    theirs, ours = (methods[method] for method in self.methods)
                    verdicts.append(f"{dataset}, {words}: {_throughout(theirs, ours)}")
                for method in self.methods:
                    seeds = [s for s in range(study.seeds) if s not in methods.get(method, {})]
                    if seeds:
                        which = ", ".join(map(str, seeds))
                        missing.append(f"{dataset}, {words}: {method}, seeds {which}.")
            if not lines:
                missing.append(f"{dataset}: {', '.join(self.methods)}, in every protocol.")
                continue
            ran.append(dataset)
            drawn = []
            for protocols, method, samples in lines.values():
                label = f"{method}, {' and '.join(protocols)}"
                drawn.append(_drawn(label, samples))
                said.append(f"{dataset}, {label}: {_ends(samples)}")
            distance = str(next(iter(samples.values()))["distance"])
            plots.append(
                Plot(
                    f"figure-3-{dataset}",
                    f"{dataset}: samples against test images",
                    "training steps of the prior",
                    DISTANCES[distance],
                    drawn,
                )
            )
        title = placed(self.title, ran, self.datasets)
        return Section(self.name, title, self.claim, verdicts + said, (), plots, missing=missing)

    def claims(self, study: Study) -> Iterator[Claim]:
        for dataset in study.datasets(self.datasets):
            here: dict[Protocol, str] = {}
            verdict: dict[Protocol, str] = {}
            for protocol, methods in self._found(study, dataset).items():
                if set(methods) == set(self.methods):
                    found = _beside(*(methods[method] for method in self.methods))
                    here[protocol] = str(found)
                    verdict[protocol] = _judged(found)
            if here:
                words = "distance of a PixelCNN's samples over MQ-VAE's codes to VQ-VAE's (FID)"
                both = {protocol: verdict.get(protocol, "missing") for protocol in PAPERS}
                yield Claim(self.name, words, "below 1", here, in_both(both))
                return


_Samples = dict[int, Mapping[str, Any]]
"""What was measured of the samples of a prior, by seed."""


def _values(content: Mapping[str, Any]) -> list[float]:
    return [value for _, value in content["points"]]


def _drawn(label: str, samples: _Samples) -> Line:
    """Mean and range over seeds."""
    contents = list(samples.values())
    columns = list(zip(*map(_values, contents), strict=True))
    several = len(contents) > 1
    return Line(
        label,
        [step for step, _ in contents[0]["points"]],
        [statistics.fmean(column) for column in columns],
        [min(column) for column in columns] if several else None,
        [max(column) for column in columns] if several else None,
    )


def _ends(samples: _Samples) -> str:
    """Means over seeds of what a prior ends with."""
    contents = list(samples.values())

    def mean(key: str) -> float:
        return statistics.fmean(content[key] for content in contents)

    seeds = f"{len(contents)} seeds" if len(contents) > 1 else "one seed"
    return (
        f"{statistics.fmean(_values(content)[-1] for content in contents):.1f} after "
        f"{contents[0]['points'][-1][0]:,} steps ({seeds}), where reconstructions are at "
        f"{mean('reconstructions'):.1f}; {mean('bits_per_code'):.2f} bits per code, "
        f"{mean('independent_bits_per_code'):.2f} if positions were independent."
    )


def _beside(theirs: _Samples, ours: _Samples) -> Beside:
    """The last distance over MQ-VAE's codes beside that over VQ-VAE's, of the seeds both have."""
    pairs = [
        (_values(ours[seed])[-1], _values(theirs[seed])[-1]) for seed in theirs if seed in ours
    ]
    return Beside(pairs, Column("distance", "Distance", "lower"), None)


def _judged(found: Beside) -> str:
    """The paper's curve lies below throughout, without a number."""
    told = found.judged()
    if len(found.pairs) < FEW:
        return told
    return "holds" if told.startswith("better") else f"does not hold, {told}"


def _throughout(theirs: _Samples, ours: _Samples) -> str:
    """Whether samples over MQ-VAE's codes are the nearer ones, as the paper has it."""
    pairs = [
        pair
        for seed in theirs
        if seed in ours
        for pair in zip(_values(theirs[seed]), _values(ours[seed]), strict=True)
    ]
    nearer = sum(our < their for their, our in pairs)
    ends = _beside(theirs, ours)
    return (
        f"samples over MQ-VAE's codes are nearer to test images at {nearer} of {len(pairs)} "
        f"points, and their distance is {ends} times that over VQ-VAE's in the end: "
        f"{_judged(ends)}."
    )

"""The paper's figures and Table 4, and what we put beside them."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mqvae.paper.further import PriorCurve
from mqvae.paper.rows import IN_WORDS, costs_table
from mqvae.paper.runner import Work
from mqvae.paper.sections import Line, Plot, Protocol, Section
from mqvae.paper.study import Experiment, Study
from mqvae.paper.tables import BOUND, CUT, TABLE_1, TABLE_3, TABLE_7, TABLE_8, strips
from mqvae.paper.work import Run

FASHION = ("fashion-mnist",)
CHEAP = ("MQ-VAE, kept", "MQ-VAE, amortized")


class CostOfAStep(Experiment):
    """Table 4."""

    name = "table-4"
    title = "Table 4: the cost of a step"
    claim = "A step of MQ-VAE takes 3.95 times as long as one of VQ-VAE."
    methods = tuple(dict.fromkeys((BOUND, *TABLE_1, *TABLE_3, *TABLE_7, CUT, *CHEAP)))

    def wants(self, study: Study) -> Iterator[Work]:
        yield from study.costing("reconstruction", self.methods).values()

    def section(self, study: Study) -> Section:
        costs = study.costs("reconstruction", self.methods)
        made = costs_table(study.costing("reconstruction", self.methods), study.results, 4)
        if made is None:
            return Section(self.name, self.title, self.claim, missing=["The costs: not measured."])
        said = [
            f"A step of {name} takes {costs[name]:.2f} times as long as VQ-VAE's."
            for name in ("MQ-VAE", *CHEAP)
            if name in costs
        ]
        return Section(self.name, self.title, self.claim, said, [made])


class QualityByTime(Experiment):
    """Figure 4."""

    name = "figure-4"
    title = "Figure 4: quality against time"
    claim = "MQ-VAE reaches VQ-VAE's final quality in much less time."
    methods = ("VQ-VAE", "MQ-VAE", *CHEAP)

    def wants(self, study: Study) -> Iterator[Work]:
        for dataset in study.datasets(FASHION):
            comparison = study.comparison("reconstruction", dataset, self.methods)
            yield from comparison.wanted(study.results, {})
        yield from study.costing("reconstruction", self.methods).values()

    def section(self, study: Study) -> Section:
        costs = study.costs("reconstruction", self.methods)
        plots, said = [], []
        for dataset in study.datasets(FASHION):
            comparison = study.comparison("reconstruction", dataset, self.methods)
            for protocol in ("paper", "matched"):
                curves: dict[str, list[Mapping[str, Any]]] = {}
                for method in self.methods:
                    try:
                        runs = comparison.runs(protocol, method, study.results, costs)
                    except LookupError:
                        continue
                    found = [study.results.get(run) for run in runs]
                    curves[method] = [c["curve"] for c in found if c and "curve" in c]
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
        missing = [] if len(costs) > 1 else ["The costs of a step: not measured."]
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
    base = curves.get("VQ-VAE", ())
    for method, of_seeds in curves.items():
        if method == "VQ-VAE" or not base or method not in costs:
            continue
        times = []
        for ours, theirs in zip(of_seeds, base, strict=False):
            points, goal = _validation(ours), _validation(theirs)[-1][1]
            passed = next((step for step, value in points if value <= goal), None)
            last = points[-1][0]
            times.append(None if passed is None else passed / last * costs[method])
        if times:
            shown = ", ".join("never" if t is None else f"{t:.2f}" for t in times)
            yield (
                f"{IN_WORDS[protocol]}: {method} passes VQ-VAE's final validation MSE after "
                f"{shown} of VQ-VAE's time, seed by seed."
            )


class ReconstructionsOfGans(Experiment):
    """Figure 5."""

    name = "figure-5"
    title = "Figure 5: reconstructions by VQ-GAN and MQ-GAN"
    claim = "MQ-GAN reconstructs images with higher quality."
    datasets = ("imagenet", "celeba-hq", "photos")

    def wants(self, study: Study) -> Iterator[Work]:
        for dataset in study.datasets(self.datasets):
            comparison = study.comparison("adversarial", dataset, TABLE_8)
            for method in TABLE_8:
                yield comparison.run(method, comparison.paper_rate(method), 0)

    def section(self, study: Study) -> Section:
        images = [
            image
            for dataset in study.datasets(self.datasets)
            for image in strips(study, "adversarial", dataset, TABLE_8)
        ]
        missing = [] if images else ["The reconstructions: not run."]
        return Section(self.name, self.title, self.claim, images=images, missing=missing)


class GradientDynamics(Experiment):
    """Figure 6."""

    name = "figure-6"
    title = "Figure 6: direct and indirect hypergradient"
    claim = (
        "The direct hypergradient is only about four times as long as the indirect one, and the "
        "two are not fully correlated: on CIFAR-100 their cosine is negative in the middle of "
        "training."
    )

    def wants(self, study: Study) -> Iterator[Work]:
        for dataset in study.datasets(("cifar100", "fashion-mnist")):
            yield self._run(study, dataset)

    def _run(self, study: Study, dataset: str) -> Run:
        comparison = study.comparison("reconstruction", dataset, ("MQ-VAE",))
        return comparison.run("MQ-VAE", comparison.paper_rate("MQ-VAE"), 0)

    def section(self, study: Study) -> Section:
        plots, said, missing = [], [], []
        for dataset in study.datasets(("cifar100", "fashion-mnist")):
            content = study.results.get(self._run(study, dataset))
            if content is None or "direct_norm" not in content.get("curve", {}):
                missing.append(f"{dataset}: not run.")
                continue
            curve = content["curve"]
            steps = curve["step"]
            plots += [
                Plot(
                    f"figure-6-{dataset}-norms",
                    f"{dataset}: lengths",
                    "update",
                    "norm",
                    [
                        Line("direct", steps, curve["direct_norm"]),
                        Line("indirect", steps, curve["indirect_norm"]),
                    ],
                    log_y=True,
                ),
                Plot(
                    f"figure-6-{dataset}-cosine",
                    f"{dataset}: cosine of the two",
                    "update",
                    "cosine",
                    [Line("cosine", steps, curve["cosine"])],
                ),
            ]
            pairs = zip(curve["direct_norm"], curve["indirect_norm"], strict=True)
            ratio = statistics.median(d / i for d, i in pairs if i)
            cosines = curve["cosine"]
            said.append(
                f"{dataset}: the direct term is {ratio:.1f} times as long as the indirect one "
                f"(median); their cosine lies between {min(cosines):.2f} and {max(cosines):.2f}, "
                f"{statistics.fmean(cosines):.2f} in the mean."
            )
        return Section(self.name, self.title, self.claim, said, (), plots, missing=missing)


class SamplesOfPriors(Experiment):
    """Figure 3."""

    name = "figure-3"
    title = "Figure 3: samples of a PixelCNN over the codes"
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
        plots, verdicts, said, missing = [], [], [], []
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
                missing.append(f"{dataset}: not run, or nothing to measure samples with.")
                continue
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
        said = verdicts + said
        return Section(self.name, self.title, self.claim, said, (), plots, missing=missing)


def _throughout(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Whether samples over MQ-VAE's codes are the nearer ones, as the paper has it."""
    nearer = sum(our < their for their, our in zip(theirs, ours, strict=True))
    return (
        f"samples over MQ-VAE's codes are nearer to test images at {nearer} of {len(ours)} points, "
        f"and in the end at {ours[-1] / theirs[-1]:.2f} of VQ-VAE's distance, one seed: "
        f"{'holds' if nearer == len(ours) else 'does not hold'}."
    )

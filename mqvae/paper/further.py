"""Work beside whole runs: costs of a step, beginnings, diagnoses, a prior's curve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mqvae.paper.methods import METHODS, OURS
from mqvae.paper.results import Results
from mqvae.paper.scales import load_scale
from mqvae.paper.work import Place, Run, curve_of, filled

OF_TASK = {  # whose steps are compared; the first is the measure of the others
    "reconstruction": (
        "VQ-VAE",
        *(name for name in METHODS if name not in ("VQ-VAE", *OURS) and "GAN" not in name),
    ),
    "classification": ("VQ-VAE", "No quantization", *list(METHODS)[2:8]),
    "adversarial": ("VQ-GAN", "MQ-GAN", "MQ-GAN, amortized"),
}
DATASETS = {"adversarial": "photos"}


@dataclass(frozen=True)
class Costs:
    """What a step of each method costs, at a scale's sizes.

    Attributes:
        scale: Name of the scale.
        task: "reconstruction" or "classification".
        methods: Whose; the first is the measure of the others. None for the task's own.
    """

    scale: str
    task: str
    methods: tuple[str, ...] | None = None
    alone = True

    @property
    def title(self) -> str:
        return f"costs-{self.task}"

    @property
    def words(self) -> str:
        return f"cost of a step of each method, {self.task}"

    @property
    def amount(self) -> float:
        return load_scale(self.scale).steps(self.task) / 2

    @property
    def _methods(self) -> tuple[str, ...]:
        return OF_TASK[self.task] if self.methods is None else self.methods

    def asks(self) -> dict[str, Any]:
        """Sizes and methods."""
        of_task = load_scale(self.scale).settings[self.task]
        sizes = {k: of_task[k] for k in ("data", "network", "quantizer")}
        methods = {name: METHODS[name].preset for name in self._methods}
        return {"kind": "costs", "task": self.task, "sizes": sizes, "methods": methods}

    def filled(self, asks: Mapping[str, Any]) -> dict[str, Any]:
        return dict(asks)

    def satisfied(self, content: Mapping[str, Any]) -> bool:
        return True

    def make(self, place: Place) -> dict[str, Any]:
        """Measure them in turns."""
        import datetime

        from mqvae.bench.costs import settings_costs
        from mqvae.bench.table import hardware
        from mqvae.settings import Settings

        scale = load_scale(self.scale)
        dataset = scale.dataset or DATASETS.get(self.task, "fashion-mnist")
        settings = {}
        for method in self._methods:
            run = Run(self.scale, self.task, dataset, method, None, scale.steps(self.task), 0)
            config = run.config()
            config["data"]["root"] = place.root
            config["trainer"]["accelerator"] = place.accelerator
            settings[method] = Settings.of(config)
        table = settings_costs(
            f"costs-{self.task}", settings, rounds=scale.rounds, conditions={"dataset": dataset}
        )
        rows = {str(row["step"]): row for row in table.rows}
        return {
            "costs": {name: round(float(row["ratio"] or 0), 3) for name, row in rows.items()},
            "quartiles": {
                name: [
                    round(float(row[f"{which} quartile"] or 0), 3) for which in ("lower", "upper")
                ]
                for name, row in rows.items()
            },
            "milliseconds": {name: round(float(row["ms"] or 0), 2) for name, row in rows.items()},
            "rounds": scale.rounds,
            "hardware": hardware(place.device.type),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }


@dataclass(frozen=True)
class OfRun:
    """What is made of a trained run.

    Attributes:
        run: The run.
    """

    run: Run
    alone = False

    def filled(self, asks: Mapping[str, Any]) -> dict[str, Any]:
        return {**asks, "run": filled(asks["run"])}

    def satisfied(self, content: Mapping[str, Any]) -> bool:
        return True


@dataclass(frozen=True)
class Beginning(OfRun):
    """How far a run is after some of its updates, its rates still those of the whole run.

    Attributes:
        run: The run.
        steps: Updates, at a checkpoint.
    """

    steps: int

    @property
    def title(self) -> str:
        return f"beginning-{self.steps}-of-{self.run.title}"

    @property
    def words(self) -> str:
        return f"the first {self.steps:,} updates of {self.run.words}"

    @property
    def amount(self) -> float:
        return float(self.steps)

    def asks(self) -> dict[str, Any]:
        """The run, and how many of its updates."""
        return {"kind": "beginning", "run": self.run.asks(), "steps": self.steps}

    def make(self, place: Place) -> dict[str, Any]:
        """Read it from the whole run's result where there is one, or train so far."""
        from mqvae.trainer import TrainingFailed

        whole = Results(place.results).get(self.run) or {}
        try:
            curve = whole.get("curve") or curve_of(self.run.train(place, self.steps))
        except TrainingFailed as failure:
            return {"failed": failure.cause}
        return self.seen(curve)

    def seen(self, curve: Mapping[str, Any]) -> dict[str, Any]:
        """Its result, from the curve of the run."""
        at = curve["step"].index(self.steps)
        return {name: curve[name][at] for name in ("validation", "perplexity")}


class Diagnosis(OfRun):
    """What limits a run, found without training it."""

    @property
    def title(self) -> str:
        return f"diagnosis-{self.run.title}"

    @property
    def words(self) -> str:
        return f"diagnosis of {self.run.words}"

    @property
    def amount(self) -> float:
        return self.run.amount / 3

    def asks(self) -> dict[str, Any]:
        """The run, and on how many images."""
        scale = load_scale(self.run.scale)
        return {
            "kind": "diagnosis",
            "run": self.run.asks(),
            "refitted_on": scale.refitted_on,
            "candidates_on": scale.candidates_on,
        }

    def make(self, place: Place) -> dict[str, Any]:
        """Refit its codebook, and choose among its nearest codes."""
        from mqvae.diagnosis import best_of_nearest, refitted
        from mqvae.tokenizer import Tokenizer
        from mqvae.trainer import load_split

        scale = load_scale(self.run.scale)
        folder = self.run.train(place)
        tokenizer = Tokenizer.from_run(folder)
        options = tokenizer.settings.data
        train, test = load_split(options, "train"), load_split(options, "test")
        network, task = tokenizer.network, tokenizer.task
        refit = refitted(
            network, task, train, test, device=tokenizer.device, count=scale.refitted_on
        )
        nearest = best_of_nearest(
            network, task, test, device=tokenizer.device, count=scale.candidates_on
        )
        first = next(iter(task.figures))
        return {
            "figure": first,
            "refit": {
                "before": refit.before.figures[first],
                "after": refit.after.figures[first],
                "perplexity_after": refit.after.figures["perplexity"],
                "error_before": refit.error_before,
                "error_after": refit.error_after,
                "images": refit.images,
                "restarted": refit.restarted,
                "iterations": refit.iterations,
                "converged": refit.converged,
            },
            "nearest": {
                "before": nearest.before[first],
                "after": nearest.after[first],
                "changed": nearest.changed,
                "candidates": nearest.candidates,
                "images": nearest.images,
            },
        }


class PriorCurve(OfRun):
    """A prior over a run's codes, its samples measured while it trains."""

    @property
    def title(self) -> str:
        return f"prior-{self.run.title}"

    @property
    def words(self) -> str:
        return f"prior of {self.run.words}"

    @property
    def amount(self) -> float:
        return 2 * float(load_scale(self.run.scale).prior["steps"])

    def settings(self) -> dict[str, Any]:
        """Those of the prior."""
        scale = load_scale(self.run.scale)
        steps = int(scale.prior["steps"])
        every = max(1, steps // scale.points)
        return {**scale.prior, "samples_every": every, "samples": scale.samples}

    def asks(self) -> dict[str, Any]:
        """The run, and the prior."""
        return {"kind": "prior", "run": self.run.asks(), "prior": self.settings()}

    def make(self, place: Place) -> dict[str, Any]:
        """Train it, and draw from it on the way."""
        from mqvae.prior import PriorSettings, sample_curve
        from mqvae.weights import WeightsNotFound

        folder = self.run.train(place)
        try:
            curve = sample_curve(folder, PriorSettings(**self.settings()), device=place.device)
        except WeightsNotFound as reason:
            return {"failed": str(reason)}
        return {
            "distance": curve.distance,
            "points": [[step, float(f"{value:.5g}")] for step, value in curve.points],
            "reconstructions": curve.reconstructions,
            "training_images": curve.training_images,
            "bits_per_code": curve.bits_per_code,
            "independent_bits_per_code": curve.summary["independent_bits_per_code"],
        }

"""Work beside whole runs: costs of a step, beginnings, diagnoses, a prior's curve."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mqvae.files import read_json, write_json
from reproduction.paper.asks import filled
from reproduction.paper.methods import METHODS
from reproduction.paper.outcome import curve_of, distance_of
from reproduction.paper.results import Results
from reproduction.paper.scales import load_scale
from reproduction.paper.work import Place, Run

MEASURE = {"reconstruction": "VQ-VAE", "classification": "VQ-VAE", "adversarial": "VQ-GAN"}
DATASETS = {"adversarial": "photos"}


@dataclass(frozen=True)
class Cost:
    """What a step of a method costs beside that of VQ-VAE, or VQ-GAN, at a scale's sizes.

    Attributes:
        scale: Name of the scale.
        task: "reconstruction", "classification" or "adversarial".
        method: By its name in `METHODS`.
    """

    scale: str
    task: str
    method: str
    alone = True

    @property
    def beside(self) -> str:
        """The method that it is measured beside."""
        return MEASURE[self.task]

    @property
    def title(self) -> str:
        return f"cost-{self.task}-{METHODS[self.method].preset}"

    @property
    def words(self) -> str:
        return f"cost of a step of {self.method}, {self.task}"

    @property
    def amount(self) -> float:
        return 4 * load_scale(self.scale).rounds

    def asks(self) -> dict[str, Any]:
        """Sizes and presets."""
        of_task = load_scale(self.scale).settings[self.task]
        return {
            "kind": "cost",
            "task": self.task,
            "sizes": {k: of_task[k] for k in ("data", "network", "quantizer")},
            "preset": METHODS[self.method].preset,
            "beside": METHODS[self.beside].preset,
        }

    def filled(self, asks: Mapping[str, Any]) -> dict[str, Any]:
        return dict(asks)

    def satisfied(self, content: Mapping[str, Any]) -> bool:
        return True

    def make(self, place: Place) -> dict[str, Any]:
        """Measure the two in turns."""
        import datetime

        from benchmarks.costs import settings_costs
        from benchmarks.table import hardware

        scale = load_scale(self.scale)
        dataset = scale.dataset or DATASETS.get(self.task, "fashion-mnist")
        settings = {}
        for method in (self.beside, self.method):
            run = Run(self.scale, self.task, dataset, method, None, scale.steps(self.task), 0)
            settings[method] = place.at(run.settings())
        beside, row = settings_costs(
            self.title, settings, rounds=scale.rounds, conditions={"dataset": dataset}
        ).rows
        return {
            "ratio": round(float(row["ratio"] or 0), 3),
            "quartiles": [
                round(float(row[f"{which} quartile"] or 0), 3) for which in ("lower", "upper")
            ],
            "ms": round(float(row["ms"] or 0), 2),
            "ms_beside": round(float(beside["ms"] or 0), 2),
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
    """How far a run is after some of its steps, its learning rates still those of the whole run.

    Attributes:
        run: The run.
        steps: Number of training steps, at a checkpoint.
    """

    steps: int

    @property
    def title(self) -> str:
        return f"beginning-{self.steps}-of-{self.run.title}"

    @property
    def words(self) -> str:
        return f"the first {self.steps:,} steps of {self.run.words}"

    @property
    def amount(self) -> float:
        return float(self.steps)

    def asks(self) -> dict[str, Any]:
        """The run, and how many of its steps."""
        return {"kind": "beginning", "run": self.run.asks(), "steps": self.steps}

    def make(self, place: Place) -> dict[str, Any]:
        """Read it from the whole run's result where there is one, or train so far."""
        from mqvae.training import TrainingFailed

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

        scale = load_scale(self.run.scale)
        folder = self.run.train(place)
        tokenizer = Tokenizer.from_run(folder)
        options = tokenizer.settings.data
        train, test = options.load("train"), options.load("test")
        network, task = tokenizer.network, tokenizer.task
        refit = refitted(
            network, task, train, test, device=tokenizer.device, count=scale.refitted_on
        )
        nearest = best_of_nearest(
            network, task, test, device=tokenizer.device, count=scale.candidates_on
        )
        first = next(iter(task.metrics))
        return {
            "figure": first,
            "refit": {
                "before": refit.before.metrics[first],
                "after": refit.after.metrics[first],
                "perplexity_after": refit.after.metrics["perplexity"],
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
        from mqvae.weights import WeightsNotFound

        try:
            summary = self._trained(self.run.train(place), place)
        except WeightsNotFound as reason:
            return {"failed": str(reason)}
        name = summary["samples"]["distance"]
        return {
            "distance": name,
            "points": [
                [step, float(f"{value:.5g}")] for step, value in summary["samples"]["points"]
            ],
            "reconstructions": summary[f"{name}_reconstructions"],
            "training_images": summary[f"{name}_training_images"],
            "bits_per_code": summary["bits_per_code"],
            "independent_bits_per_code": summary["independent_bits_per_code"],
        }

    def _trained(self, folder: Path, place: Place) -> dict[str, Any]:
        """The summary of the prior, trained to the end."""
        from mqvae.prior import PriorSettings, begin_prior, resume_prior
        from mqvae.runs import Run as Folder

        prior = folder / "prior"
        if (prior / "summary.json").is_file():
            return read_json(prior / "summary.json")
        if Folder.resumable(prior):
            return resume_prior(folder, device=place.device).fit()
        settings = PriorSettings(**self.settings())
        return begin_prior(folder, settings, device=place.device).fit()


class Along(OfRun):
    """The distance of a run's outputs to their images, FID or what stands for it, as it trains."""

    @property
    def title(self) -> str:
        return f"along-{self.run.title}"

    @property
    def words(self) -> str:
        return f"distance in training, {self.run.words}"

    @property
    def amount(self) -> float:
        return float(self.run.steps)

    def asks(self) -> dict[str, Any]:
        """The run, how often, and on how many images."""
        scale = load_scale(self.run.scale)
        how = {"points": scale.points, "images": scale.images}
        return {"kind": "along", "run": self.run.asks(), **how}

    def make(self, place: Place) -> dict[str, Any]:
        """Train it, and stop to measure at checkpoints."""
        from mqvae.prior.distance import usual_distance
        from mqvae.training import TrainingFailed
        from mqvae.weights import WeightsNotFound

        scale, apart = load_scale(self.run.scale), replace(place, runs=place.runs / "along")
        every = self.run.settings().trainer.checkpoint_every or self.run.steps
        checkpoints, folder = self.run.steps // every, self.run.folder(apart)
        kept = folder / "along.json"  # what an interrupted one has measured
        found: list[list[float]] = read_json(kept)["points"] if kept.is_file() else []
        try:
            for i in range(len(found) + 1, scale.points + 1):
                step = every * (checkpoints * i // scale.points)
                self.run.train(apart, None if i == scale.points else step)
                value = distance_of(folder, scale.images, place.device, place.runs)
                found.append([step, float(f"{value:.5g}")])
                write_json(kept, {"points": found})
        except (TrainingFailed, WeightsNotFound) as failure:
            return {"failed": str(failure)}
        if not self.run.folder(place).exists():  # what trains it need not begin anew
            folder.rename(self.run.folder(place))
        return {"distance": usual_distance(), "points": found}


class Updated(OfRun):
    """How many of the codewords a step updates, some way into a run."""

    steps = 50  # that are looked at

    @property
    def title(self) -> str:
        return f"updated-{self.run.title}"

    @property
    def words(self) -> str:
        return f"codewords that a step updates, {self.run.words}"

    @property
    def amount(self) -> float:
        return float(self._after)

    @property
    def _after(self) -> int:
        return load_scale(self.run.scale).judged_after[self.run.task]

    def asks(self) -> dict[str, Any]:
        """The run, and which of its steps."""
        steps = {"after": self._after, "steps": self.steps}
        return {"kind": "updated", "run": self.run.asks(), **steps}

    def make(self, place: Place) -> dict[str, Any]:
        """Train so far, then count what further steps select, and what has a gradient in them."""
        from mqvae.runs import Run as Folder
        from mqvae.training import resume

        folder = self.run.train(replace(place, runs=place.runs / "beginnings"), self._after)
        parts = resume(Folder(folder)).parts
        upper = parts.update.upper
        assert upper is not None
        updated: list[float] = []
        selected: list[float] = []

        def count(optimizer: Any, *_: Any) -> None:
            (codebook,) = (p for group in optimizer.param_groups for p in group["params"])
            updated.append(codebook.grad.ne(0).any(-1).float().mean().item())

        upper.register_step_pre_hook(count)
        for _ in range(self.steps):
            x, y = parts.batches.next()
            step, _ = parts.train(x, y, None, in_parts=1, quantized=True)
            selected.append(step.codes.unique().numel() / parts.network.quantizer.num_codes)
        means = {"selected": statistics.fmean(selected), "updated": statistics.fmean(updated)}
        return {name: round(mean, 4) for name, mean in means.items()}

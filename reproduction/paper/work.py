"""What has to be done for a result: runs are trained and measured."""

import datetime
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mqvae.files import read_json
from reproduction.paper.asks import asked, base_settings, filled
from reproduction.paper.few import Few, measured
from reproduction.paper.methods import METHODS
from reproduction.paper.outcome import curve_of, further_metrics, strips_of
from reproduction.paper.results import Results
from reproduction.paper.scales import load_scale

if TYPE_CHECKING:
    import torch

    from mqvae.config import Settings
    from mqvae.training import Training

FURTHER = ("ssim", "lpips", "fid", "inception_score", "frechet_vgg16", "class_score")
WITHOUT_CLASSES = ("celeba-hq", "photos")
POINTS = 5  # of the curve of a run of few images


class _Reached(Exception):
    """A run is as far as it should go."""


@dataclass(frozen=True)
class Place:
    """Where work is done.

    Attributes:
        runs: Folder of the runs.
        results: File of the results.
        root: Folder with the files of data sets; None for their usual places.
        accelerator: As a run's `trainer.accelerator`.
    """

    runs: Path
    results: Path
    root: str | None = None
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @property
    def device(self) -> "torch.device":
        """The device it is done on.

        Raises:
            ValueError: if this machine has no such accelerator.
        """
        from mqvae.config import Trainer
        from mqvae.training import Processes

        return Processes(Trainer(accelerator=self.accelerator)).device

    def at(self, settings: "Settings") -> "Settings":
        """Settings of a run that is trained here."""
        from mqvae.data import ImageData

        assert isinstance(settings.data, ImageData)
        data = replace(settings.data, root=self.root)
        trainer = replace(settings.trainer, accelerator=self.accelerator)
        return replace(settings, data=data, trainer=trainer)


@dataclass(frozen=True)
class Run:
    """A network to be trained and measured.

    Attributes:
        scale: Name of the scale.
        task: "reconstruction" or "classification".
        dataset: Name of the data set.
        method: One of `METHODS`.
        rate: Learning rate of the codebook; None of a method that has none.
        steps: Updates.
        seed: Of everything.
        final: Whether its figures are shown: those that take large networks are measured too.
        size: Number of codes and their dimensions; None for the scale's.
        few: Images that it is trained on, and measured on too; None for all there are.
    """

    scale: str
    task: str
    dataset: str
    method: str
    rate: float | None
    steps: int
    seed: int
    final: bool = False
    size: tuple[int, int] | None = None
    few: Few | None = None

    @property
    def title(self) -> str:
        """What its names begin with."""
        size = "-{}x{}".format(*self.size) if self.size else ""
        rate = "" if self.rate is None else f"-{self.rate:g}"
        of = METHODS[self.method]
        preset = of.preset if of.above == "same" else f"{of.preset}-{of.above}"
        preset += "-upper-loss" if of.upper_loss else ""
        preset += "" if of.xi is None else f"-xi{of.xi:g}"
        few = f"-{self.few.images}images" if self.few else ""
        return f"{self.task}-{self.dataset}{few}-{preset}{size}{rate}-{self.steps}-seed{self.seed}"

    @property
    def words(self) -> str:
        """What it is, for a person."""
        size = " of {:,} codes of {}".format(*self.size) if self.size else ""
        rate = "" if self.rate is None else f", codebook {self.rate:g}"
        few = f", {self.few.images:,} images" if self.few else ""
        return (
            f"{self.method}{size}{rate}, {self.dataset}{few}, {self.steps:,} steps, "
            f"seed {self.seed}"
        )

    @property
    def amount(self) -> float:
        """How long it takes, beside others."""
        return float(self.steps)

    @property
    def alone(self) -> bool:
        return False

    def settings(self) -> "Settings":
        """Its settings before it has seen its images, or where it is trained."""
        from mqvae.config.options import with_arguments
        from mqvae.data import ImageData

        base, of = base_settings(self.scale, self.task, self.method), METHODS[self.method]
        side = base.data.side or load_scale(self.scale).side_of.get(self.dataset)
        assert isinstance(base.data, ImageData)
        data = replace(base.data, name=self.dataset, side=side)
        trainer, optimizer, update = base.trainer, base.optimizer, base.update
        if self.few is not None:
            images, held_out, every = self.few.images, self.few.held_out, -(-self.steps // POINTS)
            data = replace(data, side=self.few.side, limit=images, validation=held_out)
            trainer = replace(trainer, log_every=every, checkpoint_every=every)
        if self.rate is not None:
            optimizer = replace(optimizer, codebook_lr=self.rate)
        if of.upper_loss is not None:
            update = with_arguments(update, {"upper_loss": of.upper_loss})
        if of.above != "same":
            update = with_arguments(update, {"upper_batch": of.above})
        if of.xi is not None:
            update = with_arguments(update, {"xi": of.xi})
        sizes = {"anneal_steps": self.steps}  # Gumbel's temperature falls over the whole run
        if self.size is not None:
            sizes["num_codes"], sizes["dim"] = self.size
        taken = sizes.keys() & base.quantizer["init_args"].keys()
        return replace(
            base,
            name=self.method,
            steps=self.steps,
            seed=self.seed,
            data=data,
            quantizer=with_arguments(base.quantizer, {name: sizes[name] for name in taken}),
            update=update,
            optimizer=optimizer,
            trainer=trainer,
        )

    def asks(self) -> dict[str, Any]:
        """All that its result depends on: neither its label, nor where it is trained."""
        return {**_asks_of(replace(self, seed=0, final=False)), "seed": self.seed}

    def filled(self, asks: Mapping[str, Any]) -> dict[str, Any]:
        return filled(asks)

    def satisfied(self, content: Mapping[str, Any]) -> bool:
        if not self.final or "failed" in content or self.task == "classification" or self.few:
            return True
        return all(name in content["figures"] | content["left_out"] for name in FURTHER)

    def classifier(self) -> "Run | None":
        """What the class score is taken with: the same images classified without quantization."""
        if self.task != "reconstruction" or self.dataset in WITHOUT_CLASSES:
            return None
        scale = load_scale(self.scale).classifier or self.scale
        steps = load_scale(scale).steps("classification")
        return Run(scale, "classification", self.dataset, "No quantization", None, steps, 0, True)

    @property
    def needs(self) -> "Run | None":
        """What must be there before it is measured."""
        return self.classifier() if self.final and self.few is None else None

    def make(self, place: Place) -> dict[str, Any]:
        """Train what is missing of it, and measure it."""
        from mqvae.training import TrainingFailed

        try:
            folder = self.train(place)
        except TrainingFailed as failure:
            # The rest goes on; the page says that this one has no figures.
            return {"failed": failure.cause, "seed": self.seed}
        summary = read_json(folder / "summary.json")
        figures = {key: summary[key] for key in summary["figures"]}
        described = summary["figures"]
        left_out: dict[str, str] = {}
        validation = summary["validation"]
        if self.few is not None:
            seen = measured(self.few, self.task, folder, place.device)
            figures, described = figures | seen["figures"], described | seen["described"]
            validation = seen["validation"]
        if self.final and self.few is None and self.task != "classification":
            classifier, count = self.classifier(), load_scale(self.scale).images
            judge = classifier.folder(place) if classifier else None
            more, words, left_out = further_metrics(folder, count, judge, place.device, place.runs)
            figures, described = figures | more, described | words
        content = {
            "seed": self.seed,
            "figures": {key: float(f"{value:.6g}") for key, value in figures.items()},
            "validation": validation,
            "described": described,
            "left_out": left_out,
            "curve": curve_of(folder, norms=self.seed == 0),
            "seconds": round(summary["wall_seconds"], 2),
            "seconds_per_step": float(f"{summary['seconds_per_step']:.4g}"),
            "parameters": summary["parameters"],
            "warnings": summary["warnings"],
            "protocol": summary["protocol"],
            "device": summary["device"],
            "versions": summary["versions"],
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        if self.seed == 0:
            # The originals are the same for all: they are kept with one of them.
            originals = self.method in ("No quantization", "VQ-GAN")
            content["strips"] = strips_of(folder, summary, originals=originals)
        return content

    def folder(self, place: Place) -> Path:
        """Where it is trained."""
        return place.runs / Results(place.results).name(self)

    def train(self, place: Place, until: int | None = None) -> Path:
        """Its folder, trained to the end; an interrupted one goes on.

        Args:
            place: Where.
            until: Updates after which it stops, at a checkpoint; None for all of them.

        Raises:
            Interrupted: if it is asked to stop; a checkpoint is written.
        """
        from mqvae.runs import Run as Folder
        from mqvae.training import begin, resume

        folder = self.folder(place)
        if (folder / "summary.json").is_file():
            return folder
        if Folder.resumable(folder):
            training = resume(Folder(folder))
        else:
            training = begin(place.at(self.settings()), folder, overwrite=folder.exists())

        def stop(training: "Training") -> None:
            if until is not None and training.step >= until:  # its checkpoint is written
                raise _Reached

        with suppress(_Reached):
            training.fit(after_step=stop)
        return folder


@cache
def _asks_of(run: Run) -> dict[str, Any]:
    return asked(run.settings())

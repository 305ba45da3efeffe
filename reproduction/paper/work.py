"""What has to be done for a result: runs are trained and measured."""

import base64
import copy
import csv
import datetime
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any, Literal

from mqvae.runs import read_json, write_json, write_whole
from reproduction.paper.few import Few, measured
from reproduction.paper.methods import METHODS
from reproduction.paper.results import Results
from reproduction.paper.scales import load_scale

if TYPE_CHECKING:
    import torch

    from mqvae.data import Images
    from mqvae.metrics.image_figure import ImageFigure
    from mqvae.settings import Settings
    from mqvae.trainer import Training

FURTHER = ("ssim", "lpips", "fid", "inception_score", "frechet_vgg16", "class_score")
WITHOUT_CLASSES = ("celeba-hq", "photos")
SOME = 256  # images by which a data set is known again
POINTS = 5  # of the curve of a run of few images
NORMS = ("direct_norm", "indirect_norm", "cosine")


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
        from mqvae.settings import Trainer
        from mqvae.trainer import Processes

        return Processes(Trainer(accelerator=self.accelerator)).device

    def at(self, settings: "Settings") -> "Settings":
        """Settings of a run that is trained here."""
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
            f"{self.method}{size}{rate}, {self.dataset}{few}, {self.steps:,} updates, "
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
        from mqvae.settings.options import with_arguments

        base, of = _base(self.scale, self.task, self.method), METHODS[self.method]
        side = base.data.side or load_scale(self.scale).side_of.get(self.dataset)
        data = replace(base.data, name=self.dataset, side=side, above=of.above)
        trainer, optimizer, update = base.trainer, base.optimizer, base.update
        if self.few is not None:
            images, held_out, every = self.few.images, self.few.held_out, -(-self.steps // POINTS)
            data = replace(data, side=self.few.side, limit=images, validation=held_out)
            trainer = replace(trainer, log_every=every, checkpoint_every=every)
        if self.rate is not None:
            optimizer = replace(optimizer, codebook_lr=self.rate)
        if of.upper_loss is not None:
            update = with_arguments(update, {"upper_loss": of.upper_loss})
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
        steps = load_scale(self.scale).steps("classification")
        return Run(
            self.scale, "classification", self.dataset, "No quantization", None, steps, 0, True
        )

    def make(self, place: Place) -> dict[str, Any]:
        """Train what is missing of it, and measure it."""
        from mqvae.trainer import TrainingFailed

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
        if self.final and self.few is None:
            more, words, left_out = self._further(folder, place)
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
            content["strips"] = _strips(folder, summary, originals=originals)
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
        from mqvae.trainer import begin, resume

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

    def _further(
        self, folder: Path, place: Place
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, str]]:
        """Figures that take large networks, what they are, and why some cannot be had.

        What was measured before is kept in the run's folder, and not measured again.
        """
        from mqvae.data import first
        from mqvae.metrics import CODES, evaluate
        from mqvae.metrics.registry import Maker, further_figures
        from mqvae.metrics.score import ClassScore
        from mqvae.tokenizer import Tokenizer
        from mqvae.trainer import load_split

        if self.task == "classification":
            return {}, {}, {}
        kept = folder / "further.json"
        known = read_json(kept) if kept.is_file() else {}
        device = place.device
        tokenizer = Tokenizer.from_run(folder, device=device)
        options = tokenizer.settings.data
        images = first(load_split(options, "test"), load_scale(self.scale).images)
        makers: dict[str, Maker] = {}
        classifier = self.classifier()
        judge = (classifier or self).folder(place)
        if classifier and (judge / "summary.json").is_file():
            from mqvae.classifier import classifier_of

            network = classifier_of(judge, options, device=device)
            makers["class_score"] = partial(ClassScore, classifier=network)
        left_out: list[str] = []
        further = further_figures(
            ["all"],
            [*tokenizer.task.figures, *CODES, *known],
            tokenizer.task,
            images,
            device=device,
            makers=makers,
            left_out=left_out.append,
        )
        if further:
            with _originals(further, images, place.runs):
                result = evaluate(
                    tokenizer.network, tokenizer.task, images, device=device, further=further
                )
            for name in further:
                about = asdict(result.described[name])
                known[name] = {"value": result.figures[name], "described": about}
            write_json(kept, known, indent=1)
        return (
            {name: each["value"] for name, each in known.items()},
            {name: each["described"] for name, each in known.items()},
            # Where it was looked for is of no interest anywhere else.
            dict(
                sentence.partition(" Looked for ")[0].split(" is left out: ", 1)
                for sentence in left_out
            ),
        )


@contextmanager
def _originals(
    further: "Mapping[str, ImageFigure]", images: "Images", folder: Path
) -> Iterator[None]:
    """Inside, the features of images that were measured before are not measured again.

    Args:
        further: Figures, before they are measured.
        images: What they are measured on.
        folder: Where the moments of the images' features are kept.
    """
    from safetensors.torch import load, save

    from mqvae.metrics.frechet import Frechet

    some, _ = images.take(range(0, len(images), -(-len(images) // SOME)))
    files: dict[Path, Frechet] = {}
    for name, figure in further.items():
        if isinstance(figure, Frechet):
            # The protocol says which weights, and how many images.
            told = hashlib.sha256(figure.figure.protocol.encode() + some.numpy().tobytes())
            file = folder / f"originals-{name}-{told.hexdigest()[:6]}.safetensors"
            if file.is_file():
                figure.know(load(file.read_bytes())["sums"])
            else:
                files[file] = figure
    yield
    for file, figure in files.items():
        write_whole(file, save({"sums": figure.targets.sums}))


def _strips(folder: Path, summary: Mapping[str, Any], *, originals: bool) -> dict[str, str]:
    """Its strips of images as PNG, in base64; grey ones as such, which takes half the bytes."""
    from PIL import Image

    found = {}
    for picture in summary["pictures"]:
        if picture["kind"] != "strip" or (picture["reference"] and not originals):
            continue
        strip = Image.open(folder / picture["file"])
        grey = all(low == high == 0 for low, high in _apart(strip))
        file = io.BytesIO()
        (strip.convert("L") if grey else strip).save(file, "PNG", optimize=True)
        name = "original" if picture["reference"] else "output"
        found[name] = base64.b64encode(file.getvalue()).decode()
    return found


def _apart(strip: Any) -> list[Any]:
    """How far the second and the third channel are from the first, at least and at most."""
    from PIL import ImageChops

    red, *others = strip.convert("RGB").split()
    return [ImageChops.difference(red, other).getextrema() for other in others]


def _asked(settings: "Settings") -> dict[str, Any]:
    config = settings.config()
    del config["name"], config["data"]["root"]
    for name in ("accelerator", "devices", "loggers"):
        del config["trainer"][name]
    return {"kind": "run", **config}


@cache
def _asks_of(run: Run) -> dict[str, Any]:
    return _asked(run.settings())


def filled(asks: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's older result asks for, with the settings that have come since at their defaults.

    A new setting's default leaves runs as they were; what would change them is another setting.
    """
    seed = {"seed": asks["seed"]} if "seed" in asks else {}
    return {**_filled(json.dumps({**asks, **dict.fromkeys(seed, 0)}, sort_keys=True)), **seed}


@cache
def _filled(asks: str) -> dict[str, Any]:
    """The same for all seeds, as to read settings takes a tenth of a second."""
    from mqvae.settings import Settings

    whole: dict[str, Any] = json.loads(asks)
    try:
        return _asked(Settings.of({k: v for k, v in whole.items() if k != "kind"}))
    except ValueError:  # it has a setting that is there no more
        return whole


@cache
def _base(scale: str, task: str, method: str) -> "Settings":
    """The settings of a method at a scale, but for data set, rate, updates and seed.

    To read and check settings takes a tenth of a second.
    """
    from mqvae.settings import Settings

    preset = _preset(METHODS[method].preset)
    sizes = copy.deepcopy(dict(load_scale(scale).settings[task]))
    takes = signature(locate(preset["quantizer"]["class_path"])).parameters  # type: ignore[arg-type]
    arguments = sizes.get("quantizer", {}).get("init_args", {})
    for name in arguments.keys() - takes.keys():  # without quantization there is no number of codes
        del arguments[name]
    return Settings.of(preset, sizes)


@cache
def _preset(name: str) -> dict[str, Any]:
    from mqvae.settings import load_preset

    return load_preset(f"methods/{name}")


def curve_of(folder: Path, *, norms: bool = False) -> dict[str, list[float | None]]:
    """The run's metrics.csv, what a plot needs of it."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["step", "task", "validation", "perplexity", *(NORMS if norms else ())]
    return {
        column: [float(f"{float(row[column]):.4g}") if row[column] else None for row in rows]
        for column in columns
        if any(row[column] for row in rows)
    }

"""What has to be done for a result: runs are trained and measured."""

import base64
import copy
import csv
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any

from mqvae.paper.methods import METHODS
from mqvae.paper.results import file_name
from mqvae.paper.scales import load_scale

NORMS = ("direct_norm", "indirect_norm", "cosine")


@dataclass(frozen=True)
class Place:
    """Where work is done.

    Attributes:
        runs: Folder of the runs.
        root: Folder with the files of data sets; None for their usual places.
        device: "cpu", "cuda", or "auto".
    """

    runs: Path
    root: str | None = None
    device: str = "auto"


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
    """

    scale: str
    task: str
    dataset: str
    method: str
    rate: float | None
    steps: int
    seed: int
    final: bool = False

    @property
    def title(self) -> str:
        """What its files begin with."""
        rate = "" if self.rate is None else f"-{self.rate:g}"
        preset = METHODS[self.method].preset
        return f"{self.task}-{self.dataset}-{preset}{rate}-{self.steps}-seed{self.seed}"

    @property
    def words(self) -> str:
        """What it is, for a person."""
        rate = "" if self.rate is None else f", codebook {self.rate:g}"
        return f"{self.method}{rate}, {self.dataset}, {self.steps:,} updates, seed {self.seed}"

    @property
    def amount(self) -> float:
        """How long it takes, beside others."""
        return float(self.steps)

    @property
    def alone(self) -> bool:
        return False

    def config(self) -> dict[str, Any]:
        """Its settings, as a run's config.yaml has them before it has seen its images."""
        config = copy.deepcopy(_base(self.scale, self.task, self.dataset, self.method))
        config |= {"name": self.method, "steps": self.steps, "seed": self.seed}
        if self.rate is not None:
            config["optimizer"]["codebook_lr"] = self.rate
        arguments = config["quantizer"]["init_args"]
        if "anneal_steps" in arguments:  # Gumbel's temperature falls over the whole run
            arguments["anneal_steps"] = self.steps
        return config

    def asks(self) -> dict[str, Any]:
        """All that its result depends on: neither its label, nor where it is trained."""
        config = self.config()
        del config["name"], config["data"]["root"]
        del config["trainer"]["accelerator"], config["trainer"]["devices"]
        return {"kind": "run", **config}

    def satisfied(self, content: Mapping[str, Any]) -> bool:
        return not self.final or "failed" in content or content["final"]

    def make(self, place: Place) -> dict[str, Any]:
        """Train what is missing of it, and measure it."""
        from mqvae.trainer import TrainingFailed

        try:
            folder = self.train(place)
        except TrainingFailed as failure:
            # The rest goes on; the page says that this one has no figures.
            return {"failed": str(failure).partition(" The last good")[0], "seed": self.seed}
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        figures = {key: summary[key] for key in summary["figures"]}
        described = summary["figures"]
        left_out: dict[str, str] = {}
        if self.final:
            more, words, left_out = self._further(folder, place)
            figures, described = figures | more, described | words
        content = {
            "seed": self.seed,
            "final": self.final,
            "figures": {key: float(f"{value:.6g}") for key, value in figures.items()},
            "validation": summary["validation"],
            "described": described,
            "left_out": left_out,
            "curve": _curve(folder, norms=self.seed == 0),
            "seconds": round(summary["wall_seconds"], 2),
            "seconds_per_step": float(f"{summary['seconds_per_step']:.4g}"),
            "parameters": summary["parameters"],
            "warnings": summary["warnings"],
            "protocol": summary["protocol"],
            "device": summary["device"],
            "versions": summary["versions"],
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        if self.final and self.seed == 0:
            content["strips"] = {
                "original" if picture["reference"] else "output": base64.b64encode(
                    (folder / picture["file"]).read_bytes()
                ).decode()
                for picture in summary["pictures"]
                if picture["kind"] == "strip"
            }
        return content

    def train(self, place: Place) -> Path:
        """Its run folder, trained to the end; an interrupted one goes on.

        Raises:
            Interrupted: if it is asked to stop; a checkpoint is written.
        """
        from mqvae.runs import Run as Folder
        from mqvae.settings import Settings
        from mqvae.trainer import begin, resume

        folder = place.runs / file_name(self)
        if (folder / "summary.json").is_file():
            return folder
        if (folder / "checkpoints" / "last").is_dir():
            resume(Folder(folder)).fit()
            return folder
        config = self.config()
        config["data"]["root"] = place.root
        config["trainer"]["accelerator"] = place.device
        begin(Settings.of(config), folder, overwrite=folder.exists()).fit()
        return folder

    def _further(
        self, folder: Path, place: Place
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, str]]:
        """Figures that take large networks, what they are, and why some cannot be had."""
        from dataclasses import asdict, replace

        import torch

        from mqvae.metrics import CODES, evaluate
        from mqvae.metrics.registry import further_figures
        from mqvae.settings import Trainer
        from mqvae.tokenizer import Tokenizer
        from mqvae.trainer import Processes, load_split

        device = Processes(Trainer(accelerator=place.device)).device  # type: ignore[arg-type]
        tokenizer = Tokenizer.from_run(folder, device=device)
        if type(tokenizer.task).__name__ == "Classification":
            return {}, {}, {}
        images = load_split(tokenizer.settings.data, "test")
        count = min(len(images), load_scale(self.scale).images)
        pixels, labels = images.take(torch.arange(count))
        images = replace(images, pixels=pixels, labels=labels, names=images.names[:count])
        left_out: list[str] = []
        further = further_figures(
            ["all"],
            [*tokenizer.task.figures, *CODES],
            tokenizer.task,
            images,
            device=device,
            left_out=left_out.append,
        )
        result = evaluate(tokenizer.network, tokenizer.task, images, device=device, further=further)
        return (
            {name: result.figures[name] for name in further},
            {name: asdict(result.described[name]) for name in further},
            dict(sentence.split(" is left out: ", 1) for sentence in left_out),
        )


@cache
def _base(scale: str, task: str, dataset: str, method: str) -> dict[str, Any]:
    """The settings of a method at a scale; rate, updates and seed are not its own yet."""
    from mqvae.settings import Settings, load_preset

    preset = f"methods/{METHODS[method].preset}"
    sizes = copy.deepcopy(dict(load_scale(scale).settings[task]))
    quantizer: Any = locate(load_preset(preset)["quantizer"]["class_path"])
    takes = signature(quantizer).parameters
    arguments = sizes.get("quantizer", {}).get("init_args", {})
    for name in arguments.keys() - takes.keys():  # without quantization there is no number of codes
        del arguments[name]
    return Settings.of(load_preset(preset, sizes, {"data": {"name": dataset}})).config()


def _curve(folder: Path, *, norms: bool) -> dict[str, list[float | None]]:
    """The run's metrics.csv, what a plot needs of it."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["step", "task", "validation", "perplexity", *(NORMS if norms else ())]
    return {
        column: [float(f"{float(row[column]):.4g}") if row[column] else None for row in rows]
        for column in columns
        if any(row[column] for row in rows)
    }

"""What limits a run: all of it measured, from its folder alone."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mqvae.config import Settings
from mqvae.core.passes import RandomState
from mqvae.diagnosis.bound import without_quantization
from mqvae.diagnosis.choice import best_of_nearest
from mqvae.diagnosis.findings import findings
from mqvae.diagnosis.measured import Finding, Measured
from mqvae.diagnosis.motion import Motion, motion
from mqvae.diagnosis.refit import refitted
from mqvae.diagnosis.subject import quantizer_of
from mqvae.errors import at_least
from mqvae.files import write_json
from mqvae.runs import Run
from mqvae.runs.known import Changes
from mqvae.training import Training, learning_rate, resume
from mqvae.training.start import set_training

FILE = "diagnosis.json"
SEARCHED, SEARCHED_DEAR = 200, 8
LEAST_RATE = 0.01  # of the settings' rates, at which a run that is through is stepped


@dataclass(frozen=True)
class Diagnosis:
    """What limits a run."""

    measured: Measured
    findings: tuple[Finding, ...]  # what they say, the weightiest first
    step: int  # training steps that the run has had
    # What is different from the images that the run had, by split, and was accepted.
    changes: Changes = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """As diagnosis.json has it."""
        return {"step": self.step, **dataclasses.asdict(self.measured)} | {
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "accepted_changes": dict(self.changes),
        }


def diagnose(
    folder: str | Path,
    *,
    images: int = 10_000,
    searched: int | None = None,
    steps: int = 8,
    accelerator: str | None = None,
    accept_changed_data: bool = False,
) -> Diagnosis:
    """Measure what limits a run, on its test images and a sample of its training images.

    Nothing of the run changes: what is trained for some steps is a copy in memory, from the last
    checkpoint and at its learning rates. A run that is through has brought these to zero: then at a
    hundredth of those of its settings, because at full ones it would leave where it has settled.

    Args:
        folder: The run's folder; if several processes trained it, one measures.
        images: Training images that the codebook is refitted to.
        searched: Test images whose codes are chosen by the task's loss (default: 200, or 8
            with a task that has networks of its own, whose loss takes long).
        steps: Steps in which motion is measured.
        accelerator: Where it runs (default: the run's).
        accept_changed_data: Measure on the images that are there, though the run had others.

    Raises:
        ValueError: if it is no run, is damaged, has another quantizer than a `VectorQuantizer` or
            a loss that is no mean over images, or a number is not positive.
    """
    at_least(1, images=images, searched=1 if searched is None else searched, steps=steps)
    run = Run(folder)
    settings = Settings.of_run(run)
    trainer = dataclasses.replace(settings.trainer, devices=1)
    if accelerator is not None:
        trainer = dataclasses.replace(trainer, accelerator=accelerator)  # type: ignore[arg-type]
    random = RandomState(torch.device("cpu"))
    try:
        training = resume(run, trainer=trainer, accept_changed_data=accept_changed_data)
        quantizer = quantizer_of(training.parts.network)
        if searched is None:
            searched = SEARCHED_DEAR if training.parts.auxiliary else SEARCHED
        measured = _measured(training, images, searched, steps)
    finally:
        random.restore()
    said = findings(measured, settings, quantizer, Path(folder))
    return Diagnosis(measured, said, training.step, training.changes)


def write_diagnosis(diagnosis: Diagnosis, run: Run) -> Path:
    """Write diagnosis.json into the run's folder; `mqvae report` shows it."""
    path = run.folder / FILE
    write_json(path, diagnosis.content())
    return path


def _measured(training: Training, images: int, searched: int, steps: int) -> Measured:
    parts, splits = training.parts, training.splits
    network, task = parts.measured, parts.task
    device = training.processes.device
    bound = without_quantization(network, task, splits.test, device=device)
    refit = refitted(network, task, splits.train, splits.test, device=device, count=images)
    choice = best_of_nearest(network, task, splits.test, device=device, count=searched)
    quantizer = quantizer_of(network)
    # What a GAN is trained for, as far as a mean over images says it; else the task's first.
    metrics = {name: each for name, each in task.metrics.items() if name in bound}
    lower = [name for name, each in metrics.items() if each.better == "lower"]
    first = "perceptual_loss" if "perceptual_loss" in metrics else next(iter([*lower, *metrics]))
    return Measured(
        figure=first,
        titles={name: each.title for name, each in metrics.items()},
        scales={name: each.scale for name, each in metrics.items()},
        units={name: each.unit for name, each in metrics.items()},
        now={name: refit.before.metrics[name] for name in metrics},
        unquantized=bound,
        refitted={name: refit.after.metrics[name] for name in metrics},
        nearest=choice.before,
        chosen=choice.after,
        changed=choice.changed,
        candidates=choice.candidates,
        codewords=len(quantizer.table()),
        dead=refit.restarted,
        perplexity=refit.before.metrics["perplexity"],
        usage=refit.before.metrics["usage"],
        codes=quantizer.num_codes,
        perplexity_refitted=refit.after.metrics["perplexity"],
        error=refit.error_before,
        error_refitted=refit.error_after,
        converged=refit.converged,
        rate=_rate(training),
        motion=_motion(training, steps),
        test_images=len(splits.test),
        train_images=refit.images,
        searched_images=choice.images,
    )


def _rate(training: Training) -> float:
    """The share of the settings' rates that steps are taken at, of both levels alike."""
    settings = training.settings
    rates = settings.optimizer
    factor = learning_rate(settings.steps, rates.warmup, rates.schedule)
    return max(factor(training.step), LEAST_RATE)


def _motion(training: Training, steps: int) -> Motion:
    """Steps of the run's own rule on the batches that come next."""
    parts = training.parts
    share = _rate(training)
    for optimizer in parts.levels.values():
        for group in optimizer.param_groups:
            group["lr"] = share * group.get("initial_lr", group["lr"])
    set_training(parts.network, training.settings.freeze)
    parts.task.train()

    def step(x: Tensor, y: Tensor) -> None:
        with training.processes.autocast():
            parts.train(x, y, parts.next_above(), in_parts=training.settings.trainer.micro_batches)

    try:
        return motion(parts.network, parts.task, parts.batches, step, steps)
    finally:
        parts.close()

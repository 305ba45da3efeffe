"""The Fréchet distance of samples against training steps of a prior (MQ-VAE, Figure 3)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mqvae.errors import MqvaeError
from mqvae.prior.settings import FOLDER, PriorConfig, PriorSettings
from mqvae.prior.training import begin_prior, resume_prior
from mqvae.runs import Run, read_json
from mqvae.tokenizer import Tokenizer


@dataclass(frozen=True)
class SampleCurve:
    """What the samples of a prior were like while it trained.

    Attributes:
        distance: The name of what was measured, "fid" or "frechet_vgg16".
        points: Steps and the distance after each.
        reconstructions: That of as many training images as their codes decode: what samples of a
            perfect prior would have.
        training_images: That of the same images themselves.
        bits_per_code: Of the test images' codes, at the end.
        summary: All that the prior's summary.json says.
    """

    distance: str
    points: tuple[tuple[int, float], ...]
    reconstructions: float
    training_images: float
    bits_per_code: float
    summary: Mapping[str, Any]


def sample_curve(
    run: str | Path,
    settings: PriorSettings,
    *,
    checkpoint: str = "last",
    device: torch.device | str | None = None,
) -> SampleCurve:
    """Train a run's prior and measure its samples on the way.

    A prior that was begun with these settings is gone on with, and one that is complete is read.

    Args:
        run: The run, whose tokenizer stays as it is.
        settings: How to train, and after how many steps to draw how many samples.
        checkpoint: The tokenizer's, "last" or "best".
        device: Where to train; a GPU if there is one.

    Raises:
        ValueError: if no samples should be measured, or the run has another prior or none to train.
        WeightsNotFound: if what samples are measured with is not here.
        Interrupted: after SIGINT or SIGTERM, when a checkpoint is written.
    """
    if not settings.samples_every:
        raise MqvaeError("samples_every must be 1 or more for samples to be measured, got 0.")
    folder = Path(run) / FOLDER
    if not Run.resumable(folder):  # also where it was killed before its first checkpoint
        return _curve(begin_prior(run, settings, checkpoint=checkpoint, device=device).fit())
    config = PriorConfig.load(folder)
    asked = replace(settings, distance=settings.distance or config.prior.distance)
    if (config.prior, config.checkpoint) != (asked, checkpoint):
        raise MqvaeError(
            f"{folder} is a prior with other settings: remove it, or train one like it with "
            "`mqvae prior RUN --overwrite`."
        )
    if not (folder / "summary.json").is_file():
        return _curve(resume_prior(run, device=device).fit())
    config.check(Tokenizer.from_run(run, checkpoint=checkpoint, device=device))
    return _curve(read_json(folder / "summary.json"))


def _curve(summary: Mapping[str, Any]) -> SampleCurve:
    name = summary["samples"]["distance"]
    return SampleCurve(
        distance=name,
        points=tuple((step, value) for step, value in summary["samples"]["points"]),
        reconstructions=summary[f"{name}_reconstructions"],
        training_images=summary[f"{name}_training_images"],
        bits_per_code=summary["bits_per_code"],
        summary=summary,
    )

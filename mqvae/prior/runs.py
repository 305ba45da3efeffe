"""Priors: begun, or resumed."""

import dataclasses
from pathlib import Path

import torch

from mqvae.errors import MqvaeError
from mqvae.prior.codes import CodeSplit
from mqvae.prior.distance import SampleDistance, usual_distance
from mqvae.prior.settings import FOLDER, PriorConfig, PriorSettings
from mqvae.prior.training import PriorTraining
from mqvae.runs import Run
from mqvae.runs.known import Changes, Known, check
from mqvae.tokenizer import Tokenizer
from mqvae.training.images import load_splits


def begin_prior(
    run: str | Path,
    settings: PriorSettings,
    *,
    checkpoint: str = "last",
    device: torch.device | str | None = None,
    overwrite: bool = False,
    accept_changed_data: bool = False,
) -> PriorTraining:
    """A prior from its first step; `RUN/prior` is made, with a first checkpoint in it.

    Args:
        run: The run, whose tokenizer stays as it is.
        settings: How to train.
        checkpoint: The tokenizer's, "last" or "best".
        device: Where to train; a GPU if there is one.
        overwrite: Replace a prior that is there.
        accept_changed_data: Train on the images that are there, though the run had others.

    Raises:
        ValueError: if the run has no codes or gives no images, has a prior already, or had other
            images.
        WeightsNotFound: if samples should be measured, and what they are measured with is not here.
    """
    folder = Path(run) / FOLDER
    Run(run)
    if not overwrite and Run.resumable(folder):
        raise MqvaeError(
            f"{folder} exists already: add --overwrite to replace it, or --resume to resume it."
        )
    overwrite = overwrite or folder.is_dir()  # begun, and killed before its first checkpoint
    Run.require_free(folder, overwrite=overwrite)
    tokenizer = Tokenizer.from_run(run, checkpoint=checkpoint, device=device)
    if settings.samples_every and settings.distance is None:
        settings = dataclasses.replace(settings, distance=usual_distance())
    config = PriorConfig.of(tokenizer, settings, checkpoint)
    network = config.network()  # refuses what does not fit before anything is written
    splits, distance, changes = _measured(tokenizer, config, accept=accept_changed_data)
    own = Run.create(folder, config.content(), overwrite=overwrite)
    (folder / "samples").rmdir()
    training = PriorTraining(own, config, tokenizer, network, splits, distance)
    training.accept(changes)
    training.save()
    return training


def resume_prior(
    run: str | Path, *, device: torch.device | str | None = None, accept_changed_data: bool = False
) -> PriorTraining:
    """A prior from its last checkpoint, as if it had never stopped; bit for bit on a CPU.

    Args:
        run: The run.
        device: Where to train; a GPU if there is one.
        accept_changed_data: Train on the images that are there, though the run had others.

    Raises:
        ValueError: if there is no prior, it is damaged or another tokenizer's, or the run had
            other images.
    """
    Run(run)
    folder = Path(run) / FOLDER
    config = PriorConfig.load(folder)
    own = Run(folder)
    own.lock()
    with own.unlocked_if_raised():
        tokenizer = Tokenizer.from_run(run, checkpoint=config.checkpoint, device=device)
        config.check(tokenizer)
        network = config.network()
        saved = own.load("last")
        saved.give_weights(network, folder)
        splits, distance, changes = _measured(tokenizer, config, accept=accept_changed_data)
        training = PriorTraining(own, config, tokenizer, network, splits, distance)
        training.restore(saved)
        training.accept(changes)
    return training


def _measured(
    tokenizer: Tokenizer, config: PriorConfig, *, accept: bool
) -> tuple[tuple[CodeSplit, CodeSplit, CodeSplit], SampleDistance | None, Changes]:
    """The codes of the run's own splits, what measures samples if asked for, and what changed.

    Raises:
        ValueError: if there are fewer than a batch to train on, or the images are others.
    """
    known = Known.of_run(tokenizer.run)
    splits, _ = load_splits(tokenizer.settings, known)
    now = Known.of(splits.by_name(), splits.bounds)
    changes = check(tokenizer.run.folder, known, now.splits, accept=accept)
    if len(splits.train) < (config.prior.batch_size or 1):
        raise MqvaeError(
            f"batch_size must be {len(splits.train)} or less, the number of training images, got "
            f"{config.prior.batch_size}."
        )
    measures = config.prior.samples_every > 0
    distance = SampleDistance(config.prior, tokenizer, splits) if measures else None
    train, validation, test = (
        CodeSplit.of(tokenizer, images, classes=config.classes > 0)
        for images in (splits.train, splits.validation, splits.test)
    )
    return (train, validation, test), distance, changes

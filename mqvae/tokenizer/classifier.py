"""A run that classifies, as what a class score is taken with."""

from pathlib import Path

import torch
from torch import Tensor

from mqvae.data import Data
from mqvae.errors import MqvaeError
from mqvae.files import read_json
from mqvae.metrics.score import Classifier
from mqvae.tasks import Classification
from mqvae.tokenizer.tokenizer import Tokenizer


def classifier_of(
    folder: str | Path, data: Data, *, device: torch.device | str | None = None
) -> Classifier:
    """The classifier of a finished run.

    Args:
        folder: The run's folder; `mqvae train classifier` makes one.
        data: What it should tell apart: the images of the run that is measured.
        device: Where to put it; a GPU if there is one.

    Raises:
        ValueError: if it is no run that classifies, is not finished, or is about other images.
    """
    tokenizer = Tokenizer.from_run(folder, device=device)
    settings, network = tokenizer.settings, tokenizer.network
    if not isinstance(tokenizer.task, Classification):
        raise MqvaeError(
            f"{folder} does not classify, its task is {type(tokenizer.task).__name__}: a class "
            f"score takes a run such as `mqvae train classifier --data {data.name}` makes."
        )
    for name in ("name", "channels", "side"):
        own, expected = getattr(settings.data, name), getattr(data, name)
        if own != expected:
            raise MqvaeError(
                f"the classifier {folder} was trained on images with data.{name} {own}, what is "
                f"measured has {expected}: train one on the same images."
            )
    try:
        summary = read_json(tokenizer.run.folder / "summary.json")
    except FileNotFoundError:
        raise MqvaeError(
            f"the classifier {folder} is not finished: `mqvae train --resume {folder}` finishes it."
        ) from None

    def logits(images: Tensor) -> Tensor:
        return network(images.to(tokenizer.device)).output

    return Classifier(
        logits,
        settings.data.classes or 0,
        f"{settings.network['class_path'].rpartition('.')[2]} with "
        f"{type(network.quantizer).__name__}, trained on {data.name} for {settings.steps:,} steps "
        f"with seed {settings.seed}, {summary['accuracy']:.2%} of the test images right "
        f"(SHA-256 {tokenizer.model[:8]})",
    )

"""Images drawn from a prior."""

from pathlib import Path

import torch
from torch import Tensor

from mqvae.errors import MqvaeError, at_least
from mqvae.metrics.bits import Prior
from mqvae.networks.code_prior import CodePrior
from mqvae.prior.codes import bits
from mqvae.prior.settings import FOLDER, PriorConfig
from mqvae.runs import Run
from mqvae.tokenizer import Codes, Tokenizer

BATCH_SIZE = 256


def load_prior(tokenizer: Tokenizer, folder: str | Path | None = None) -> CodePrior:
    """The prior of a tokenizer, on its device.

    Args:
        tokenizer: The tokenizer.
        folder: Where the prior is, if not in the tokenizer's run.

    Raises:
        ValueError: if there is none, or it is damaged or another tokenizer's.
    """
    folder = tokenizer.run.folder / FOLDER if folder is None else Path(folder)
    config = PriorConfig.load(folder)
    config.check(tokenizer)
    network = config.network()
    Run(folder).load("last", training=False).give_weights(network, folder)
    return network.to(tokenizer.device).eval()


def measured_under(tokenizer: Tokenizer, *, labels: bool) -> Prior | None:
    """The prior of a tokenizer as what codes are measured under; None if the run has none.

    Args:
        tokenizer: The tokenizer.
        labels: There are labels that the run knows, for a prior that is conditioned on classes.

    Raises:
        MqvaeError: if there is one that does not do: why.
    """
    folder = tokenizer.run.folder / FOLDER
    if not (folder / "config.yaml").is_file():
        return None
    if not (folder / "summary.json").is_file():
        raise MqvaeError(
            f"{folder} is not trained to its end: `mqvae prior {tokenizer.run.folder} --resume`."
        )
    network = load_prior(tokenizer)
    if network.classes and not labels:
        raise MqvaeError(f"{folder} is conditioned on classes, which these images do not have.")
    config = PriorConfig.load(folder)

    def under(codes: Tensor, classes: Tensor) -> Tensor:
        return bits(network, codes, classes if network.classes else None)

    of = " of the classes" if network.classes else ""
    words = f"the run's prior{of}, a {type(network).__name__} of {config.prior.steps:,} steps"
    return Prior(under, config.shape, words)


def sample_codes(
    prior: CodePrior,
    count: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    label: int | None = None,
) -> Tensor:
    """Codes of `count` images, (n, h, w) or (n, h, w, G) int64.

    Args:
        prior: What they are drawn from.
        count: How many.
        generator: Source of randomness, on the CPU.
        temperature: Below 1 for likelier codes.
        label: The class of all; without one, a conditional prior takes its classes in turn.

    Raises:
        ValueError: if an argument is out of range.
    """
    at_least(1, count=count)
    labels: Tensor | None = None
    if prior.classes and label is None:
        labels = torch.arange(count) % prior.classes
    elif prior.classes or label is not None:
        labels = torch.full((count,), label or 0)
    device = prior.embedding.weight.device
    parts = []
    for start in range(0, count, BATCH_SIZE):
        some = None if labels is None else labels[start : start + BATCH_SIZE].to(device)
        number = min(BATCH_SIZE, count - start)
        parts.append(
            prior.sample(number, labels=some, temperature=temperature, generator=generator)
        )
    return torch.cat(parts)


def sample_images(
    tokenizer: Tokenizer,
    prior: CodePrior,
    count: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    label: int | None = None,
) -> Tensor:
    """Images drawn from a prior, (n, C, H, W) in [0, 1], on the CPU.

    Args:
        tokenizer: What decodes them.
        prior: Its prior.
        count: How many.
        generator: Source of randomness, on the CPU.
        temperature: Below 1 for likelier codes.
        label: The class of all; without one, a conditional prior takes its classes in turn.

    Raises:
        ValueError: if an argument is out of range.
    """
    codes = sample_codes(prior, count, generator, temperature=temperature, label=label)
    return images_of(tokenizer, codes)


def images_of(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """What codes decode to, (n, C, H, W) in [0, 1], on the CPU."""
    parts = codes.split(BATCH_SIZE)
    return torch.cat([tokenizer.task.images(tokenizer.decode(part)).cpu() for part in parts])


def codes_of(tokenizer: Tokenizer, codes: Tensor) -> Codes:
    """Drawn codes as a file of codes, numbered, that `Tokenizer.decode_to_files` takes."""
    data = tokenizer.settings.data
    return tokenizer.as_file(codes.numpy(), data.side or 1, data.channels or 1)

"""The codebook refitted: what k-means to convergence under the frozen encoder would gain."""

import copy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mqvae.core.distance import Distance
from mqvae.core.initialization import group_means
from mqvae.core.nearest import nearest
from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import VectorQuantizer
from mqvae.data import Images, fitting
from mqvae.diagnosis.subject import quantizer_of, sample
from mqvae.errors import MqvaeError, at_least
from mqvae.metrics import Evaluation, evaluate, evaluating
from mqvae.progress import watched, watched_batches
from mqvae.tasks import Task

BATCH_SIZE = 256
ROWS = 2**16  # embeddings whose differences to their codewords are held at once


@dataclass(frozen=True)
class Refit:
    """A codebook refitted to the embeddings of training images."""

    before: Evaluation  # metrics of the network as it came, on the test images
    after: Evaluation  # the same with the refitted codebook, encoder and decoder as they were
    # Quantization error of the embeddings that the codebook was refitted to, mean (z_e − z_q)² over
    # all numbers, as in Eq. 4.
    error_before: float
    error_after: float  # the same with the refitted codebook
    images: int  # training images whose embeddings these are
    restarted: int  # codewords, of all codebooks, that none of these embeddings had chosen
    iterations: int  # Lloyd's iterations, of the codebook that took most
    converged: bool  # whether every codebook came to rest within the iterations allowed
    # The refitted codewords, (rows, d), rows as in the quantizer's table.
    codebook: Tensor = field(repr=False)


@torch.no_grad()
def refitted(
    network: VQNetwork,
    task: Task,
    train: Images,
    test: Images,
    *,
    device: torch.device | str = "cpu",
    count: int = 10_000,
    seed: int = 0,
    tolerance: float = 1e-4,
    iterations: int = 200,
) -> Refit:
    """Refit the codebook by k-means under the frozen encoder, and measure what that changes.

    Lloyd's iterations start from the trained codebook, each codebook for itself, as many codewords
    as before. With `Cosine` they are spherical: a mean is put back on the sphere. A codeword that
    no embedding chooses starts again at an embedding, drawn in proportion to its squared distance
    to its own codeword; so it is before the first iteration and, should one come to be unused,
    later. With a rate, codes are chosen at the prices of the trained codebook, so that both spend
    about the same bits, and codewords that are not worth theirs stay as they are. The network
    handed in stays as it is. All embeddings are held in memory: 4 D bytes each.

    `count` training images are drawn by the seed, or all. A codebook is at rest when an iteration
    lowers the error by less than the share `tolerance`.

    Raises:
        ValueError: if the quantizer is another one, its codebook cannot be set to given codewords,
            the embeddings are not finite, or there are no images.
    """
    quantizer = quantizer_of(network)
    at_least(1, iterations=iterations)
    at_least(0, tolerance=tolerance)
    drawn = sample(train, count, seed=seed)
    before = evaluate(network, task, test, device=device)
    z_e = embeddings(network, drawn, device)
    books = list(quantizer.table().to(z_e.dtype).split(quantizer.num_codes))
    generator = torch.Generator(device).manual_seed(seed)
    prices = [None] * len(books) if quantizer.prices is None else list(quantizer.prices.price())
    fit = partial(lloyd, generator=generator, tolerance=tolerance, iterations=iterations)
    fits = [
        fit(samples, book, quantizer.distance, price=price)
        for samples, book, price in zip(quantizer.by_codebook(z_e), books, prices, strict=True)
    ]
    codebook = torch.cat([fit.centres for fit in fits])
    refit = copy.deepcopy(quantizer)
    set_codebook(refit, codebook)
    if quantizer.prices is not None and refit.prices is not None:
        refit.prices.load_state_dict(quantizer.prices.state_dict())
    other = VQNetwork(network.encoder, refit, network.decoder, channel_axis=network.channel_axis)
    # Of every codebook as many numbers.
    return Refit(
        before=before,
        after=evaluate(other, task, test, device=device),
        error_before=sum(fit.errors[0] for fit in fits) / len(fits),
        error_after=sum(fit.errors[-1] for fit in fits) / len(fits),
        images=len(drawn),
        restarted=sum(fit.unused for fit in fits),
        iterations=max(len(fit.errors) - 1 for fit in fits),
        converged=all(fit.converged for fit in fits),
        codebook=codebook.cpu(),
    )


@torch.no_grad()
def embeddings(network: VQNetwork, images: Images, device: torch.device | str) -> Tensor:
    """Placed embeddings in eval mode, (N, D), in float32 at least; refuses any not finite."""
    size = fitting(BATCH_SIZE, images.shape)
    batches = watched_batches(images, size, "taking embeddings", device=device)
    with evaluating(network):
        parts = [network.embed(x).flatten(0, -2) for x, _ in batches]
    z_e = torch.cat(parts)
    if not torch.isfinite(z_e).all():
        raise MqvaeError(
            "the embeddings hold inf or nan: the network has diverged, and no codebook fits it."
        )
    return z_e.to(torch.promote_types(z_e.dtype, torch.float32))


def set_codebook(quantizer: VectorQuantizer, codewords: Tensor) -> None:
    """Make codewords the quantizer's table, or refuse where its codebook does not take them."""
    quantizer.assign(codewords)
    table = quantizer.table()
    if not torch.allclose(table, codewords.to(table.dtype), rtol=1e-3, atol=1e-5):
        raise MqvaeError(
            f"the codewords of a {type(quantizer.codebook).__name__} cannot be set freely: "
            "its codebook is not what was assigned to it, so that it cannot be refitted. Diagnose "
            "a run whose codebook is a Table()."
        )


@dataclass(frozen=True)
class Fit:
    """Centres that k-means found."""

    centres: Tensor  # (K, d)
    errors: list[float]  # mean squared error over all numbers at the start and after each iteration
    unused: int  # centres that no sample had chosen at the start
    converged: bool  # whether the last iteration lowered the error by less than the tolerance


def lloyd(
    samples: Tensor,
    centres: Tensor,
    distance: Distance,
    *,
    price: Tensor | None = None,
    generator: torch.Generator,
    tolerance: float,
    iterations: int,
) -> Fit:
    """Lloyd's iterations from given centres; unused ones start again where the error is.

    Neither a mean nor a new start of an unused centre can raise the error. Where centres have a
    price, the error and the prices together do not rise, and no centre starts again.

    Samples are placed embeddings, (N, d), centres (K, d), prices in squared distances, (K,). An
    iteration must lower the error, prices included, by the share `tolerance` for another to follow.
    """
    errors: list[float] = []
    costs: list[float] = []
    unused = 0
    converged = False
    # Once more than there are iterations: what the last one made is measured too.
    for _ in watched(range(iterations + 1), iterations + 1, "refitting the codebook"):
        codes = nearest(samples, centres, price)
        some = zip(samples.split(ROWS), codes.split(ROWS), strict=True)
        squared = torch.cat([(part - centres[rows]).square().sum(1) for part, rows in some])  # (N,)
        errors.append(squared.mean().item() / samples.shape[1])
        paid = 0.0 if price is None else price[codes].mean().item() / samples.shape[1]
        costs.append(errors[-1] + paid)
        converged = len(costs) > 1 and costs[-1] >= (1 - tolerance) * costs[-2]
        if converged or len(errors) > iterations:
            break
        means, counts = group_means(samples, codes, centres)
        empty = (counts == 0).nonzero().flatten()
        if len(errors) == 1:
            unused = len(empty)
        centres = distance.place(means)
        if price is not None:
            continue
        # The largest of errors over exponential draws: a draw without replacement, in proportion
        # to the errors, of any number. Exact copies of a centre are no new start.
        keys = squared / torch.empty_like(squared).exponential_(generator=generator)
        found = keys.topk(min(len(empty), int((squared > 0).sum()))).indices
        centres[empty[: len(found)]] = samples[found]
    return Fit(centres, errors, unused, converged)

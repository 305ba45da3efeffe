"""Another choice of codes: what the best of the m nearest would gain over the nearest."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mqvae.core.distributed import alone
from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import VectorQuantizer
from mqvae.data import Images, fitting
from mqvae.diagnosis.subject import quantizer_of, sample
from mqvae.errors import MqvaeError, at_least
from mqvae.metrics import evaluating
from mqvae.progress import watched_batches
from mqvae.tasks import Task

BATCH_SIZE = 128
SCORES = 2**22  # distances of embeddings to codewords held at once


@dataclass(frozen=True)
class BestOfNearest:
    """The nearest codes beside the best of the m nearest, on the same images."""

    loss_before: float  # the task's loss with the nearest code everywhere, mean over images
    loss_after: float  # the same with the codes chosen by it
    before: dict[str, float]  # the task's metrics with the nearest codes
    after: dict[str, float]  # the task's metrics with the codes chosen
    changed: float  # share of codes that are others than the nearest, 0 to 1
    candidates: int  # m
    images: int  # how many
    codes: Tensor = field(repr=False)  # the codes chosen, laid out as `Quantized.codes`


@torch.no_grad()
def best_of_nearest(
    network: VQNetwork,
    task: Task,
    images: Images,
    *,
    device: torch.device | str = "cpu",
    candidates: int = 4,
    count: int = 1000,
    seed: int = 0,
    sweeps: int = 2,
    tolerance: float = 1e-3,
) -> BestOfNearest:
    """Choose every code among the nearest ones by the task's loss through the decoder.

    Coordinate descent: position after position takes the candidate with the lowest loss of its
    image, all other codes held fixed; with groups so does group after group of a position. An
    image takes part in the next sweep if the last one lowered its loss by more than `tolerance`
    of it. A sweep costs (candidates − 1) × codes passes through the decoder per image. What it
    finds is a lower bound of what the candidates could gain together, and no image's loss rises.

    The network has a `VectorQuantizer`, and stays as it is. The loss of its task must be the mean
    of the losses of single images, and `torch.func.vmap` must go through it. A codebook of fewer
    codewords than `candidates` gives all it has; `count` images are drawn by the seed, or all.

    Raises:
        ValueError: if the quantizer is another one, the task's loss is no such mean or not
            finite, or there are no images.
    """
    quantizer = quantizer_of(network)
    at_least(1, candidates=candidates, sweeps=sweeps)
    at_least(0, tolerance=tolerance)
    candidates = min(candidates, quantizer.num_codes)
    drawn = sample(images, count, seed=seed)
    figures = [task.measurement(), task.measurement()]
    sums = torch.zeros(2, dtype=torch.float64)
    changed = 0
    chosen: list[Tensor] = []
    with evaluating(network, task):
        size = fitting(BATCH_SIZE, drawn.shape)
        for x, y in watched_batches(drawn, size, "choosing codes", device=device):
            target = task.target(x, y)
            search = Search(network, task, network.embed(x), target, candidates)
            outputs = [search.output()]
            losses = [search.losses.clone()]
            search.run(sweeps, tolerance)
            outputs.append(search.output())
            losses.append(losses_of_images(task, outputs[1], target))
            for measured, output in zip(figures, outputs, strict=True):
                measured.update(output, target)
            sums += torch.stack(losses).sum(1).double().cpu()
            changed += int((search.choices > 0).sum())
            chosen.append(search.codes().cpu())
    codes = torch.cat(chosen)
    before, after = (sums / len(drawn)).tolist()
    return BestOfNearest(
        loss_before=before,
        loss_after=after,
        before=figures[0].compute(alone),
        after=figures[1].compute(alone),
        changed=changed / codes.numel(),
        candidates=candidates,
        images=len(drawn),
        codes=codes,
    )


class Search:
    """Coordinate descent over the codes of some images. A site is one code of an image.

    Network and task are in eval mode; placed embeddings are (B, ..., D). A loss that is not finite,
    or not the mean of the losses of single images, is refused.
    """

    def __init__(
        self, network: VQNetwork, task: Task, z_e: Tensor, target: Tensor, candidates: int
    ) -> None:
        self.network = network
        self.task = task
        self.target = target
        self.shape = z_e.shape[1:]
        quantizer = quantizer_of(network)
        table = quantizer.table()
        codes = nearest_candidates(quantizer, z_e, table, candidates)  # (B·P, m, G)
        sites = z_e[0].numel() // table.shape[1]
        # Sites are positions, and groups within a position.
        self.candidates = codes.movedim(1, 2).reshape(len(z_e), sites, candidates)
        self.rows = quantizer.rows(codes).movedim(1, 2).reshape(len(z_e), sites, candidates)
        self.grid = (*z_e.shape[1:-1], *[quantizer.groups] * (quantizer.groups > 1))
        self.table = table.to(z_e.dtype)
        # Which candidate each site has, the nearest first: (B, S) in 0 … m − 1; losses are (B,).
        self.choices = self.rows.new_zeros(len(z_e), sites)
        output = self.output()
        self.losses = losses_of_images(task, output, target)
        whole = task(output, target)
        if not torch.isfinite(whole):
            raise MqvaeError(
                f"the task's loss is {whole.item()}: the network has diverged, and no choice of "
                "codes mends it."
            )
        if not torch.allclose(whole, self.losses.mean().to(whole.dtype), rtol=1e-3, atol=1e-6):
            raise MqvaeError(
                f"the loss of a {type(task).__name__} task is {whole.item():.4g} for some images, "
                f"and {self.losses.mean().item():.4g} in the mean over each by itself: codes "
                "cannot be chosen image by image. Diagnose a run whose loss is a mean over images."
            )

    def run(self, sweeps: int, tolerance: float) -> None:
        """Sweep over all sites, at most `sweeps` times."""
        left = torch.arange(len(self.losses), device=self.losses.device)
        for _ in range(sweeps):
            before = self.losses[left]
            self._sweep(left)
            left = left[before - self.losses[left] > tolerance * before.abs()]
            if not len(left):
                break

    def _sweep(self, images: Tensor) -> None:
        """Once over all sites of some images, (n,)."""
        rows, target = self.rows[images], self.target[images]
        choices, best = self.choices[images], self.losses[images]
        z_q = self._chosen(rows, choices)  # (n, S, d)
        every = torch.arange(len(images), device=images.device)
        number = rows.shape[2]
        for site in range(rows.shape[1]):
            current = choices[:, site]
            winner = current
            for other in range(1, number):
                candidate = (current + other) % number  # (n,)
                z_q[:, site] = self.table[rows[every, site, candidate]]
                found = losses_of_images(self.task, self._decode(z_q), target)
                winner = torch.where(found < best, candidate, winner)
                best = torch.where(found < best, found, best)
            z_q[:, site] = self.table[rows[every, site, winner]]
            choices[:, site] = winner
        self.choices[images] = choices
        self.losses[images] = best

    def output(self) -> Tensor:
        """What the decoder makes of the codes chosen."""
        return self._decode(self._chosen(self.rows, self.choices))

    def codes(self) -> Tensor:
        """The codes chosen, (B, ...) or (B, ..., G)."""
        codes = self.candidates.gather(2, self.choices[:, :, None])
        return codes.view(len(codes), *self.grid)

    def _chosen(self, rows: Tensor, choices: Tensor) -> Tensor:
        return self.table[rows.gather(2, choices[:, :, None])[:, :, 0]]  # (n, S, d)

    def _decode(self, z_q: Tensor) -> Tensor:
        z_q = z_q.view(len(z_q), *self.shape)
        output: Tensor = self.network.decoder(self.network.channels_back(z_q))
        return output


def losses_of_images(task: Task, output: Tensor, target: Tensor) -> Tensor:
    """The task's loss of every image by itself, (B,)."""
    of_one = torch.func.vmap(lambda one, its_target: task(one[None], its_target[None]))
    return of_one(output, target)


def nearest_candidates(
    quantizer: VectorQuantizer, z_e: Tensor, table: Tensor, number: int
) -> Tensor:
    """The nearest codes of placed embeddings (..., D), the quantizer's own first: (N, m, G)."""
    own = quantizer.nearest_codes(z_e, table).view(-1, quantizer.groups)  # (N, G)
    parts = z_e.reshape(len(own), quantizer.groups, -1).unbind(1)  # G × (N, d)
    repeats = quantizer.groups if quantizer.shared_codebook else 1
    books = table.split(quantizer.num_codes) * repeats
    size = max(1, SCORES // quantizer.num_codes)
    found = []
    for part, book, first in zip(parts, books, own.unbind(1), strict=True):
        pieces = zip(part.split(size), first.split(size), strict=True)
        found.append(torch.cat([_nearest_of_book(z, book, code, number) for z, code in pieces]))
    return torch.stack(found, 2)


def _nearest_of_book(z_e: Tensor, book: Tensor, first: Tensor, number: int) -> Tensor:
    """(N, m), `first` (N,) first whatever rounding makes of distances."""
    dtype = torch.promote_types(torch.promote_types(z_e.dtype, book.dtype), torch.float32)
    distances = torch.cdist(z_e.to(dtype), book.to(dtype))
    distances.scatter_(1, first[:, None], -1.0)
    return distances.topk(number, largest=False).indices

"""Measures a trained network over a split, and says by which protocol."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mqvae.core.distributed import alone, process_rank, sum_across_processes, world_size
from mqvae.core.gap import gradient_gap
from mqvae.core.network import VQNetwork
from mqvae.core.quantizers import NoQuantizer
from mqvae.core.usage import CodeCounts
from mqvae.data import Images, first, fitting, in_order
from mqvae.data.own_size import BySize
from mqvae.errors import MqvaeError
from mqvae.metrics.bits import CodeBits, Prior
from mqvae.metrics.image_metric import ImageMetric
from mqvae.metrics.sharing import SHARED, shared
from mqvae.progress import watched
from mqvae.tasks import Metric, Picture, Task, metrics_of

BATCH_SIZE = 512
SAMPLES = 16

# What a codebook does, whatever the task.
CODES = metrics_of("codes")


@dataclass(frozen=True)
class Evaluation:
    """Metrics over a whole split.

    Attributes:
        metrics: The task's own, then perplexity, usage (0 to 1), gradient_gap and bits, which
            there are of codes alone, and further ones.
        described: What each of them is.
        protocol: What they were computed on, and how.
        code_counts: How often codes were chosen.
        pictures: What can be shown of the split.
    """

    metrics: dict[str, float]
    described: dict[str, Metric]
    protocol: dict[str, str | int]
    code_counts: CodeCounts
    pictures: tuple[Picture, ...] = ()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Inside, modules are in eval mode; afterwards every part of them is in the mode it was in."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def evaluate(
    network: VQNetwork,
    task: Task,
    images: Images,
    *,
    device: torch.device | str = "cpu",
    together: bool = False,
    further: Mapping[str, ImageMetric] = MappingProxyType({}),
    fill: Callable[[Tensor], Tensor] = alone,
    encode: Callable[[Tensor], Tensor] | None = None,
    prior: Prior | None = None,
) -> Evaluation:
    """Measure a network on every image of a split, in eval mode.

    Args:
        network: The network; all its parts come back in the mode they were in.
        task: What it was trained for, which says what to measure.
        images: The split; of several sizes as `BySize` has them.
        device: Where the network is.
        together: All processes call this: they take whole batches by turns, and all of them get the
            metrics of the whole. Otherwise a process measures by itself, whatever others do.
        further: New metrics of the output as images, by name, as `further_metrics` makes them.
        fill: Images (B, C, H, W) to what the network gets of them, with rows and columns added
            below and on the right, which are cut off its output again.
        encode: Images (B, C, H, W), not filled, to other codes than the network's own, which its
            decoder then gets; the gradient gap stays that of its own.
        prior: What codes are measured under as well, in bits.

    Raises:
        ValueError: if there are no images, or there are further metrics and the output is none.
    """
    if not len(images):
        raise MqvaeError("there are no images to evaluate on.")
    quantizer = network.quantizer
    measured = task.measurement()
    parts = images.parts if isinstance(images, BySize) else [images]
    sizes = [fitting(BATCH_SIZE, part.shape) for part in parts]
    counts = CodeCounts(quantizer.num_codes, quantizer.groups, device=device)
    are_vectors, found_codes = len(images.shape) == 1, list[Tensor]()
    bits = None if isinstance(quantizer, NoQuantizer) else CodeBits(quantizer, prior, device)
    gaps = torch.zeros(2, dtype=torch.float64)  # their sum, their number

    @torch.no_grad()
    def passed(x: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """The output, cut, and the codes that it is made of."""
        if encode is None:
            result = network(filled)
            return _cut(result.output, filled, x), result.quantized.codes
        codes = encode(x)
        return _cut(network.decode(codes), filled, x), codes

    with evaluating(network, task):
        rank, count = (process_rank(), world_size()) if together else (0, 1)
        turns = {"rank": rank, "world_size": count}
        batches = (
            (x, y, len(x) == size or len(part) < size)
            for part, size in zip(parts, sizes, strict=True)
            for x, y in in_order(part, size, device=device, **turns)
        )
        number = sum(-(-len(part) // size) for part, size in zip(parts, sizes, strict=True))
        for x, y, full in watched(batches, -(-number // count), "measuring"):
            target = task.target(x, y)
            filled = fill(x)
            output, codes = passed(x, filled)
            counts.add(codes)
            if are_vectors:
                found_codes.append(codes)
            if bits is not None:
                bits.add(codes, y, x[:, 0].numel())
            measured.update(output, target)
            if further:
                shown = task.images(output)
                for metric in further.values():
                    metric.update(shown, x)
            if full and bits is not None:
                of_filled = target if filled is x else task.target(filled, y)
                gap = _gradient_gap(network, task, filled, of_filled)
                gaps += torch.tensor([gap, 1.0], dtype=torch.float64)
        x, _ = next(in_order(first(parts[0], SAMPLES), SAMPLES, device=device))
        total = sum_across_processes if together else alone
        found = measured.compute(total)
        pictures = measured.show(x, passed(x, fill(x))[0])
    counts = counts.of_all_processes() if together else counts
    protocol: dict[str, str | int] = {
        "dataset": images.name,
        "split": images.split,
        "images": len(images),
        "batch_size": min(max(sizes), len(images)),
        "precision": "float32",
    }
    of_codes, codes_described = dict[str, float](), dict[str, Metric]()
    if bits is not None:
        gap, measured_batches = total(gaps).tolist()
        costs, costs_described = bits.compute(counts, total, together=together)
        if are_vectors:
            del costs["bits_per_pixel"], costs_described["bits_per_pixel"]
            costs |= shared(found_codes, quantizer.groups, device=device, together=together)
            costs_described |= SHARED
        of_codes = {
            "perplexity": counts.perplexity,
            "usage": counts.usage,
            "gradient_gap": gap / measured_batches,
            **costs,
        }
        codes_described = {**CODES, **costs_described}
        protocol["gradient_gap_batches"] = round(measured_batches)
    return Evaluation(
        metrics={
            **found,
            **of_codes,
            **{name: metric.compute(total) for name, metric in further.items()},
        },
        described={
            **{name: metric for name, metric in task.metrics.items() if name in found},
            **codes_described,
            **{name: metric.described() for name, metric in further.items()},
        },
        protocol=protocol,
        code_counts=counts,
        pictures=tuple(pictures),
    )


def _cut(output: Tensor, filled: Tensor, x: Tensor) -> Tensor:
    """The output without what was added to the images; all of it where they are none."""
    if filled is x or output.ndim != 4 or output.shape[-2:] != filled.shape[-2:]:
        return output
    return output[..., : x.shape[-2], : x.shape[-1]]


def _gradient_gap(network: VQNetwork, task: Task, x: Tensor, target: Tensor) -> float:
    """Gradient gap of a batch, computed in chunks that fit in memory.

    In eval mode images do not affect each other, and the loss is their mean: the squares add up.
    """
    size = fitting(BATCH_SIZE, x.shape[1:], side=16)
    found = [
        gradient_gap(network, task, *part).item() * len(part[0]) / len(x)
        for part in zip(x.split(size), target.split(size), strict=True)
    ]
    return math.hypot(*found)

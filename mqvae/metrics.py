"""The figures of a trained network, each with the protocol it was computed by."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mqvae.core.diagnostics import count_codes, gradient_gap, perplexity, usage
from mqvae.core.network import VQNetwork
from mqvae.data import Images, in_order
from mqvae.progress import watched
from mqvae.tasks import Reconstruction

BATCH_SIZE = 512


@dataclass(frozen=True)
class Evaluation:
    """Figures over a whole split.

    Attributes:
        figures: mse, psnr (dB), perplexity, usage (0 to 1), gradient_gap.
        protocol: How they were computed.
        code_counts: How often each code was chosen, (G, K).
    """

    figures: dict[str, float]
    protocol: dict[str, str | int]
    code_counts: Tensor


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode; afterwards every part of it is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(
    network: VQNetwork, images: Images, *, device: torch.device | str = "cpu"
) -> Evaluation:
    """Measure a network on every image of a split, in eval mode.

    Args:
        network: The network; all its parts come back in the mode they were in.
        images: The split.
        device: Where the network is.

    Raises:
        ValueError: if there are no images.
    """
    if not len(images):
        raise ValueError("there are no images to evaluate on.")
    task = Reconstruction()
    quantizer = network.quantizer
    squared = peak = 0.0
    counts = torch.zeros(quantizer.groups, quantizer.num_codes, dtype=torch.int64, device=device)
    gaps: list[float] = []
    with evaluating(network):
        batches = in_order(images, BATCH_SIZE, device=device)
        for x, _ in watched(batches, -(-len(images) // BATCH_SIZE), "measuring"):
            with torch.no_grad():
                result = network(x)
            counts += count_codes(
                result.quantized.codes, quantizer.num_codes, groups=quantizer.groups
            )
            output, target = result.output.cpu().double(), x.cpu()  # not every device has float64
            squared += (output - target).square().sum().item()
            seen = (output.clamp(0, 1) - target).square().flatten(1).mean(1)  # (B,)
            peak += (-10 * seen.clamp(min=1e-12).log10()).sum().item()
            if len(x) == BATCH_SIZE or len(images) < BATCH_SIZE:
                gaps.append(gradient_gap(network, task, x, x).item())
    counts = counts.cpu()
    return Evaluation(
        figures={
            "mse": squared / images.pixels.numel(),
            "psnr": peak / len(images),
            "perplexity": perplexity(counts).item(),
            "usage": usage(counts).item(),
            "gradient_gap": sum(gaps) / len(gaps),
        },
        protocol={
            "dataset": images.name,
            "split": images.split,
            "images": len(images),
            "batch_size": min(BATCH_SIZE, len(images)),
            "precision": "float32",
            "mse": "mean over all numbers, images in [0, 1], outputs as they come",
            "psnr": "mean over images, outputs clamped to [0, 1]",
            "perplexity": "exp of the entropy in nats of code frequencies over the split, "
            "mean over groups",
            "gradient_gap": f"norm over a batch, mean over the {len(gaps)} batches of full size",
        },
        code_counts=counts,
    )

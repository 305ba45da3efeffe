"""Codes that decode to a lower loss than the nearest ones do."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mqvae.core.bilevel import Loss
from mqvae.core.candidates import Candidates, bits_of, candidates_of
from mqvae.core.network import VQNetwork
from mqvae.core.passes import full
from mqvae.errors import MqvaeError

HOT, COLD = 1.0, 0.4  # first and last temperature
SPREAD = 1.0  # mean logit that a candidate is behind the nearest one at first
RATE = 0.3  # Adam's, of logits
MOMENTS = 0.9, 0.999  # Adam's
TINY = 1e-20  # its gradients may be: a loss of one image by the logit of one of many codes

Bits = Callable[[Tensor, Tensor], Tensor]
"""Expected bits of the codes of each image, (B,): of the probabilities of candidates,
(B, ..., S, M), and of the codes that they stand for, (B, ..., S, M, T)."""


@dataclass(frozen=True)
class Refinement:
    """How codes are refined: stochastic Gumbel annealing over the nearest codes of each position.

    A code is drawn, softly, among the candidates of its position,

        z_q = Σ_k softmax((ℓ + noise) / τ)_k e_k        L_task(G_θ(z_q), x) + λ · bits → min over ℓ

    with ℓ from distances at first, Adam, and τ falling from 1 to 0.4. An image gets the likeliest
    codes, or keeps its nearest ones where these are no worse. Its noise follows from the seed and
    its pixels alone, so codes do not depend on other images.

    Args:
        passes: Passes through the decoder and back, for every image.
        candidates: Codes that a position may get: those of lowest distance, or of lowest distance
            and price where the quantizer has a rate.
        bits_weight: λ, what a bit of the codes of an image may cost in task loss. With 0 codes may
            become rarer, which costs bits where they are entropy-coded.
        seed: Of the noise.

    Raises:
        MqvaeError: if a number is out of range.

    Example:
        >>> codes = tokenizer.encode(images, refine=mqvae.Refinement(50, bits_weight=1e-5))

    Source: Yang, Bamler & Mandt 2020, "Improving inference for neural image compression".
    """

    passes: int = 50
    candidates: int = 8
    bits_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise MqvaeError(f"refinement takes 1 pass or more, got {self.passes}.")
        if self.candidates < 2:
            raise MqvaeError(f"refinement needs 2 candidates or more, got {self.candidates}.")
        if not 0 <= self.bits_weight < math.inf:
            raise MqvaeError(f"bits_weight must be 0 or more, got {self.bits_weight}.")

    def __str__(self) -> str:
        return (
            f"refined by {self.passes} passes over {self.candidates} candidates, bits_weight "
            f"{self.bits_weight:g}, seed {self.seed}"
        )


def refined(
    network: VQNetwork,
    x: Tensor,
    loss: Loss,
    how: Refinement,
    *,
    target: Tensor | None = None,
    bits: Bits | None = None,
) -> Tensor:
    """Codes of images that are no worse than the nearest ones, by the loss of each image.

    No parameter, buffer or gradient of the network changes.

    Args:
        network: In eval mode.
        x: What it gets, (B, C, H, W): so many that memory holds the decoder's graph.
        loss: L_task, in eval mode: a mean over the batch.
        how: How they are refined.
        target: What the output is compared with, at its start where it is smaller; `x` itself if
            None.
        bits: What codes cost (default: by the quantizer's own probabilities).

    Returns:
        Codes as of `network.encode`.

    Raises:
        MqvaeError: if the quantizer is of a kind that has no candidates, or bits count and nothing
            knows them.
    """
    with torch.inference_mode(False), torch.no_grad():
        x = x.clone() if x.is_inference() else x
        target = x if target is None else target.clone() if target.is_inference() else target
        bits = _own_bits(network, how) if bits is None and how.bits_weight else bits
        features = network.encoder(x)
        nearest = network.quantizer.encode(network.channels_last(features))
        z_e = network.placed(features)  # (B, ..., D)
        candidates = candidates_of(network.quantizer, z_e.flatten(0, -2), how.candidates)
        search = _Search(network, loss, target, how, candidates, z_e.shape[:-1], bits)
        found = search.run().view(nearest.shape)
        better = search.objective(found) < search.objective(nearest)  # (B,)
        return torch.where(better.view(-1, *[1] * (nearest.ndim - 1)), found, nearest)


def _own_bits(network: VQNetwork, how: Refinement) -> Bits:
    table = bits_of(network.quantizer)
    if table is None:
        raise MqvaeError(
            f"bits_weight {how.bits_weight:g} weighs the bits of codes, which a quantizer knows "
            "that was trained with a rate (quantizer.rate RateAware): leave it out."
        )

    def bits(probabilities: Tensor, codes: Tensor) -> Tensor:
        *_, choices, _, stages = codes.shape
        book = torch.arange(choices * stages, device=codes.device).view(choices, 1, stages)
        each = table[book, codes].sum(-1)  # (B, ..., S, M)
        return (probabilities * each).flatten(1).sum(1)

    return bits


class _Search:
    """The codes of a batch, searched for among candidates."""

    def __init__(
        self,
        network: VQNetwork,
        loss: Loss,
        target: Tensor,
        how: Refinement,
        candidates: Candidates,
        grid: Sequence[int],
        bits: Bits | None,
    ) -> None:
        self.network, self.loss, self.target, self.how = network, loss, target, how
        self.candidates, self.grid, self.bits = candidates, grid, bits
        weights = (p.dtype for p in network.decoder.parameters() if p.is_floating_point())
        self.dtype = next(weights, target.dtype)

    def run(self) -> Tensor:
        """Codes of the largest logits, (N,) or (N, G), after all passes."""
        how, count = self.how, len(self.target)
        costs = self.candidates.costs - self.candidates.costs.amin(-1, keepdim=True)  # (N, S, M)
        of_image = costs.view(count, -1)
        scale = of_image.mean(1, keepdim=True).clamp(min=torch.finfo(costs.dtype).tiny)
        logits = (-SPREAD * of_image / scale).view(costs.shape)
        first, second = torch.zeros_like(logits), torch.zeros_like(logits)
        sources = [self._source(image) for image in self.target]
        for step in range(how.passes):
            temperature = HOT * (COLD / HOT) ** (step / max(1, how.passes - 1))
            noise = torch.stack(
                [torch.empty(costs.numel() // count).exponential_(generator=s) for s in sources]
            )
            noisy = logits - noise.clamp(min=TINY).log().to(logits).view(logits.shape)
            gradient = self._gradient(noisy / temperature) / temperature
            first.lerp_(gradient, 1 - MOMENTS[0])
            second.lerp_(gradient.square(), 1 - MOMENTS[1])
            mean, square = (
                moment / (1 - decay ** (step + 1))
                for moment, decay in zip((first, second), MOMENTS, strict=True)
            )
            logits -= RATE * mean / (square.sqrt() + TINY)
        return self.candidates.chosen(logits.argmax(-1))

    def _source(self, image: Tensor) -> torch.Generator:
        """Of an image's noise, by its pixels as bytes: in every batch, type and device the same."""
        pixels = (image.float().clamp(0, 1) * 255).round().byte().cpu().contiguous()
        told = hashlib.blake2b(pixels.numpy().tobytes(), key=str(self.how.seed).encode())
        return torch.Generator().manual_seed(int.from_bytes(told.digest()[:8], "little"))

    @torch.enable_grad()
    def _gradient(self, logits: Tensor) -> Tensor:
        """Of the sum of all images' objectives by logits (N, S, M)."""
        logits = logits.requires_grad_()
        weights = logits.softmax(-1)
        z_q = self.candidates.mixed(weights).view(*self.grid, -1).to(self.dtype)
        output = self._cut(self.network.decoder(self.network.channels_back(z_q)))
        total = self.loss(full(output), self.target) * len(self.target)
        if self.bits is not None:
            codes = self.candidates.codes
            spread = weights.view(*self.grid, *weights.shape[1:])
            bits = self.bits(spread, codes.view(*self.grid, *codes.shape[1:]))
            total = total + self.how.bits_weight * bits.sum()
        return torch.autograd.grad(total, logits)[0]

    def objective(self, codes: Tensor) -> Tensor:
        """Loss of each image under hard codes, with what they cost, (B,)."""
        output = full(self._cut(self.network.decode(codes)))
        pairs = zip(output.split(1), self.target.split(1), strict=True)
        objective = torch.stack([self.loss(*pair) for pair in pairs])
        if self.bits is not None:
            *_, choices, _, stages = self.candidates.codes.shape
            hard = codes.view(*self.grid, choices, 1, stages)
            certain = torch.ones(hard.shape[:-1], device=codes.device)
            objective = objective + self.how.bits_weight * self.bits(certain, hard)
        return objective

    def _cut(self, output: Tensor) -> Tensor:
        if output.ndim != 4 or self.target.ndim != 4:
            return output
        return output[..., : self.target.shape[-2], : self.target.shape[-1]]

"""Codes chosen by distance and by what they cost in bits."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mqvae.core.passes import full
from mqvae.errors import MqvaeError, at_least, below_one

FLOOR = 0.1  # least probability of a code, in units of 1/K: one that nothing chooses stays payable
SLOW = 0.99  # decay of the distortion's average
FAST = 0.8  # decay of the average of bits, to which the multiplier answers
BEGINNING = 0.02  # the first ρ = λ / mean ‖z − c_k‖², a bit
LEAST = 1e-4  # the least one: from zero a factor leads nowhere
RAMP = 100  # steps in which what the aim is above the target falls to 1/e
INTEGRAL = 0.02  # change of log ρ at a step for each bit of difference
PROPORTIONAL = 2.0  # its answer at once
MOST_UP = 1.0  # bits to which it answers where codes cost too much
MOST_DOWN = 3.0  # where they cost too little: what collapses has to be let go at once


@dataclass(frozen=True)
class RateAware:
    """Choose codes by ‖z − c_k‖² + λ · (−log₂ p_k), with λ held where a code costs `bits`.

    p_k is how often code k is chosen, an exponential moving average over the steps of training, so
    −log₂ p_k is what an entropy coder spends on it. Rare codes have to be nearer than common ones:
    at the same number of bits a larger codebook then has the lower error.

    A fixed λ can fall off an edge: what is chosen often becomes cheap and is chosen more, until one
    code is left. So λ follows the bits that are spent, by a proportional and an integral term; it
    falls at once where codes become too cheap, and rises slowly.

    Gradients, losses and update rules are as without it: given the codes, nothing changes.

    Args:
        bits: Mean length −log₂ p of a chosen code, in bits a code; below log₂ K to have an effect.
        after: Training steps before the first in which codes have a price: p must be known.
        decay: Of the moving average of p, in [0, 1).

    Raises:
        MqvaeError: if `bits` is not positive, `after` is negative, or `decay` is not in [0, 1).

    Example:
        >>> import mqvae
        >>> quantizer = mqvae.VectorQuantizer(4096, 64, rate=mqvae.RateAware(bits=6.0))

    Source: Chou, Lookabaugh & Gray 1989, "Entropy-constrained vector quantization".
    """

    bits: float
    after: int = 100
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not (self.bits > 0 and math.isfinite(self.bits)):
            raise MqvaeError(f"bits must be more than 0 bits a code, got {self.bits}.")
        at_least(0, after=self.after)
        below_one(decay=self.decay)


class Rate(nn.Module):
    """What codes cost: their probabilities, K for each codebook, and each codebook's multiplier."""

    probabilities: Tensor  # (books, K)
    log_rho: Tensor  # (books,), the integral term of log ρ
    spent: Tensor  # (books,), bits a code, a short average
    distortion: Tensor  # (books,), mean ‖z − c_k‖², a long average
    steps: Tensor  # (), training steps so far

    def __init__(self, target: RateAware, books: int, num_codes: int) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("probabilities", torch.full((books, num_codes), 1 / num_codes))
        for name in ("log_rho", "spent", "distortion"):
            self.register_buffer(name, torch.zeros(books))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rate":
        """As of any module, but in float32 at least: half precision stops a slow average."""
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(self, name, full(buffer))
        return self

    @torch.no_grad()
    def reset(self) -> None:
        """Return to the state before the first step."""
        self.probabilities.fill_(1 / self.probabilities.shape[1])
        for buffer in (self.log_rho, self.spent, self.distortion, self.steps):
            buffer.zero_()

    def bits(self) -> Tensor:
        """−log₂ p of every code, (books, K), finite for codes that nothing chooses."""
        likely = self.probabilities.clamp(min=FLOOR / self.probabilities.shape[1])
        return likely.sum(1, keepdim=True).log2() - likely.log2()

    def _excess(self) -> Tensor:
        """Bits above those aimed at, (books,); the aim comes down to the target step by step."""
        since = (self.steps - self.target.after).clamp(min=0)
        above = max(math.log2(self.probabilities.shape[1]) - self.target.bits, 0)
        return self.spent - (self.target.bits + above * (-since / RAMP).exp())

    def price(self) -> Tensor:
        """λ · (−log₂ p) of every code, (books, K), in squared distances; zeros before the start."""
        excess = self._excess().clamp(-MOST_DOWN, MOST_UP)
        multiplier = (self.log_rho + PROPORTIONAL * excess).exp() * self.distortion
        multiplier = torch.where(self.steps > self.target.after, multiplier, 0)
        return multiplier[:, None] * self.bits()

    @torch.no_grad()
    def update(self, counts: Tensor, squared_distances: Tensor) -> None:
        """Learn from a step of all processes: counts, (books, K), and Σ ‖z − c_k‖², (books,)."""
        counts = counts.to(self.probabilities.dtype)
        number = counts.sum(1).clamp(min=1)  # (books,)
        distortion = squared_distances.to(number.dtype) / number
        spent = (counts * self.bits()).sum(1) / number
        # What is not finite is nobody's price.
        ok = torch.isfinite(distortion)
        first = self.steps == 0
        latest = torch.where(first, distortion, self.distortion.lerp(distortion, 1 - SLOW))
        self.distortion.copy_(torch.where(ok, latest, self.distortion))
        self.spent.copy_(torch.where(first, spent, self.spent.lerp(spent, 1 - FAST)))
        self.probabilities.lerp_(counts / number[:, None], 1 - self.target.decay)
        self.steps += 1
        excess = self._excess().clamp(-MOST_DOWN, MOST_DOWN)
        later = (self.log_rho + INTEGRAL * excess).clamp(min=math.log(LEAST))
        begins = self.steps <= self.target.after + 1
        self.log_rho.copy_(torch.where(begins, math.log(BEGINNING), later))

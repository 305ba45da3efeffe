"""Codebooks from a few images of a domain, under a frozen encoder and decoder.

    c_k = (m_k c⁰_k + Σ z) / (m_k + n_k)

sums over the embeddings of n images that choose code k, n_k of them. c⁰ (K, D) and log m (K) are
learned by hypergradient: the loss of the decoder on other images of the domain, differentiated
through this closed form with codes fixed, over the domains of training. Beside it is what it is
compared with.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Adam

from reproduction.frozen import Frozen, nearest_codes
from reproduction.studies import falling

NUMBERS = (5, 25, 100)  # images of a domain that are known


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    Attributes:
        steps: Decoder passes forward and backward of each method that learns from domains.
        batch: Images of each.
        few_steps: Adam's steps of the methods that learn from the n images alone.
        rates: Learning rates tried, in units of the embeddings' root mean square.
        decoder_rates: Those of the decoder.
        weights: m tried where it is one number; infinite for a codebook that stays.
        rounds: Rounds tried of choosing codes and computing codewords.
        judged: Images of a validation domain that settings are chosen by.
        draws: Sets of n images of each test domain.
    """

    steps: int = 200
    batch: int = 32
    few_steps: int = 20
    rates: tuple[float, ...] = (0.01, 0.03)
    decoder_rates: tuple[float, ...] = (3e-4, 1e-3)
    weights: tuple[float, ...] = (1, 4, 16, 64, math.inf)
    rounds: tuple[int, ...] = (2,)
    judged: int = 32
    draws: int = 1


DEBUG = Scale(2, 2, 2, (0.01,), (1e-3,), (1, math.inf), (1,), 4, 1)


@dataclass(frozen=True)
class Domain:
    """Images (N, C, H, W) and their embeddings (N, P, D)."""

    x: Tensor
    z: Tensor

    def take(self, rows: Tensor | slice) -> "Domain":
        return Domain(self.x[rows], self.z[rows])


@dataclass(frozen=True)
class Adapter:
    """What makes a codebook from embeddings of a few images.

    Attributes:
        codewords: c⁰, (K, D).
        log_weight: log m, (K) or (); ∞ for a codebook that stays, −∞ for k-means from c⁰.
        rounds: How often codes are chosen and codewords computed.
        decoder: The decoder to be used; None for the frozen one.
    """

    codewords: Tensor
    log_weight: Tensor
    rounds: int = 2
    decoder: nn.Module | None = None

    def codebook(self, z: Tensor) -> Tensor:
        """The codebook for embeddings (…, D)."""
        z = z.reshape(-1, z.shape[-1])
        codebook = self.codewords
        if not torch.isposinf(self.log_weight).any():
            for _ in range(self.rounds):
                codebook = blend(self.codewords, self.log_weight, z, nearest_codes(z, codebook))
        return codebook


def blend(codewords: Tensor, log_weight: Tensor, z: Tensor, codes: Tensor) -> Tensor:
    """(m_k c⁰_k + Σ z) / (m_k + n_k), (K, D), for embeddings (N, D) of codes (N)."""
    weight = log_weight.exp().expand(len(codewords))
    counts = torch.bincount(codes, minlength=len(codewords))
    sums = torch.zeros_like(codewords).index_add(0, codes, z)
    total = (weight + counts).clamp(min=torch.finfo(z.dtype).tiny)
    blended = (weight[:, None] * codewords + sums) / total[:, None]
    return torch.where(((weight > 0) | (counts > 0))[:, None], blended, codewords)


def task_loss(
    frozen: Frozen, codebook: Tensor, domain: Domain, decoder: nn.Module | None = None
) -> Tensor:
    """Mean squared error of what the decoder makes of a domain's codewords."""
    return mse_loss(frozen.decode(codebook[nearest_codes(domain.z, codebook)], decoder), domain.x)


# -- learning from domains -------------------------------------------------------------------------


def episodes(domains: Sequence[Domain], scale: Scale, seed: int) -> Iterator[tuple[Domain, Domain]]:
    """n images of a domain, and others of it; n any of NUMBERS."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        domain = domains[int(torch.randint(len(domains), (), generator=generator))]
        count = NUMBERS[int(torch.randint(len(NUMBERS), (), generator=generator))]
        order = torch.randperm(len(domain.x), generator=generator)
        few = min(count, len(order) - scale.batch)
        yield domain.take(order[:few]), domain.take(order[few : few + scale.batch])


def by_hypergradient(
    frozen: Frozen,
    drawn: Iterator[tuple[Domain, Domain]],
    scale: Scale,
    *,
    lr: float,
    weight: float,
    codewords_too: bool = True,
) -> Adapter:
    """Learn c⁰ and log m, or log m alone, through the closed form."""
    codewords = frozen.codebook.clone().requires_grad_(codewords_too)
    log_weight = torch.full((len(codewords),), math.log(weight), requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": [log_weight], "lr": 0.05}]
    if codewords_too:
        groups.append({"params": [codewords], "lr": lr * rms(codewords)})
    optimizer = Adam(groups)
    schedule = falling(optimizer, scale.steps)
    adapter = Adapter(codewords, log_weight)
    for _ in range(scale.steps):
        few, others = next(drawn)
        optimizer.zero_grad()
        task_loss(frozen, adapter.codebook(few.z), others).backward()
        optimizer.step()
        schedule.step()
    return Adapter(codewords.detach(), log_weight.detach())


def by_joint_training(
    frozen: Frozen, drawn: Iterator[tuple[Domain, Domain]], scale: Scale, *, lr: float
) -> Tensor:
    """c⁰ trained on all domains at once, without regard to what it is adapted to."""
    codewords = frozen.codebook.clone().requires_grad_()
    optimizer = Adam([codewords], lr=lr * rms(codewords))
    schedule = falling(optimizer, scale.steps)
    for _ in range(scale.steps):
        _, others = next(drawn)
        optimizer.zero_grad()
        task_loss(frozen, codewords, others).backward()
        optimizer.step()
        schedule.step()
    return codewords.detach()


def by_reptile(
    frozen: Frozen,
    drawn: Iterator[tuple[Domain, Domain]],
    scale: Scale,
    *,
    lr: float,
    inner: int = 4,
) -> Tensor:
    """c⁰ moved towards where `inner` steps of Adam on one domain lead (Nichol et al. 2018)."""
    codewords = frozen.codebook.clone()
    outer = max(1, scale.steps // inner)
    for step in range(outer):
        few, others = next(drawn)
        there = codewords.clone().requires_grad_()
        optimizer = Adam([there], lr=lr * rms(codewords), betas=(0.0, 0.999))
        both = Domain(torch.cat([few.x, others.x]), torch.cat([few.z, others.z]))
        for i in range(inner):
            rows = torch.arange(i * scale.batch, (i + 1) * scale.batch) % len(both.x)
            optimizer.zero_grad()
            task_loss(frozen, there, both.take(rows)).backward()
            optimizer.step()
        codewords = codewords.lerp(there.detach(), 1 - step / outer)
    return codewords


def by_tuned_decoder(
    frozen: Frozen, drawn: Iterator[tuple[Domain, Domain]], scale: Scale, *, lr: float
) -> nn.Module:
    """The decoder trained on all domains at once."""
    decoder = copy.deepcopy(frozen.network.decoder).requires_grad_()
    optimizer = Adam(decoder.parameters(), lr=lr)
    schedule = falling(optimizer, scale.steps)
    for _ in range(scale.steps):
        _, others = next(drawn)
        optimizer.zero_grad()
        task_loss(frozen, frozen.codebook, others, decoder).backward()
        optimizer.step()
        schedule.step()
    return decoder.requires_grad_(False)


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


# -- learning from the n images alone --------------------------------------------------------------


def tuned_on_few(
    frozen: Frozen, few: Domain, start: Adapter, scale: Scale, *, lr: float, decoder: bool
) -> Adapter:
    """Adam on the n images: of the decoder, or of the codebook."""
    codebook = start.codebook(few.z).clone().requires_grad_(not decoder)
    tuned = copy.deepcopy(frozen.network.decoder).requires_grad_(decoder)
    rate = lr if decoder else lr * rms(codebook)
    optimizer = Adam(tuned.parameters() if decoder else [codebook], lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(scale.few_steps):
        rows = torch.randperm(len(few.x), generator=generator)[: scale.batch]
        optimizer.zero_grad()
        task_loss(frozen, codebook, few.take(rows), tuned).backward()
        optimizer.step()
    stays = torch.tensor(math.inf)
    return Adapter(codebook.detach(), stays, decoder=tuned.requires_grad_(False))


# -- choosing settings -----------------------------------------------------------------------------

Method = Callable[[Domain], Adapter]  # from n images to what is fitted to them


def score(
    frozen: Frozen, method: Method, domains: Sequence[Domain], count: int, scale: Scale
) -> float:
    """Mean log MSE over domains, each with its first `count` images known."""
    logs = []
    for domain in domains:
        few, others = domain.take(slice(count)), domain.take(slice(-scale.judged, None))
        adapter = method(few)
        with torch.no_grad():
            loss = task_loss(frozen, adapter.codebook(few.z), others, adapter.decoder)
        logs.append(math.log(float(loss)))
    return sum(logs) / len(logs)


def best_of(
    frozen: Frozen,
    tried: Mapping[Any, Method],
    domains: Sequence[Domain],
    count: int,
    scale: Scale,
) -> tuple[Any, float]:
    """The setting whose method has the lowest score, and that score."""
    scores = {name: score(frozen, method, domains, count, scale) for name, method in tried.items()}
    chosen = min(scores, key=lambda name: scores[name])
    return chosen, scores[chosen]


def with_one_weight(
    codewords: Tensor, scale: Scale, decoder: nn.Module | None = None
) -> dict[Any, Method]:
    """The settings (m, rounds) of codewords that have one m for all."""

    def method(m: float, rounds: int) -> Method:
        log_weight = torch.tensor(math.log(m) if m else -math.inf)
        return lambda few: Adapter(codewords, log_weight, rounds, decoder)

    return {(m, rounds): method(m, rounds) for m in scale.weights for rounds in scale.rounds}


def by_kmeans(codewords: Tensor) -> dict[Any, Method]:
    """The settings (rounds) of k-means from c⁰."""

    def method(rounds: int) -> Method:
        return lambda few: Adapter(codewords, torch.tensor(-math.inf), rounds)

    return {(rounds,): method(rounds) for rounds in (1, 3, 10)}


def rescaled(adapter: Adapter, scale: Scale) -> dict[Any, Method]:
    """The settings (factor, rounds) of a learned m."""

    def method(factor: float, rounds: int) -> Method:
        log_weight = adapter.log_weight + math.log(factor)
        changed = replace(adapter, log_weight=log_weight, rounds=rounds)
        return lambda few: changed

    return {(f, rounds): method(f, rounds) for f in (0.1, 0.3, 1.0, 3.0) for rounds in scale.rounds}

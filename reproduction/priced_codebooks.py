"""Codebooks trained for what their codes cost under a prior, under a frozen encoder and decoder.

A code is chosen by ‖z − c_k‖² + b_k; codewords c (K, D) and prices b (K) are trained, codes are
hard forward and soft backward. The upper loss is the decoder's error plus λ times the bits of a
code under a prior. By hypergradient, the prior that judges held-out images is what a few steps on
other images make of it, and the codebook's influence on those steps is differentiated, too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss, one_hot
from torch.optim import Adam

import mqvae
from mqvae.core.initialization import group_means
from reproduction.frozen import Frozen, nearest_codes
from reproduction.studies import falling


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    Attributes:
        codes: K.
        steps: Steps of hypergradient; other methods take twice as many, for equal passes.
        batch: Images of a step, half below and half above.
        inner: Steps of the prior that are differentiated.
        inner_rates: Their learning rates tried.
        rates: Learning rates tried, in units of the embeddings' root mean square.
        trade: λ, MSE for a bit a code.
        shares: Targets of RateAware, in units of the entropy of k-means.
        judge_steps: Steps of the prior that finished codes are judged by.
        width, layers: Of every PixelCNN.
    """

    codes: int = 64
    steps: int = 60
    batch: int = 32
    inner: int = 2
    inner_rates: tuple[float, ...] = (0.03, 0.3)
    rates: tuple[float, ...] = (0.003, 0.01)
    trade: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    shares: tuple[float, ...] = (0.9, 0.75, 0.6)
    judge_steps: int = 150
    width: int = 16
    layers: int = 3


@dataclass(frozen=True)
class Priced:
    """Codewords (K, D), and what each costs in squared distances (K)."""

    codewords: Tensor
    price: Tensor

    def codes(self, z: Tensor) -> Tensor:
        return nearest_codes(z, self.codewords, self.price)


class Autoregressive(nn.Module):
    """A PixelCNN of a grid of choices (B, P, K), which need not be hard."""

    def __init__(self, num_codes: int, positions: int, scale: Scale) -> None:
        super().__init__()
        self.side = math.isqrt(positions)
        shape = (self.side, self.side)
        self.cnn = mqvae.PixelCNN(num_codes, shape, width=scale.width, layers=scale.layers)

    def forward(self, choices: Tensor) -> Tensor:
        """Bits of a code, a mean."""
        grid = (choices @ self.cnn.embedding.weight).unflatten(1, (self.side, self.side))
        logits = self.cnn.logits(grid.movedim(-1, 1)).flatten(2).movedim(1, -1)  # (B, P, K)
        return -(choices * logits.log_softmax(-1)).sum(-1).mean() / math.log(2)


class Independent(nn.Module):
    """Codes drawn alike at every position: what rate-aware assignment counts."""

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_codes))

    def forward(self, choices: Tensor) -> Tensor:
        """Bits of a code, a mean."""
        return -(choices * self.logits.log_softmax(-1)).sum(-1).mean() / math.log(2)


def choices_of(z: Tensor, codewords: Tensor, price: Tensor, temperature: float) -> Tensor:
    """Hard choices (B, P, K) with the gradient of softmax(−(‖z − c‖² + b) / temperature)."""
    squares = z.square().sum(-1, keepdim=True) - 2 * z @ codewords.T + codewords.square().sum(1)
    scores = squares + price
    soft = (-scores / temperature).softmax(-1)
    return one_hot(scores.argmin(-1), len(codewords)).to(z.dtype) + soft - soft.detach()


def stepped(
    prior: nn.Module, weights: dict[str, Tensor], choices: Tensor, steps: int, lr: float
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The prior's weights after steps of gradient descent on the bits of `choices`, which can be
    differentiated, and the gradient of the first step.
    """
    first: list[Tensor] = []
    for _ in range(steps):
        bits = functional_call(prior, weights, (choices,))
        gradients = torch.autograd.grad(bits, list(weights.values()), create_graph=True)
        first = first or [g.detach() for g in gradients]
        weights = {
            name: w - lr * g for (name, w), g in zip(weights.items(), gradients, strict=True)
        }
    return weights, first


def upper_loss(
    frozen: Frozen, x: Tensor, choices: Tensor, codewords: Tensor, bits: Tensor, trade: float
) -> Tensor:
    """The decoder's error plus λ · bits."""
    return mse_loss(frozen.decode(choices @ codewords), x) + trade * bits


def trained(
    frozen: Frozen,
    x: Tensor,
    z: Tensor,
    start: Tensor,
    scale: Scale,
    *,
    trade: float,
    lr: float,
    prior: nn.Module,
    inner_rate: float | None,
    seed: int,
) -> Priced:
    """A codebook trained from `start` together with a prior.

    Args:
        frozen: Encoder and decoder.
        x: Images.
        z: Their embeddings.
        start: Codewords.
        scale: How much is computed.
        trade: λ.
        lr: Learning rate.
        prior: The prior, which is trained along.
        inner_rate: Learning rate of the steps below, for a hypergradient; None for joint training.
        seed: Of the batches.
    """
    error = (z - start[nearest_codes(z, start)]).square().sum(-1).mean()
    temperature = 0.3 * float(error)
    codewords = start.clone().requires_grad_()
    price = torch.zeros(len(start), requires_grad=True)
    rms = float(z.square().mean().sqrt())
    upper = Adam(
        [{"params": [codewords], "lr": lr * rms}, {"params": [price], "lr": lr * 3 * float(error)}]
    )
    lower = Adam(prior.parameters(), lr=3e-3)
    steps = scale.steps * (2 if inner_rate is None else 1)
    schedule = falling(upper, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (scale.batch,), generator=generator)
        choices = choices_of(z[rows], codewords, price, temperature)
        upper.zero_grad()
        lower.zero_grad()
        if inner_rate is None:
            bits = prior(choices)
            # λ scales the codebook's loss; the prior's own gradient is that of the bits.
            upper_loss(frozen, x[rows], choices, codewords, bits, trade).backward()
            for weight in prior.parameters():
                assert weight.grad is not None
                weight.grad /= trade
        else:
            half = len(rows) // 2
            weights: dict[str, Tensor] = dict(prior.named_parameters())
            ahead, first = stepped(prior, weights, choices[:half], scale.inner, inner_rate)
            bits = functional_call(prior, ahead, (choices[half:],))
            loss = upper_loss(frozen, x[rows[half:]], choices[half:], codewords, bits, trade)
            codewords.grad, price.grad = torch.autograd.grad(loss, [codewords, price])
            for weight, gradient in zip(prior.parameters(), first, strict=True):
                weight.grad = gradient
        lower.step()
        upper.step()
        schedule.step()
    return Priced(codewords.detach(), price.detach())


def rate_aware(z: Tensor, start: Tensor, bits: float, steps: int, seed: int) -> Priced:
    """`mqvae.RateAware` on embeddings (N, P, D): EMA with decay 0.9, and a last mean of all."""
    quantizer = mqvae.VectorQuantizer(
        len(start),
        start.shape[1],
        codebook=mqvae.MovingAverage(0.9),
        rate=mqvae.RateAware(bits=bits, after=10),
        channel_axis=-1,
    ).train()
    quantizer.assign(start)
    assert quantizer.prices is not None
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        quantizer(z[torch.randint(len(z), (64,), generator=generator)])
        quantizer.update()
    price = quantizer.prices.price()[0]
    flat = z.flatten(0, 1)
    codewords = quantizer.table().detach().clone()
    codewords, _ = group_means(flat, nearest_codes(flat, codewords, price), codewords)
    return Priced(codewords, price)


def judged(
    frozen: Frozen,
    book: Priced,
    train: Tensor,
    x: Tensor,
    z: Tensor,
    scale: Scale,
    seed: int,
) -> dict[str, float]:
    """MSE on images, and the bits of their codes under a PixelCNN trained on others, from anew."""
    size = len(book.codewords)
    known, codes = one_hot(book.codes(train), size).to(z.dtype), book.codes(z)
    torch.manual_seed(seed)
    prior = Autoregressive(size, z.shape[1], scale)
    optimizer = Adam(prior.parameters(), lr=3e-3)
    schedule = falling(optimizer, scale.judge_steps)
    for _ in range(scale.judge_steps):
        optimizer.zero_grad()
        prior(known[torch.randint(len(known), (64,))]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        bits = [prior(one_hot(part, size).to(z.dtype)) for part in codes.split(125)]
        errors = [
            mse_loss(frozen.decode(book.codewords[part]), image)
            for part, image in zip(codes.split(125), x.split(125), strict=True)
        ]
    sizes = torch.tensor([len(part) for part in codes.split(125)], dtype=z.dtype) / len(codes)
    return {
        "mse": float((torch.stack(errors) * sizes).sum()),
        "bits": float((torch.stack(bits) * sizes).sum()),
    }

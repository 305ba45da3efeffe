"""Codebooks for a classifier of codes under a frozen encoder: k-means, weighted, learned.

The classifier is a ridge regression on the quantized embeddings of all positions. By hypergradient,
the codebook is that of the least cross-entropy on held-out labels of the regression on others,
differentiated through its closed form; codes are hard forward and soft backward.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.optim import Adam

from mqvae.core.initialization import kmeans
from reproduction.frozen import nearest_codes
from reproduction.studies import falling

CLASSES = 10
RIDGES = tuple(10.0**e for e in range(-3, 4))  # in units of the mean squared norm of features


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    Attributes:
        codes: K.
        steps: Steps of hypergradient and joint training.
        lower: Images of a step that the ridge regression is solved on.
        upper: Other images, on which the codebook is judged; joint training takes both.
        rates: Learning rates tried, in units of the embeddings' root mean square.
        softness: Temperatures tried of the soft codes, in units of the mean squared error.
    """

    codes: tuple[int, ...] = (4, 16, 64)
    steps: int = 40
    lower: int = 300
    upper: int = 150
    rates: tuple[float, ...] = (0.01, 0.03)
    softness: tuple[float, ...] = (0.3,)


@dataclass(frozen=True)
class Labelled:
    """Embeddings (N, P, D) and labels (N)."""

    z: Tensor
    y: Tensor

    def take(self, rows: Tensor) -> "Labelled":
        return Labelled(self.z[rows], self.y[rows])


@dataclass(frozen=True)
class Codebook:
    """Codewords (K, D), and what embeddings are multiplied by before they are compared, (D)."""

    codewords: Tensor
    metric: Tensor | float = 1.0

    def codes(self, z: Tensor) -> Tensor:
        return nearest_codes(z * self.metric, self.codewords)


# -- ridge regression ------------------------------------------------------------------------------


def targets(y: Tensor, dtype: torch.dtype) -> Tensor:
    return one_hot(y, CLASSES).to(dtype) - 1 / CLASSES


def ridge(features: Tensor, y: Tensor, penalty: Tensor | float) -> Tensor:
    """Dual weights α of (F Fᵀ + penalty · mean ‖f‖² · I) α = Y, (N, CLASSES), for F (N, M)."""
    kernel = features @ features.T
    size = kernel.diagonal().mean()
    eye = torch.eye(len(kernel), dtype=kernel.dtype)
    return torch.linalg.solve(kernel + penalty * size * eye, targets(y, kernel.dtype))


def left_out(features: Tensor, y: Tensor) -> tuple[float, float]:
    """The penalty of the best leave-one-out accuracy, and that accuracy, in closed form."""
    kernel = features @ features.T
    values, vectors = torch.linalg.eigh(kernel)
    size, wanted = float(kernel.diagonal().mean()), targets(y, kernel.dtype)
    found = []
    for penalty in RIDGES:
        scaled = vectors / (values.clamp(min=0) + penalty * size)
        alpha = scaled @ (vectors.T @ wanted)
        predicted = wanted - alpha / (scaled * vectors).sum(1)[:, None]
        found.append((float((predicted.argmax(1) == y).double().mean()), penalty))
    accuracy, penalty = max(found)
    return penalty, accuracy


def features_of(codebook: Codebook, z: Tensor) -> Tensor:
    """What the classifier sees of embeddings (N, P, D): their codewords, (N, P·D)."""
    return codebook.codewords[codebook.codes(z)].flatten(1)


def quality(codebook: Codebook, known: Labelled) -> float:
    """Best leave-one-out accuracy on the labels that are known."""
    return left_out(features_of(codebook, known.z), known.y)[1]


def test_accuracy(codebook: Codebook, known: Labelled, test: Labelled) -> dict[str, float]:
    """Of a classifier on all known labels, its penalty chosen by leaving one out."""
    features = features_of(codebook, known.z)
    penalty, accuracy = left_out(features, known.y)
    weights = features.T @ ridge(features, known.y, penalty)
    right = 0
    for part in torch.arange(len(test.y)).split(500):
        scores = features_of(codebook, test.z[part]) @ weights
        right += int((scores.argmax(1) == test.y[part]).sum())
    return {"accuracy": right / len(test.y), "left_out": accuracy}


# -- codebooks -------------------------------------------------------------------------------------


def by_kmeans(known: Labelled, num_codes: int, generator: torch.Generator) -> Codebook:
    return Codebook(kmeans(known.z.flatten(0, 1), num_codes, generator=generator))


def sensitivity(known: Labelled) -> Tensor:
    """Gradients of the cross-entropy of a ridge regression without quantization, (N, P, D)."""
    features = known.z.flatten(1)
    penalty, _ = left_out(features, known.y)
    weights = features.T @ ridge(features, known.y, penalty)  # (P·D, CLASSES)
    odds = (CLASSES * features @ weights).softmax(1)
    return ((odds - one_hot(known.y, CLASSES)) @ weights.T).view_as(known.z)


def by_fisher(known: Labelled, num_codes: int, generator: torch.Generator) -> Codebook:
    """k-means with each embedding weighted by its gradient, or each dimension; the better one."""
    g = sensitivity(known)
    metric = g.square().mean((0, 1)).sqrt()
    metric = metric / metric.square().mean().sqrt()
    by_dimension = kmeans((known.z * metric).flatten(0, 1), num_codes, generator=generator)
    tried = [Codebook(by_dimension, metric)]

    z, weight = known.z.flatten(0, 1), g.square().sum(-1).flatten()
    codewords = kmeans(z, num_codes, generator=generator)
    for _ in range(10):
        codes = nearest_codes(z, codewords)
        total = torch.zeros(num_codes, dtype=z.dtype).index_add(0, codes, weight)
        sums = torch.zeros_like(codewords).index_add(0, codes, z * weight[:, None])
        codewords = torch.where((total > 0)[:, None], sums / total[:, None], codewords)
    tried.append(Codebook(codewords))
    return max(tried, key=lambda codebook: quality(codebook, known))


def quantized(z: Tensor, codewords: Tensor, temperature: float) -> Tensor:
    """The nearest codewords, (N, P, D), with the gradient of softmax(−‖z − c‖² / temperature)."""
    distances = (z.square().sum(-1, keepdim=True) - 2 * z @ codewords.T) + codewords.square().sum(1)
    soft = (-distances / temperature).softmax(-1)  # (N, P, K)
    hard = one_hot(distances.argmin(-1), len(codewords)).to(z.dtype)
    return (hard + soft - soft.detach()) @ codewords


def held_out_loss(
    codewords: Tensor,
    penalty: Tensor,
    scale: Tensor,
    lower: Labelled,
    upper: Labelled,
    temperature: float,
) -> Tensor:
    """Cross-entropy above of the ridge regression below."""
    f = quantized(lower.z, codewords, temperature).flatten(1)
    g = quantized(upper.z, codewords, temperature).flatten(1)
    return cross_entropy(scale * (g @ (f.T @ ridge(f, lower.y, penalty))), upper.y)


def _draws(known: Labelled, scale: Scale, seed: int) -> Iterator[Labelled]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(known.y), generator=generator)
        yield known.take(order[: scale.lower + scale.upper])


def learned(
    start: Codebook,
    known: Labelled,
    scale: Scale,
    *,
    lr: float,
    softness: float,
    seed: int,
    jointly: bool,
) -> Codebook:
    """A codebook trained from `start`: by hypergradient, or jointly with a linear classifier."""
    codewords = start.codewords.clone().requires_grad_()
    error = (known.z - start.codewords[start.codes(known.z)]).square().sum(-1).mean()
    temperature = softness * float(error)
    features = start.codewords[start.codes(known.z)].flatten(1)
    penalty, _ = left_out(features, known.y)
    log_scale = torch.tensor(1.5, requires_grad=True)
    log_penalty = torch.tensor(penalty).log().requires_grad_()
    weights = (features.T @ ridge(features, known.y, penalty)).requires_grad_()
    rms = float(known.z.square().mean().sqrt())
    others = [weights] if jointly else [log_penalty]
    optimizer = Adam(
        [
            {"params": [codewords], "lr": lr * rms},
            {"params": [log_scale], "lr": 0.05},
            {"params": others, "lr": 0.03 * float(weights.detach().std()) if jointly else 0.05},
        ]
    )
    schedule = falling(optimizer, scale.steps)
    draws = _draws(known, scale, seed)
    for _ in range(scale.steps):
        batch = next(draws)
        optimizer.zero_grad()
        if jointly:
            f = quantized(batch.z, codewords, temperature).flatten(1)
            loss = cross_entropy(log_scale.exp() * (f @ weights), batch.y)
        else:
            first = torch.arange(len(batch.y)) < scale.lower
            loss = held_out_loss(
                codewords,
                log_penalty.exp(),
                log_scale.exp(),
                batch.take(first),
                batch.take(~first),
                temperature,
            )
        loss.backward()
        optimizer.step()
        schedule.step()
    return Codebook(codewords.detach())

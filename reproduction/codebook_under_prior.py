"""A codebook judged by a prior: encoder and decoder frozen, K = 64 codewords and their prices.

Below is a small PixelCNN of the codes, above the bits that it spends on held-out images plus the
decoder's error. Every finished codebook is judged by a PixelCNN trained from anew on its codes of
training images, on test images.

Written down before any test image was encoded: the hypergradient wins if at equal MSE its codes
take at least 3% fewer bits than those of each of joint training with the same PixelCNN, joint
training with independent codes, and `mqvae.RateAware`; bits are interpolated between the trade-offs
of the other method where its errors span the hypergradient's, a mean over these and three seeds.
"""

import itertools
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mqvae.core.initialization import kmeans
from mqvae.data import load
from reproduction import results
from reproduction.domains import SEEN, pixels
from reproduction.frozen import Frozen, entropy, nearest_codes
from reproduction.priced_codebooks import (
    Autoregressive,
    Independent,
    Priced,
    Scale,
    judged,
    rate_aware,
    trained,
)
from reproduction.studies import conclude, parser_of

RESULTS = Path(__file__).with_name("results") / "codebook-under-prior.jsonl"
WIN = 0.97  # bits over those of each baseline, at most
METHOD = "hypergradient"
JOINT = "joint training"
INDEPENDENT = "joint training, independent codes"
RATE_AWARE = "RateAware"
BASELINES = (JOINT, INDEPENDENT, RATE_AWARE)

Settings = dict[str, dict[str, float]]  # "lr" and "inner_rate", by method


def learn(
    name: str, frozen: Frozen, x: Tensor, z: Tensor, start: Tensor, scale: Scale, **given: Any
) -> Priced:
    """A codebook by one of the methods that are trained by gradients."""
    torch.manual_seed(given["seed"])
    prior = (
        Independent(len(start))
        if name == INDEPENDENT
        else Autoregressive(len(start), z.shape[1], scale)
    )
    return trained(frozen, x, z, start, scale, prior=prior, **({"inner_rate": None} | given))


def tuned(frozen: Frozen, x: Tensor, z: Tensor, start: Tensor, scale: Scale) -> Settings:
    """The settings of the lowest upper loss on a fifth of the training images, at the middle λ."""
    cut, trade = len(x) // 5, scale.trade[len(scale.trade) // 2]
    found: Settings = {}
    for name in (METHOD, JOINT, INDEPENDENT):
        tried = []
        for lr in scale.rates:
            for inner_rate in scale.inner_rates if name == METHOD else (None,):
                setting = {"lr": lr} if inner_rate is None else {"lr": lr, "inner_rate": inner_rate}
                book = learn(
                    name, frozen, x[cut:], z[cut:], start, scale, trade=trade, seed=0, **setting
                )
                got = judged(frozen, book, z[cut:], x[:cut], z[:cut], scale, 0)
                tried.append((got["mse"] + trade * got["bits"], setting))
                print(f"{name}: {setting} {got}", file=sys.stderr, flush=True)
        found[name] = min(tried, key=lambda pair: pair[0])[1]
    return found


def study(
    frozen: Frozen,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    scale: Scale,
    seed: int,
    settings: Settings,
    known: Container[tuple[str, float]] = (),
) -> Iterator[dict[str, Any]]:
    """A line for each method and trade-off that is not known; images and embeddings are given."""
    (x, z), (test_x, test_z) = train, test
    generator = torch.Generator().manual_seed(seed)
    start = kmeans(z[:600].flatten(0, 1), scale.codes, generator=generator)
    full = entropy(nearest_codes(z, start), scale.codes)

    def line(name: str, trade: float, book: Priced) -> dict[str, Any]:
        got = judged(frozen, book, z, test_x, test_z, scale, seed)
        got["entropy"] = entropy(book.codes(test_z), scale.codes)
        return {"seed": seed, "method": name, "trade": trade, "settings": settings, **got}

    if ("k-means", 0.0) not in known:
        yield line("k-means", 0.0, Priced(start, torch.zeros(scale.codes)))
    for share in scale.shares:
        if (RATE_AWARE, share) not in known:
            book = rate_aware(z, start, share * full, 2 * scale.steps, seed)
            yield line(RATE_AWARE, share, book)
    for trade, (name, setting) in itertools.product(scale.trade, settings.items()):
        if (name, trade) not in known:
            book = learn(name, frozen, x, z, start, scale, trade=trade, seed=seed, **setting)
            yield line(name, trade, book)


def at(points: Sequence[tuple[float, float]], mse: float) -> float | None:
    """Bits at an error, between two of (mse, bits); None where the points do not span it."""
    ordered = sorted(points)
    for (a, bits_a), (b, bits_b) in itertools.pairwise(ordered):
        if a <= mse <= b and a < b:
            return bits_a + (bits_b - bits_a) * (mse - a) / (b - a)
    return None


def ratios(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """By baseline, bits of the hypergradient over its own at equal MSE, of every seed.

    The codebook of k-means ends the curve of every baseline.
    """
    found: dict[str, list[float]] = {name: [] for name in BASELINES}
    for seed in sorted({line["seed"] for line in lines}):
        of = {
            name: [
                (line["mse"], line["bits"])
                for line in lines
                if line["seed"] == seed and line["method"] in (name, other)
            ]
            for name, other in ((METHOD, ""), *((name, "k-means") for name in BASELINES))
        }
        for name in BASELINES:
            here = [
                bits / other for mse, bits in of[METHOD] if (other := at(of[name], mse)) is not None
            ]
            if here:
                found[name].append(sum(here) / len(here))
    return found


def wins(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the threshold is met against every baseline."""
    return all(of and sum(of) / len(of) <= WIN for of in ratios(lines).values())


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds as Markdown, then the ratios of bits at equal MSE."""
    rows = ["method | λ or share | MSE e-3 | PixelCNN, bits | entropy, bits", "---|---|---|---|---"]
    for name, trade in dict.fromkeys((line["method"], line["trade"]) for line in lines):
        of = [line for line in lines if (line["method"], line["trade"]) == (name, trade)]
        mean = {m: sum(line[m] for line in of) / len(of) for m in ("mse", "bits", "entropy")}
        rows.append(
            f"{name} | {trade:g} | {1e3 * mean['mse']:.2f} | {mean['bits']:.3f} | "
            f"{mean['entropy']:.2f}"
        )
    rows += [f"{name}: {[round(r, 3) for r in of]}" for name, of in ratios(lines).items()]
    return "\n".join(rows)


def images(split: str, count: int, seed: int) -> Tensor:
    """Images of the classes that the networks have seen, drawn by the seed."""
    data = load("fashion-mnist", split)
    rows = torch.isin(data.labels, torch.tensor(SEEN)).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    chosen = rows[torch.randperm(len(rows), generator=generator)[:count]]
    return pixels(data, chosen)


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = parser_of("codebook-under-prior", RESULTS).parse_args(arguments)
    scale, lines = Scale(), results.read(options.results)
    for seed, run in enumerate(options.runs):
        known = {(line["method"], line["trade"]) for line in lines if line["seed"] == seed}
        if len(known) == 1 + len(scale.shares) + 3 * len(scale.trade):
            continue
        frozen = Frozen.of_run(run)
        x, test_x = images("train", 3000, seed), images("test", 1000, seed)
        z = frozen.embed(x)
        if lines:
            settings = lines[0]["settings"]
        else:
            start = kmeans(z[:600].flatten(0, 1), scale.codes)
            settings = tuned(frozen, x, z, start, scale)
        test = (test_x, frozen.embed(test_x))
        for line in study(frozen, (x, z), test, scale, seed, settings, known):
            results.append(options.results, line)
            lines.append(line)
    return conclude(table(lines), won=wins(lines))

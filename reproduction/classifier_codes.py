"""Codes for a classifier: encoder frozen, K codewords, 1,000 labels.

The classifier is ridge regression on the quantized embeddings of all positions, in closed form. The
codebook is learned by hypergradient: cross-entropy on held-out labels of the ridge regression on
others, differentiated through its solution; codes are hard forward and soft backward. Embeddings of
the encoder were trained without labels.

Written down before any test image was classified: the hypergradient wins if its test accuracy, a
mean over K = 4, 16, 64 and three seeds, is at least 1.0 point above that of the best of k-means,
Fisher-weighted k-means and joint training, and at no K below the best by more than 0.5 points.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mqvae.data import load
from reproduction import results
from reproduction.classifier_codebooks import (
    Labelled,
    Scale,
    by_fisher,
    by_kmeans,
    learned,
    quality,
    test_accuracy,
)
from reproduction.domains import pixels
from reproduction.frozen import Frozen
from reproduction.studies import conclude, parser_of

RESULTS = Path(__file__).with_name("results") / "classifier-codes.jsonl"
WIN, NOWHERE_BELOW = 1.0, 0.5  # points of accuracy
METHOD = "hypergradient"
BASELINES = ("k-means", "Fisher-weighted k-means", "joint training")

Settings = Mapping[str, tuple[float, float]]  # learning rate and softness, by method


def tuned(known: Labelled, scale: Scale, seed: int) -> dict[str, tuple[float, float]]:
    """The settings of the best leave-one-out accuracy, at the middle K."""
    num_codes = scale.codes[len(scale.codes) // 2]
    start = by_kmeans(known, num_codes, torch.Generator().manual_seed(seed))
    found = {}
    for name in (METHOD, "joint training"):
        tried = {}
        for lr in scale.rates:
            for softness in scale.softness:
                codebook = learned(
                    start, known, scale, lr=lr, softness=softness, seed=seed,
                    jointly=name != METHOD,
                )  # fmt: skip
                tried[lr, softness] = quality(codebook, known)
        print(f"{name}: {tried}", file=sys.stderr, flush=True)
        found[name] = max(tried, key=lambda setting: tried[setting])
    return found


def study(
    known: Labelled, test: Labelled, scale: Scale, seed: int, settings: Settings
) -> Iterator[dict[str, Any]]:
    """A line for each K."""
    for num_codes in scale.codes:
        generator = torch.Generator().manual_seed(seed)
        start = by_kmeans(known, num_codes, generator)
        found = {
            "k-means": start,
            "Fisher-weighted k-means": by_fisher(known, num_codes, generator),
        }
        for name, (lr, softness) in settings.items():
            found[name] = learned(
                start, known, scale, lr=lr, softness=softness, seed=seed, jointly=name != METHOD
            )
        yield {
            "seed": seed,
            "codes": num_codes,
            "settings": dict(settings),
            "methods": {name: test_accuracy(book, known, test) for name, book in found.items()},
        }


def accuracies(lines: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, list[float]]]:
    """By K and method, the accuracy of every seed in percent."""
    found: dict[int, dict[str, list[float]]] = {}
    for line in lines:
        of = found.setdefault(line["codes"], {})
        for name, result in line["methods"].items():
            of.setdefault(name, []).append(100 * result["accuracy"])
    return found


def wins(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether both thresholds are met."""
    means = {
        k: {name: sum(of) / len(of) for name, of in methods.items()}
        for k, methods in accuracies(lines).items()
    }
    if not means:
        return False
    over = {name: sum(of[name] for of in means.values()) / len(means) for name in means[min(means)]}
    return over[METHOD] >= max(over[name] for name in BASELINES) + WIN and all(
        of[METHOD] >= max(of[name] for name in BASELINES) - NOWHERE_BELOW for of in means.values()
    )


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Accuracies as Markdown."""
    found = accuracies(lines)
    rows = ["| " + " | ".join(f"K = {k}" for k in found), "|".join(["---"] * (len(found) + 1))]
    for name in (*BASELINES, METHOD):
        cells = [f"{sum(of[name]) / len(of[name]):.1f} ({min(of[name]):.1f} … {max(of[name]):.1f})"
                 for of in found.values()]  # fmt: skip
        rows.append(f"{name} | " + " | ".join(cells))
    return "\n".join(rows)


def labelled(frozen: Frozen, split: str, count: int, seed: int) -> Labelled:
    """Images of Fashion-MNIST, drawn by the seed."""
    images = load("fashion-mnist", split)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(images), generator=generator)[:count]
    return Labelled(frozen.embed(pixels(images, rows)), images.labels[rows])


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    options = parser_of("classifier-codes", RESULTS).parse_args(arguments)
    scale, lines = Scale(), results.read(options.results)
    for seed, run in enumerate(options.runs):
        if any(line["seed"] == seed for line in lines):
            continue
        frozen = Frozen.of_run(run)
        known = labelled(frozen, "train", 1000, seed)
        settings = lines[0]["settings"] if lines else tuned(known, scale, seed)
        for line in study(known, labelled(frozen, "test", 4000, seed), scale, seed, settings):
            results.append(options.results, line)
            lines.append(line)
    return conclude(table(lines), won=wins(lines))

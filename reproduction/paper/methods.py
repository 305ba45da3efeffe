"""The paper's methods by its own names, and the figures it gives for them."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        name: As the page has it, and mostly the paper.
        preset: Under `methods/`.
        codebook_rate: In our reading of the paper: "network" for that of encoder and decoder,
            "meta" for MQ-VAE's own; None of a method whose codebook has no rate.
        against: The method that its ratios are taken to.
        above: The batch that judges its codebook, as `update.upper_batch` has it.
        upper_loss: The loss that judges it, as `update.upper_loss` has it; None for the network's.
        xi: Size of the virtual step; None for the preset's.
    """

    name: str
    preset: str
    codebook_rate: Literal["network", "meta"] | None = "network"
    against: str | None = "VQ-VAE"
    above: Literal["same", "next", "held-out"] = "same"
    upper_loss: Mapping[str, Any] | None = None
    xi: float | None = None

    @property
    def has_codes(self) -> bool:
        """Whether it quantizes."""
        return self.preset != "no-quantization"


META_RATE = 6e-2  # Appendix I
SMOOTHED_LOSS: Mapping[str, Any] = {
    "class_path": "mqvae.Classification",
    "init_args": {"label_smoothing": 0.2},
}

_PAPERS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("No quantization", "no-quantization", None),
        Method("VQ-VAE", "vq-vae", against=None),
        Method("Gumbel-VQVAE", "gumbel"),
        Method("MQ-VAE", "mq-vae", "meta"),
        Method("VQ-VAE + replace", "replace"),
        Method("MQ-VAE + replace", "mq-vae-replace", "meta", "VQ-VAE + replace"),
        Method("VQ-VAE + group", "group"),
        Method("MQ-VAE + group", "mq-vae-group", "meta", "VQ-VAE + group"),
        Method("VQ-VAE + alt", "alt"),
        Method("VQ-VAE + sync", "sync"),
        Method("VQ-VAE + alt + sync", "alt-sync"),
        Method("MQ-VAE†", "mq-vae-dagger", "meta"),
        Method("MQ-VAE‡", "mq-vae-double-dagger", "meta"),
        Method("MQ-VAE, direct only", "mq-vae-direct", "meta"),
        Method("MQ-VAE, kept", "mq-vae-kept", "meta"),
        Method("MQ-VAE, amortized", "mq-vae-amortized", "meta"),
        # As printed, where it differs from what is run above.
        Method("VQ-VAE + alt, β = 0", "alt-no-commitment"),
        Method("VQ-VAE + group, one codebook", "group-shared"),
        Method(
            *("MQ-VAE + group, one codebook", "mq-vae-group-shared", "meta"),
            against="VQ-VAE + group, one codebook",
        ),
        Method("Gumbel-VQVAE, its source's divergence", "gumbel-source"),
        Method("MQ-VAE, descent, ξ = 3e-4", "mq-vae-descent", "meta", xi=3e-4),
        Method("MQ-VAE, descent, ξ = 1e-3", "mq-vae-descent", "meta", xi=1e-3),
        Method("MQ-VAE, free codes", "mq-vae-free-codes", "meta"),
        Method("MQ-VAE, exact", "mq-vae-exact", "meta"),
        Method("MQ-VAE, 2 steps", "mq-vae-unrolled", "meta"),
        Method("MQ-VAE, 2 steps, graph cut", "mq-vae-unrolled-cut", "meta"),
        # The same rules; network and task are the scale's.
        Method("VQ-GAN", "vq-vae", against=None),
        Method("MQ-GAN", "mq-vae", "meta", "VQ-GAN"),
        Method("MQ-GAN, amortized", "mq-vae-amortized", "meta", "VQ-GAN"),
    )
}
OURS: Mapping[str, Method] = {  # what the paper does not have, beside it
    method.name: method
    for method in (
        Method("EMA, 0.99", "ema", None),
        Method("EMA, 0.9", "ema-short", None),
        Method("EMA + replace", "ema-replace", None),
        Method("EMA + replace + group", "ema-replace-group", None),
        Method("EMA + replace + warm start", "recommended", None),
        Method("EMA + transport", "ema-transport", None),
        Method("EMA + transport + replace", "ema-transport-replace", None),
        Method("Transport", "transport"),
        Method("MQ-VAE, kept, next batch above", "mq-vae-kept", "meta", above="next"),
        Method("MQ-VAE, kept, held-out batch above", "mq-vae-kept", "meta", above="held-out"),
        Method(
            "MQ-VAE, kept, smoothed loss above", "mq-vae-kept", "meta", upper_loss=SMOOTHED_LOSS
        ),
        Method("MQ-VAE, amortized + replace", "mq-vae-amortized-replace", "meta"),
        Method("VQ-VAE + warm start", "warm-start"),
        Method("VQ-VAE + gradual warm start", "warm-start-gradual"),
        Method("VQ-VAE + cosine", "cosine"),
        Method("VQ-VAE + affine", "affine"),
        Method("VQ-VAE + linear map", "linear-map"),
        Method("VQ-VAE + rotation", "rotation"),
        Method("FSQ", "fsq", None),
        Method("LFQ", "lfq", None),
        Method("BSQ", "bsq", None),
        Method("VQ-VAE, SGD", "sgd", None),
        Method("VQ-VAE, Adagrad", "adagrad"),
        Method("VQ-VAE, row-wise Adam", "rowwise-adam"),
        Method("VQ-VAE + batch norm", "batch-norm"),
        Method("VQ-VAE + layer norm", "layer-norm"),
    )
}
METHODS: Mapping[str, Method] = {**_PAPERS, **OURS}

_NAMES = {
    "MQ-VAE dagger (network only)": "MQ-VAE†",
    "MQ-VAE double dagger (both)": "MQ-VAE‡",
}
_DATASETS = {
    "Fashion-MNIST": "fashion-mnist",
    "CIFAR-10": "cifar10",
    "CIFAR-100": "cifar100",
    "CIFAR-100 (text; the table is headed CIFAR10)": "cifar100",
    "SVHN": "svhn",
    "CelebA-HQ": "celeba-hq",
    "ImageNet": "imagenet",
    "reconstruction": "fashion-mnist",
}
_FIGURES = {  # the paper's column: our key, and what the paper's figures are multiplied by
    "fid": ("fid", 1.0),
    "is": ("inception_score", 1.0),
    "lpips_x10": ("lpips", 0.1),
    "lpips": ("lpips", 1.0),
    "mse_x1e3": ("mse", 1e-3),
    "perplexity": ("perplexity", 1.0),
    "gradient_gap_x1e5": ("gradient_gap", 1e-5),
    "gradient_gap": ("gradient_gap", 1.0),
    "accuracy": ("accuracy", 1e-2),
    "f1": ("f1", 1e-2),
    "cross_entropy": ("cross_entropy", 1.0),
    "perceptual_loss": ("perceptual_loss", 1.0),
    "relative_cost": ("ratio", 1.0),
}


@cache
def _values() -> Mapping[tuple[int, str, str, str], float]:
    file = resources.files("reproduction.paper") / "values.csv"
    found = {}
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        key, scale = _FIGURES[row["figure"]]
        method = _NAMES.get(row["method"], row["method"])
        where = (int(row["table"]), _DATASETS[row["dataset"]], method, key)
        found[where] = float(row["value"]) * scale
    return found


def paper_value(table: int, dataset: str, method: str, figure: str) -> float | None:
    """What the paper says, unscaled: an MSE of 7.26e-3, an accuracy of 0.891.

    Args:
        table: Number of the table.
        dataset: As `--data.name` takes it.
        method: As `METHODS` has it.
        figure: As a run's summary.json has it.
    """
    return _values().get((table, dataset, method, figure))

"""The paper's tables of methods: 1, 2, 3, 5, 6, 7, 8, and Appendix F."""

from collections.abc import Sequence

from reproduction.paper.methods_table import (
    BOUND,
    AtSizes,
    MethodsTable,
    WithOverfitting,
    WithPictures,
    WithSingles,
)
from reproduction.paper.sections import Protocol

TABLE_1 = (
    "VQ-VAE",
    "Gumbel-VQVAE",
    "MQ-VAE",
    "VQ-VAE + replace",
    "MQ-VAE + replace",
    "VQ-VAE + group",
    "MQ-VAE + group",
)
BESIDE = ("EMA + replace", "EMA + replace + group")  # what is recommended, beside the paper's
TABLE_3 = ("VQ-VAE", "VQ-VAE + alt", "VQ-VAE + sync", "VQ-VAE + alt + sync", "MQ-VAE")
TABLE_8 = ("VQ-GAN", "MQ-GAN", "MQ-GAN, amortized")
TABLE_7 = ("VQ-VAE", "MQ-VAE", "MQ-VAE†", "MQ-VAE‡")
CUT = "MQ-VAE, direct only"
FORMS = (
    *("VQ-VAE", "MQ-VAE", "MQ-VAE, descent, ξ = 3e-4", "MQ-VAE, descent, ξ = 1e-3"),
    *("MQ-VAE, free codes", "MQ-VAE, exact", "MQ-VAE, 2 steps", "MQ-VAE, 2 steps, graph cut"),
    *("VQ-VAE + group", "VQ-VAE + group, one codebook"),
    *("MQ-VAE + group", "MQ-VAE + group, one codebook"),
    *("Gumbel-VQVAE", "Gumbel-VQVAE, its source's divergence"),
)

PAIRS_1 = (
    ("MQ-VAE", "VQ-VAE"),
    ("MQ-VAE + replace", "VQ-VAE + replace"),
    ("MQ-VAE + group", "VQ-VAE + group"),
    ("MQ-VAE", "Gumbel-VQVAE"),
    ("Gumbel-VQVAE", "VQ-VAE"),
)
PAIRS_3 = tuple(("MQ-VAE", method) for method in TABLE_3 if method != "MQ-VAE")
PAIRS_8 = (("MQ-GAN", "VQ-GAN"),)
PAIRS_7 = (("MQ-VAE", "VQ-VAE"), ("MQ-VAE", "MQ-VAE†"), ("MQ-VAE‡", "MQ-VAE"))
PAIRS_F = (("MQ-VAE", CUT),)
READINGS: Sequence[Protocol] = ("paper", "equal", "matched")
BOTH: Sequence[Protocol] = ("paper", "equal")

TABLES: Sequence[MethodsTable] = (
    WithPictures(
        "table-1",
        "Table 1: reconstruction",
        "MQ-VAE achieves the best performance across all evaluation metrics (Section 5.2).",
        1,
        "reconstruction",
        ("fashion-mnist", "cifar100"),
        (BOUND, *TABLE_1, *BESIDE),
        ("mse",),
        PAIRS_1,
        best=3,
        claimed=(
            ("MQ-VAE's MSE over VQ-VAE's", PAIRS_1[0], "mse"),
            ("the same, both with replacement", PAIRS_1[1], "mse"),
            ("the same, both with groups", PAIRS_1[2], "mse"),
        ),
    ),
    WithOverfitting(
        "table-2",
        "Table 2: classification by a quantized ResNet18",
        "MQ-VAE achieves the best or comparable performance across all metrics except perplexity.",
        2,
        "classification",
        ("fashion-mnist", "cifar100"),
        (BOUND, *TABLE_1),
        ("accuracy", "cross_entropy"),
        PAIRS_1,
        best=3,
        claimed=(("a classifier's accuracy, MQ-VAE beside VQ-VAE", PAIRS_1[0], "accuracy"),),
    ),
    MethodsTable(
        "table-3",
        "Table 3: alternated and synchronous updates",
        "MQ-VAE outperforms the ablation baselines in all generation quality measures (Section "
        "5.4).",
        3,
        "reconstruction",
        ("fashion-mnist", "cifar100"),
        (BOUND, *TABLE_3, "VQ-VAE + alt, β = 0"),
        ("mse",),
        PAIRS_3,
        best=4,
        claimed=(("MQ-VAE's MSE over its best ablation's, + alt + sync", PAIRS_3[-1], "mse"),),
    ),
    MethodsTable(
        "table-5",
        "Table 5: reconstruction, other data",
        "As Table 1: MQ-VAE is best by every metric.",
        5,
        "reconstruction",
        ("svhn", "cifar10", "photos"),
        (BOUND, *TABLE_1),
        ("mse",),
        PAIRS_1,
        best=3,
    ),
    MethodsTable(
        "table-6",
        "Table 6: alternated and synchronous updates, other data",
        "As Table 3.",
        6,
        "reconstruction",
        ("svhn", "cifar10", "photos"),
        (BOUND, *TABLE_3),
        ("mse",),
        PAIRS_3,
        best=4,
    ),
    MethodsTable(
        "table-7",
        "Table 7: which level has the hypergradient",
        "With the hypergradient on encoder and decoder alone (†) the gain is smaller, on both "
        "levels (‡) slightly larger than on the codebook alone, at about twice the cost.",
        7,
        "reconstruction",
        ("cifar100", "fashion-mnist", "photos"),
        (BOUND, *TABLE_7),
        ("mse",),
        PAIRS_7,
        READINGS,
        claimed=(("MQ-VAE's MSE over that of † (CIFAR-100 in the paper)", PAIRS_7[1], "mse"),),
    ),
    WithSingles(
        "table-8",
        "Table 8: VQ-GAN and MQ-GAN",
        "MQ-GAN is better than VQ-GAN by every metric, on CelebA-HQ after 10,000 steps and on "
        "ImageNet after 5,000.",
        8,
        "adversarial",
        ("celeba-hq", "imagenet", "photos"),
        TABLE_8,
        ("lpips", "perceptual_loss"),
        PAIRS_8,
        best=1,
    ),
    MethodsTable(
        "appendix-f",
        "Appendix F: the look-ahead with its graph cut",
        "Without the graph of the look-ahead only the direct term is left, which is insufficient "
        "for optimizing the codebook effectively.",
        None,
        "reconstruction",
        ("fashion-mnist",),
        (BOUND, "VQ-VAE", "MQ-VAE", CUT),
        ("mse",),
        PAIRS_F,
        READINGS,
    ),
    MethodsTable(
        "algorithm-1",
        "Forms of Algorithm 1, and rows as the paper prints them",
        "The virtual step is descent of size ξ, the learning rate of the lower level (line 243 "
        "and Eq. 10); Eq. 13 has a central difference with codes free to change.",
        None,
        "reconstruction",
        ("fashion-mnist",),
        FORMS,
        ("mse",),
        tuple((form, "MQ-VAE") for form in FORMS if form.startswith("MQ-VAE,")),
        BOTH,
    ),
    AtSizes(
        "appendix-i",
        "Appendix I: Table 1 at the paper's width and dimension",
        "1,024 codes of 512 dimensions, the network of van den Oord 2017, 3e-4 and 6e-2; batches "
        "here are 64 for its 512.",
        1,
        "reconstruction",
        ("fashion-mnist",),
        ("VQ-VAE", "MQ-VAE"),
        ("mse",),
        PAIRS_1[:1],
        BOTH,
        claimed=(("MSE at the paper's width and dimension", PAIRS_1[0], "mse"),),
        at="appendix-i",
    ),
    AtSizes(
        "appendix-i-classifier",
        "Appendix I: Table 2 with torchvision's ResNet18 whole",
        "“The standard ResNet18 architecture from the PyTorch library”: its own stem, 64 channels, "
        "codes of 512 dimensions; batches here are 64 for its 512.",
        2,
        "classification",
        ("fashion-mnist",),
        ("VQ-VAE", "MQ-VAE"),
        ("accuracy", "cross_entropy"),
        PAIRS_1[:1],
        BOTH,
        at="appendix-i",
    ),
)

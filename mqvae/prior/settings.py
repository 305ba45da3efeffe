"""Settings of a prior, `prior/config.yaml` in a run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mqvae.core.quantizers import NoQuantizer
from mqvae.errors import MqvaeError, at_least, one_of, refused
from mqvae.metrics.registry import FRECHET
from mqvae.networks.code_prior import CodePrior
from mqvae.networks.pixelcnn import PixelCNN
from mqvae.networks.transformer import CodeTransformer
from mqvae.runs import Run
from mqvae.tokenizer import Tokenizer

FOLDER = "prior"
ARCHITECTURES = ("pixelcnn", "transformer")
LARGE = 256  # codes of an image from which a transformer is the usual choice
BATCH, BATCH_CODES = 64, 4096  # grids of a batch, and codes of all of them, at most

MOST_CODES = 2**18  # of which a prior gives each its probability


@dataclass(frozen=True)
class PriorSettings:
    """How a prior is trained.

    Args:
        steps: Number of training steps.
        seed: Of the first weights and the order of batches.
        architecture: pixelcnn or transformer (default: transformer where an image has 256 codes or
            more).
        width: Channels, of a PixelCNN's either stack.
        layers: Gated layers, or blocks of attention.
        kernel: Side of a PixelCNN's kernels, odd (default: the smallest that sees the whole grid).
        heads: Heads of a transformer's attention; they divide the width.
        batch_size: Grids of codes in a batch (default: those of 4,096 codes, and 64 at most).
        lr: AdamW's learning rate, reached by a warm-up and followed by a cosine to 0.
        warmup: Share of the steps that the warm-up takes.
        conditional: Condition on the classes of the images.
        samples_every: Steps between measurements of samples: their Fréchet distance from the test
            images, in samples.csv; 0 for none.
        samples: How many are drawn each time.
        distance: fid or frechet_vgg16 (default: fid where Inception's weights are here).
    """

    steps: int = 2000
    seed: int = 0
    architecture: str | None = None
    width: int = 64
    layers: int = 8
    kernel: int | None = None
    heads: int = 4
    batch_size: int | None = None
    lr: float = 1e-3
    warmup: float = 0.05
    conditional: bool = False
    samples_every: int = 0
    samples: int = 1000
    distance: str | None = None

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("steps", "width", "layers", "batch_size")}
        at_least(1, **{name: size for name, size in sizes.items() if size is not None})
        if self.seed >= 2**32:
            raise MqvaeError(f"seed must lie in 0 … {2**32 - 1}, got {self.seed}.")
        at_least(0, seed=self.seed, samples_every=self.samples_every)
        at_least(2, samples=self.samples)
        one_of((None, *FRECHET), distance=self.distance)
        one_of((None, *ARCHITECTURES), architecture=self.architecture)
        if not 0 < self.lr < float("inf"):
            raise MqvaeError(f"lr must be above 0, got {self.lr}.")
        if not 0 <= self.warmup < 1:
            raise MqvaeError(f"warmup must be 0 or more and less than 1, got {self.warmup}.")


@dataclass(frozen=True)
class PriorConfig:
    """Contents of `prior/config.yaml`.

    Attributes:
        prior: How it is trained.
        num_codes: K of the codes.
        shape: Of an image's codes, (h, w) or (h, w, G).
        classes: Number of classes it is conditioned on; 0 for none.
        checkpoint: Of the run, whose tokenizer it belongs to.
        model: Fingerprint of that tokenizer's weights.
    """

    prior: PriorSettings
    num_codes: int
    shape: tuple[int, ...]
    classes: int
    checkpoint: str
    model: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, prior: PriorSettings, checkpoint: str) -> "PriorConfig":
        """What a prior for a tokenizer is.

        Raises:
            ValueError: if the tokenizer has no codes or gives no images, or there are no classes.
        """
        import torch

        run, data = tokenizer.run.folder, tokenizer.settings.data
        quantizer = tokenizer.network.quantizer
        if isinstance(quantizer, NoQuantizer):
            raise MqvaeError(
                f"{run} was trained without quantization: it has no codes that a prior could learn."
            )
        if quantizer.num_codes > MOST_CODES:
            raise MqvaeError(
                f"a code of {run} has {quantizer.num_codes:,} values, and a prior has a number for "
                f"each of them at every position: expected {MOST_CODES:,} at most. Train a prior "
                "over a run with fewer codes, or with several smaller ones: groups or stages."
            )
        black = torch.zeros(1, *(data.shape or (1, 1, 1)))
        codes = tokenizer.encode_batch(black)
        if codes.ndim != (3 if quantizer.groups == 1 else 4):
            raise MqvaeError(f"the codes of {run} are no grid: a prior needs (h, w) for an image.")
        try:
            tokenizer.task.images(tokenizer.decode(codes))
        except ValueError as error:
            raise MqvaeError(f"{run} gives no images that a prior could draw: {error}") from error
        classes = (data.classes or 0) if prior.conditional else 0
        if prior.conditional and classes < 2:
            raise MqvaeError(f"the images of {run} have no classes: leave out --conditional.")
        shape = tuple(codes.shape[1:])
        return cls(prior, quantizer.num_codes, shape, classes, checkpoint, tokenizer.model)

    def content(self) -> dict[str, Any]:
        """As config.yaml holds it."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def load(cls, folder: Path) -> "PriorConfig":
        """Read a prior's config.yaml.

        Raises:
            ValueError: if there is no prior, or the file is damaged.
        """
        if not (folder / "config.yaml").is_file():
            raise MqvaeError(f"{folder.parent} has no prior: train one, `mqvae prior RUN`.")
        content = Run(folder).config
        try:
            _exactly(cls, content)
            # Before there were others, all were of this kind.
            told = {"architecture": "pixelcnn", "heads": 4, **content["prior"]}
            _exactly(PriorSettings, told)
            shape = tuple(int(n) for n in content["shape"])
            return cls(**{**content, "prior": PriorSettings(**told), "shape": shape})
        except (KeyError, TypeError, ValueError) as error:
            raise MqvaeError(
                f"{folder / 'config.yaml'} is damaged ({error}): train the prior again with "
                "--overwrite."
            ) from error

    def network(self) -> CodePrior:
        """The network, its weights drawn by the seed; the global random state stays as it is."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.prior.seed)
            with refused("the prior's width, layers, kernel and heads"):
                return self._made()

    @property
    def architecture(self) -> str:
        """Which of `ARCHITECTURES` it is."""
        usual = "transformer" if math.prod(self.shape) >= LARGE else "pixelcnn"
        return self.prior.architecture or usual

    @property
    def batch_size(self) -> int:
        """Grids of codes in a batch, where there are as many."""
        usual = max(1, min(BATCH, BATCH_CODES // math.prod(self.shape)))
        return usual if self.prior.batch_size is None else self.prior.batch_size

    def _made(self) -> CodePrior:
        sizes = {"width": self.prior.width, "layers": self.prior.layers, "classes": self.classes}
        if self.architecture == "transformer":
            return CodeTransformer(self.num_codes, self.shape, heads=self.prior.heads, **sizes)
        kernel = self.prior.kernel or self._kernel()
        return PixelCNN(self.num_codes, self.shape, kernel=kernel, **sizes)

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that the prior was not trained for.

        Raises:
            ValueError: if its weights are others.
        """
        if tokenizer.model != self.model:
            raise MqvaeError(
                f"the prior belongs to other weights than those of {tokenizer.run.folder}: their "
                "codes mean other things. Train it again, `mqvae prior RUN --overwrite`."
            )

    def _kernel(self) -> int:
        rows, columns, *groups = self.shape
        longer = max(rows, columns * (groups[0] if groups else 1))
        return 2 * max(1, -(-longer // self.prior.layers)) + 1


def _exactly(kind: type, content: Mapping[str, Any]) -> None:
    expected, got = {f.name for f in fields(kind)}, set(content)
    if expected != got:
        raise MqvaeError(f"expected {sorted(expected)}, got {sorted(got)}")

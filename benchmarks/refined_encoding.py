"""What refined encoding gains, and what it costs: error, bits and images a second.

    mqvae prior RUN --steps 600
    python -m benchmarks.refined_encoding RUN --settings 5 10 50 10,1e-5 --out refined.json
    python -m benchmarks.refined_encoding RUN --settings 10 50 --train 12800 --trained-by 5

A setting is PASSES or PASSES,BITS_WEIGHT, or PASSES,BITS_WEIGHT,prior where the run's prior counts
the bits that are weighed. The images are the first of the test split. Bits a code are −Σ p log₂ p
of the codes counted over these images, and those under the run's prior, which was trained on
nearest codes: an upper bound.

With --train, that many training images are encoded twice, by nearest codes and refined as
--trained-by says; a prior and a decoder are trained on either, for --steps steps, and every setting
is measured again under both. Then the encoder is trained towards the codewords of either, and its
nearest codes are measured: what of the gain is to be had at no passes. Each line is written to
--out as it is known; those that are there are not measured again.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mqvae import Refinement, Tokenizer
from mqvae.data.order import order_of
from mqvae.networks.code_prior import CodePrior
from mqvae.prior.codes import CodeSplit, bits, bits_of_split, shuffled
from mqvae.prior.sampling import load_prior
from mqvae.prior.settings import PriorConfig
from mqvae.training import warmup_cosine

TUNED_AT = 3e-4  # the decoder's learning rate; a cosine to 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--settings", nargs="+", default=["10", "50"])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--train", type=int, default=0, metavar="IMAGES")
    parser.add_argument("--trained-by", default="5", metavar="SETTING")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("refined.json"))
    options = parser.parse_args()
    study = Study(options.run, options.images, options.out)
    study.measure(options.settings)
    if options.train:
        study.train(options.settings, options.train, options.trained_by, options.steps)


class Study:
    """A run, the images it is measured on, and the file of results."""

    def __init__(self, run: Path, images: int, out: Path) -> None:
        self.tokenizer = Tokenizer.from_run(run, device="cpu")
        known = (run / "prior").is_dir()
        self.prior = load_prior(self.tokenizer).eval() if known else None
        self.x = first(self.tokenizer, "test", images)
        self.out = out
        self.lines: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
        self.of = {
            "run": run.name,
            "seed": self.tokenizer.settings.seed,
            "images": images,
            "threads": torch.get_num_threads(),
        }

    def measure(self, settings: list[str], what: str = "", prior: CodePrior | None = None) -> None:
        """The nearest codes, then those of every setting."""
        nearest: dict[str, Any] = {}
        for setting in ["nearest", *settings]:
            line: dict[str, Any] = {**self.of, "setting": setting, "trained": what}
            there = (each for each in self.lines if line.items() <= each.items())
            found: dict[str, Any] | None = next(there, None)
            if found is None:
                codes, seconds = self.encoded(self.x, setting, prior)
                found = line | self.measured(codes, prior or self.prior)
                found |= {"images_per_second": len(codes) / seconds}
                self.lines.append(found)
                self.out.write_text(json.dumps(self.lines, indent=1) + "\n")
            nearest = nearest or found
            change = 100 * (found["mse"] / nearest["mse"] - 1)
            print(
                f"| {found['run']} {what} | {setting} | {1e3 * found['mse']:.3f} | "
                f"{change:+.1f}% | "
                f"{found['entropy']:.2f} | {found['prior']:.2f} | "
                f"{found['images_per_second']:.1f} |",
                flush=True,
            )

    def encoded(
        self, x: Tensor, setting: str, prior: CodePrior | None = None
    ) -> tuple[Tensor, float]:
        """Codes of images, and the seconds that they took."""
        began = time.perf_counter()
        if setting == "nearest":
            return self.tokenizer.encode_batch(x), time.perf_counter() - began
        passes, weight, under = [*setting.split(","), "", ""][:3]
        counts = (prior or self.prior) if under else None
        how = Refinement(int(passes), float(weight or 0), prior=counts)
        self.tokenizer.encode_batch(x[:1], refine=how)  # the decoder's curvature, once a run
        began = time.perf_counter()
        return self.tokenizer.encode_batch(x, refine=how), time.perf_counter() - began

    @torch.no_grad()
    def measured(self, codes: Tensor, prior: CodePrior | None) -> dict[str, float]:
        count = codes.flatten().bincount().double()
        p = count[count > 0] / count.sum()
        return {
            "mse": float((self.tokenizer.decode(codes) - self.x).square().mean()),
            "entropy": float(-(p * p.log2()).sum()),
            "prior": bits_of_split(prior, CodeSplit(codes.int(), None), self.tokenizer.device)
            if prior
            else float("nan"),
        }

    def train(self, settings: list[str], images: int, by: str, steps: int) -> None:
        """A prior and a decoder on nearest codes and on refined ones, and what they give."""
        config = PriorConfig.load(self.tokenizer.run.folder / "prior")
        x = first(self.tokenizer, "train", images)
        as_it_was = copy.deepcopy(self.tokenizer.network.decoder.state_dict())
        for how in ("nearest", by):
            kept = self.out.with_suffix(f".{how}.pt")  # the codes, which took the longest
            if not kept.is_file():
                torch.save(self.encoded(x, how)[0], kept)
            codes = torch.load(kept)
            prior = trained_prior(config, codes, steps)
            self.measure(settings, f"prior on {how}", prior)
            self.tune(x, codes, steps)
            self.measure(settings, f"prior and decoder on {how}", prior)
            self.tokenizer.network.decoder.load_state_dict(as_it_was)
            encoder = copy.deepcopy(self.tokenizer.network.encoder.state_dict())
            self.distil(x, codes, steps)
            self.measure([], f"encoder towards {how}", prior)
            self.tokenizer.network.encoder.load_state_dict(encoder)

    def tune(self, x: Tensor, codes: Tensor, steps: int) -> None:
        """The decoder on the images of codes; encoder and codebook stay."""
        network, task = self.tokenizer.network, self.tokenizer.task

        def loss(batch: Tensor) -> Tensor:
            return task(network.decode(codes[batch]), x[batch])

        descend(network.decoder, loss, len(x), steps)

    def distil(self, x: Tensor, codes: Tensor, steps: int) -> None:
        """The encoder towards the codewords of codes; codebook and decoder stay."""
        network = self.tokenizer.network

        def loss(batch: Tensor) -> Tensor:
            return (
                (network.embed(x[batch]) - network.quantizer.decode(codes[batch])).square().mean()
            )

        descend(network.encoder, loss, len(x), steps)


def descend(module: nn.Module, loss: Callable[[Tensor], Tensor], number: int, steps: int) -> None:
    """Adam with a cosine to 0 over batches of 64 of `number` images."""
    optimizer = torch.optim.Adam(module.parameters(), TUNED_AT)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _, batch in zip(range(steps), shuffled(number, 64, seed=0, start=0), strict=False):
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


def first(tokenizer: Tokenizer, split: str, number: int) -> Tensor:
    """The first images of the test split, or as many of the training split, drawn by a seed."""
    images = tokenizer.find_images(split)
    order = torch.arange(len(images)) if split == "test" else order_of(len(images), "refined")
    return images.take(order[:number])[0] / 255


def trained_prior(config: PriorConfig, codes: Tensor, steps: int) -> CodePrior:
    """A prior as the run's, on other codes."""
    prior, split = config.network().train(), CodeSplit(codes.int(), None)
    optimizer = torch.optim.AdamW(prior.parameters(), config.prior.lr)
    rate = warmup_cosine(steps, config.prior.warmup)
    batches = shuffled(len(split), config.batch_size, seed=config.prior.seed, start=0)
    for step, indices in zip(range(steps), batches, strict=False):
        optimizer.param_groups[0]["lr"] = config.prior.lr * rate(step)
        loss = bits(prior, *split.take(indices, torch.device("cpu")))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return prior.eval()


if __name__ == "__main__":
    main()

"""The layer beside vector-quantize-pytorch: time and memory, then a plain loop on photographs.

    python -m benchmarks.layer [--rounds 15] [--steps 300] [--seeds 1] [--codes 1024] [--side 32]

The two take turns forward and backward, update included, and forward alone in evaluation; memory is
what the first pass holds beyond the layer and its embeddings, in a process of its own.

Both get the same encoder, decoder, crops and optimizer. Of each the settings of its documentation
for EMA with dead codes replaced, and with k-means at the start. PSNR is of crops of photographs
that were not trained on; codes in use are those that these crops choose.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

import mqvae
from benchmarks.resident import forget, most_resident, resident
from benchmarks.timing import alternate
from mqvae.data import load

DIM = 32
SHAPES = ((4096, 1024, 64), (4096, 8192, 32), (4096, 16384, 8))  # embeddings, codes, dimensions


def halves(width: int = 32) -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(2 * width, DIM, 1),
    )
    decoder = nn.Sequential(
        nn.Conv2d(DIM, 2 * width, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 3, 4, 2, 1),
    )
    return encoder, decoder


class Ours(nn.Module):
    def __init__(self, codes: int, **options: Any) -> None:
        super().__init__()
        self.layer = mqvae.VectorQuantizer(
            codes, DIM, channel_axis=1, replacement=mqvae.ReplaceUnused(20), **options
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.layer(z)
        return out.z_q, out.codes, 0.25 * out.commitment_loss + out.codebook_loss

    def update(self) -> None:
        self.layer.update()


class Theirs(nn.Module):
    def __init__(self, codes: int, **options: Any) -> None:
        super().__init__()
        self.layer = VectorQuantize(
            DIM, codes, accept_image_fmap=True, commitment_weight=0.25, **options
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, codes, loss = self.layer(z)
        return z_q, codes, loss.sum()

    def update(self) -> None:
        """It has done so in the pass."""


KINDS: dict[str, Callable[[int], Ours | Theirs]] = {
    "mqvae, EMA 0.9": lambda k: Ours(k, codebook=mqvae.MovingAverage(0.9)),
    "mqvae, EMA 0.9, k-means": lambda k: Ours(
        k, codebook=mqvae.MovingAverage(0.9), initialize="kmeans"
    ),
    "mqvae, learned, k-means": lambda k: Ours(k, initialize="kmeans"),
    "theirs, EMA 0.8, dead code 2": lambda k: Theirs(k, threshold_ema_dead_code=2),
    "theirs, EMA 0.8, dead code 2, k-means": lambda k: Theirs(
        k, threshold_ema_dead_code=2, kmeans_init=True
    ),
}


def layer_pass(whose: str, kind: str, mode: str, shape: tuple[int, int, int]) -> Callable[[], Any]:
    """A pass of a layer: in training backward and the update too.

    Args:
        whose: "mqvae" or "theirs".
        kind: "EMA" or "learned".
        mode: "training" or "evaluation".
        shape: Embeddings, codes, dimensions.
    """
    count, codes, dim = shape
    torch.manual_seed(0)
    ours = whose == "mqvae"
    if ours:
        average = mqvae.MovingAverage(0.8) if kind == "EMA" else None
        layer: Any = mqvae.VectorQuantizer(codes, dim, codebook=average)
    else:
        learned = {} if kind == "EMA" else {"learnable_codebook": True, "ema_update": False}
        layer = VectorQuantize(dim, codes, decay=0.8, rotation_trick=False, **learned)
    layer.train(mode == "training")
    z = torch.randn(1, count, dim, requires_grad=mode == "training")

    def step() -> None:
        out = layer(z)
        z_q = out.z_q if ours else out[0]
        if mode == "training":
            loss = out.commitment_loss + out.codebook_loss if ours else out[2].sum()
            (z_q.square().mean() + loss).backward()
            layer.zero_grad()
            z.grad = None
            if ours:
                layer.update()

    return step if mode == "training" else torch.no_grad()(step)


def held(whose: str, kind: str, mode: str, shape: tuple[int, int, int]) -> float:
    """MiB that the first pass holds beyond the layer and its embeddings."""
    torch.set_num_threads(1)
    layer_pass(whose, kind, mode, (16, 8, shape[2]))()  # what any pass loads
    step = layer_pass(whose, kind, mode, shape)
    before = resident()
    forget()
    step()
    return (most_resident() - before) / 2**20


def speed(rounds: int) -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        for shape in SHAPES:
            for kind in ("EMA", "learned"):
                for mode in ("training", "evaluation"):
                    taken = alternate(
                        {w: layer_pass(w, kind, mode, shape) for w in ("mqvae", "theirs")},
                        rounds=rounds,
                    )
                    ours, theirs = taken["mqvae"], taken["theirs"]
                    memory = [
                        processes.apply(held, (w, kind, mode, shape)) for w in ("mqvae", "theirs")
                    ]
                    print(
                        f"{' × '.join(map(str, shape)):18} {kind:8} {mode:11} "
                        f"{1e3 * ours.seconds:7.1f} ms, theirs {1e3 * theirs.seconds:7.1f} ms: "
                        f"{theirs.ratio:.2f} × ({theirs.low:.2f} to {theirs.high:.2f}); "
                        f"{memory[0]:.0f} MiB, theirs {memory[1]:.0f}",
                        flush=True,
                    )


def crops(images: Tensor, number: int, side: int, generator: torch.Generator) -> Tensor:
    """Random crops, (number, 3, side, side) in [0, 1]."""
    which = torch.randint(len(images), (number,), generator=generator)
    room = images.shape[-1] - side + 1
    at = torch.randint(room, (number, 2), generator=generator).tolist()
    cut = [images[i, :, y : y + side, x : x + side] for i, (y, x) in zip(which, at, strict=True)]
    return torch.stack(cut).float() / 255


def trained(
    kind: str, seed: int, options: argparse.Namespace, train: Tensor, test: Tensor
) -> tuple[float, int]:
    torch.manual_seed(seed)
    encoder, decoder = halves()
    quantizer = KINDS[kind](options.codes)
    parts = nn.ModuleList([encoder, quantizer, decoder])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(options.steps):
        x = crops(train, 32, options.side, generator)
        z_q, _, loss = quantizer(encoder(x))
        loss = loss + (decoder(z_q) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantizer.update()
    parts.eval()
    with torch.no_grad():
        x = crops(test, 512, options.side, torch.Generator().manual_seed(9))
        z_q, codes, _ = quantizer(encoder(x))
        error = (decoder(z_q) - x).square().mean()
    return -10 * error.log10().item(), len(codes.unique())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        *(("rounds", 15), ("steps", 300), ("seeds", 1), ("codes", 1024), ("side", 32)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.rounds:
        speed(options.rounds)
    if not options.seeds:
        return
    splits = [load("photos", split, side=64) for split in ("train", "test")]
    train, test = (images.take(torch.arange(len(images)))[0] for images in splits)
    print(f"{len(train)} and {len(test)} photographs, {options.codes} codes of {DIM}")
    for kind in KINDS:
        for seed in range(options.seeds):
            psnr, used = trained(kind, seed, options, train, test)
            share = f"{used / options.codes:.1%} of codes in use"
            print(f"{kind:40} seed {seed}  {psnr:.2f} dB  {share}", flush=True)


if __name__ == "__main__":
    main()

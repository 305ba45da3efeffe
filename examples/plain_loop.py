"""A loop of one's own on plain PyTorch: MQ-VAE on 8×8 digits; `--joint` trains VQ-VAE instead."""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW
from torch.utils.data import DataLoader

import mqvae
from mqvae.data import load


def build() -> mqvae.VQNetwork:
    """Any encoder and decoder, with a quantizer between them."""
    down, up = nn.Conv2d(1, 64, 4, 2, 1), nn.ConvTranspose2d(64, 1, 4, 2, 1)
    encoder = nn.Sequential(down, nn.ReLU(), nn.Conv2d(64, 16, 3, 1, 1))
    decoder = nn.Sequential(nn.Conv2d(16, 64, 3, 1, 1), nn.ReLU(), up)
    return mqvae.VQNetwork(encoder, mqvae.VectorQuantizer(num_codes=64, dim=16), decoder)


def endless(batches: DataLoader) -> Iterator[Tensor]:
    while True:
        yield from batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--joint", action="store_true", help="VQ-VAE: both levels in one step")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a network is not worth two
    images = {split: load("digits", split).pixels / 255 for split in ("train", "test")}

    network = build()
    network.initialize_codebook(images["train"][:500])
    rule = mqvae.Joint if options.joint else mqvae.Meta
    update = rule(
        network,
        mse_loss,
        lower=AdamW(network.network_parameters(), lr=1e-3),
        upper=AdamW(network.codebook_parameters(), lr=1e-2),
    )
    batches = endless(DataLoader(images["train"], 64, shuffle=True, drop_last=True))
    for number, x in zip(range(1, options.steps + 1), batches, strict=False):
        step = update.step(x, x)
        if number % max(1, options.steps // 10) == 0:
            print(f"{number}: {step}")

    network.eval()
    with torch.no_grad():
        found = network(images["test"])
    print(f"test: MSE {mse_loss(found.output, images['test']):.4f}, {found.quantized}")


if __name__ == "__main__":
    main()

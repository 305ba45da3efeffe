"""Codebooks that a network makes: the one that ships, one of one's own, and a plain table beside.

The upper level then trains the network's parameters; a hypergradient of the codewords goes on to
them by the chain rule, and no rule needs to know.
"""

import argparse

import torch
from plain_loop import build
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import AdamW

import mqvae
from mqvae.data import load


class FromGrid(mqvae.Codebook):
    """C = base + network(grid): codewords of places that are neighbours move alike.

    `base` is what the codebook was initialized to.

    Args:
        width: Hidden units of the network.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width

    def build(self, rows: int, dim: int) -> None:
        places = torch.linspace(-1, 1, rows)[:, None] * torch.arange(1, 5) * torch.pi  # (K, 4)
        self.register_buffer("grid", torch.cat([places.sin(), places.cos()], 1))
        self.register_buffer("base", torch.randn(rows, dim) / dim**0.5)
        self.network = nn.Sequential(
            nn.Linear(8, self.width), nn.Tanh(), nn.Linear(self.width, dim)
        )
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self) -> Tensor:
        return self.base + self.network(self.grid)

    @torch.no_grad()
    def assign(self, codewords: Tensor) -> None:
        self.base.copy_(codewords - self.network(self.grid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a network is not worth two
    images = load("digits", "train").pixels / 255
    for codebook in (mqvae.Table(), mqvae.HyperNetwork(), FromGrid()):
        torch.manual_seed(0)
        network = build()
        network.quantizer = mqvae.VectorQuantizer(num_codes=64, dim=16, codebook=codebook)
        network.initialize_codebook(images[:500])
        update = mqvae.Meta(
            network,
            mse_loss,
            lower=AdamW(network.network_parameters(), lr=1e-3),
            upper=AdamW(network.codebook_parameters(), lr=3e-3),
        )
        for _ in range(options.steps):
            x = images[torch.randint(len(images), (64,))]
            step = update.step(x, x)
        numbers = sum(p.numel() for p in network.codebook_parameters())
        print(f"{codebook}, {numbers:,} parameters: {step}")


if __name__ == "__main__":
    main()

"""What cached sampling of a PixelCNN saves over a whole pass for every code.

    python -m benchmarks.sampling [--rounds 5] [--side 7 --count 64 --num-codes 1024]

Both draw the same codes; they take turns, and the ratio is that of their medians.
"""

import argparse

import torch
from torch import Tensor

from benchmarks.timing import alternate
from mqvae import PixelCNN


@torch.no_grad()
def plain(network: PixelCNN, count: int, generator: torch.Generator) -> Tensor:
    """One pass over the whole grid for every code."""
    codes = torch.zeros(count, *network.shape, dtype=torch.int64)
    for i in range(network.rows):
        for j in range(network.columns):
            odds = network(codes)[:, i, j].softmax(-1)
            codes[:, i, j] = torch.multinomial(odds, 1, generator=generator).squeeze(1)
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=7)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--num-codes", type=int, default=1024)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = PixelCNN(
        options.num_codes,
        (options.side, options.side),
        width=options.width,
        layers=options.layers,
    ).eval()
    count = options.count
    cached = network.sample(count, generator=torch.Generator().manual_seed(0))
    same = (cached == plain(network, count, torch.Generator().manual_seed(0))).double().mean()
    zeros = torch.zeros(count, options.side, options.side, dtype=torch.int64)
    timings = alternate(
        {
            "a whole pass per code": lambda: plain(network, count, torch.Generator()),
            "cached": lambda: network.sample(count, generator=torch.Generator()),
            "one whole pass": lambda: network.requires_grad_(False)(zeros),
        },
        rounds=options.rounds,
    )
    print(
        f"{count} grids of {options.side} × {options.side} of {options.num_codes} codes, width "
        f"{options.width}, {options.layers} layers, {torch.get_num_threads()} threads; "
        f"{same:.2%} of the codes agree\n"
    )
    print(f"{'':<24}{'ms':>10}{'ratio':>9}{'quartiles':>18}")
    for name, timing in timings.items():
        print(
            f"{name:<24}{timing.seconds * 1e3:>10.1f}{timing.ratio:>9.4f}"
            f"{timing.low:>10.4f}–{timing.high:.4f}"
        )


if __name__ == "__main__":
    main()

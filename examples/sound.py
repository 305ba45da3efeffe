"""Sound: plucked notes, made here, as spectrograms, and codes for them.

A spectrogram is an image of one channel, time against frequency; what learns images learns it.
"""

import argparse
import math

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import AdamW

import mqvae

RATE, WINDOW, HOP, FRAMES = 4000, 126, 32, 64  # samples a second, of a window, from one to the next
FLOOR = -60.0  # decibels under which all is silence


def notes(number: int) -> Tensor:
    """Half a second each: one of 25 pitches, four overtones that fade, and a little noise."""
    time = torch.arange(HOP * (FRAMES - 1)) / RATE
    pitch = 110 * 2 ** (torch.randint(25, (number, 1)) / 12)
    start = torch.rand(number, 1) * 0.2
    since = (time - start).clamp(min=0)
    waves = sum(
        torch.sin(2 * math.pi * pitch * overtone * since) * torch.exp(-4 * overtone * since)
        for overtone in range(1, 5)
    )
    return waves / 4 + 1e-3 * torch.randn(number, len(time))


def spectrograms(waves: Tensor) -> Tensor:
    """(B, samples) → (B, 1, frequencies, frames): decibels, from the floor to 0 as 0 to 1."""
    window = torch.hann_window(WINDOW)
    found = torch.stft(waves, WINDOW, HOP, window=window, return_complex=True).abs() / window.sum()
    return (20 * found.clamp(min=1e-6).log10() / -FLOOR + 1).clamp(0, 1)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = mqvae.vqvae(1, num_codes=128, dim=16, width=32)
    network.initialize_codebook(spectrograms(notes(16)))
    update = mqvae.Meta(
        network,
        mse_loss,
        lower=AdamW(network.network_parameters(), lr=2e-3),
        upper=AdamW(network.codebook_parameters(), lr=2e-2),
    )
    for number in range(1, options.steps + 1):
        x = spectrograms(notes(16))
        step = update.step(x, x)
        if number % max(1, options.steps // 10) == 0:
            print(f"{number}: {step}")

    network.eval()
    x = spectrograms(notes(64))
    with torch.no_grad():
        found = network(x)
    bits = math.log2(network.quantizer.num_codes) * found.quantized.codes[0].numel()
    seconds = HOP * FRAMES / RATE
    error = -FLOOR * mse_loss(found.output, x).sqrt()
    print(f"new notes: off by {error:.1f} dB at {bits / seconds:,.0f} bits a second")


if __name__ == "__main__":
    main()

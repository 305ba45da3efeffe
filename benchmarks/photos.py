"""Photographs over what tokenizers make of them, spread over the test images: docs/photos-64.png.

mqvae train photos-64 --out runs/mq-gan
mqvae train photos-64 --update Joint --out runs/vq-gan
python -m benchmarks.photos runs/vq-gan runs/mq-gan --out docs/photos-64.png
"""

import argparse
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from mqvae import Tokenizer
from mqvae.data import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a row each")
    parser.add_argument("--out", type=Path, default=Path("photos-64.png"))
    parser.add_argument("--count", type=int, default=12, help="images in a row")
    options = parser.parse_args()

    tokenizers = [Tokenizer.from_run(run) for run in options.runs]
    side = tokenizers[0].settings.data.side
    images = load("photos", "test", side=side)
    chosen = torch.linspace(0, len(images) - 1, options.count).long()
    originals = images.take(chosen)[0].float() / 255
    rows = [originals]
    for tokenizer in tokenizers:
        outputs = tokenizer.decode(tokenizer.encode(originals))
        rows.append(outputs.float().clamp(0, 1))
    save_image(make_grid(torch.cat(rows), nrow=options.count, padding=2), options.out)


if __name__ == "__main__":
    main()

"""Photographs, what a tokenizer of the package makes of them, and its codes; docs/photographs.jpg.

python examples/photographs.py a.jpg b.jpg --out photographs.jpg
"""

import argparse

import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor
from torchvision.utils import make_grid, save_image

import mqvae


def in_colours(codewords: torch.Tensor) -> torch.Tensor:
    """Codewords (B, h, w, D) as colours (B, 3, h, w): near codewords have near colours."""
    flat = codewords.flatten(0, 2)
    flat = flat - flat.mean(0)
    three = flat @ torch.linalg.eigh(flat.T @ flat)[1][:, -3:]  # their principal directions
    low, high = three.quantile(0.02, 0), three.quantile(0.98, 0)
    return ((three - low) / (high - low)).clamp(0, 1).view(*codewords.shape[:3], 3).movedim(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", nargs="+", help="image files; a row each")
    parser.add_argument("--tokenizers", default="photos-f4,photos-f8", metavar="NAME,…")
    parser.add_argument("--size", type=int, default=192, help="pixels a side (default: 192)")
    parser.add_argument("--out", default="photographs.jpg")
    options = parser.parse_args()

    size = options.size
    x = torch.stack([to_tensor(cut(Image.open(p), size)) for p in options.photographs])
    columns = [x]
    for name in options.tokenizers.split(","):
        tokenizer = mqvae.Tokenizer.from_pretrained(name, device="cpu")
        codes = tokenizer.encode(x)  # (B, h, w)
        y = tokenizer.decode(codes).clamp(0, 1)
        colours = in_colours(tokenizer.network.quantizer.decode(codes).detach())
        columns += [y, torch.nn.functional.interpolate(colours, size=size)]
        psnr = (-10 * (y - x).square().flatten(1).mean(1).log10()).mean()
        print(f"{name}: {codes.shape[1]} × {codes.shape[2]} codes an image, PSNR {psnr:.2f} dB")
    rows = torch.stack(columns, 1).flatten(0, 1)
    save_image(make_grid(rows, nrow=len(columns), padding=4, pad_value=1), options.out)


def cut(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, at its own resolution where it is large enough."""
    image = image.convert("RGB")
    if min(image.size) < size:
        image = image.resize((size, size))
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


if __name__ == "__main__":
    main()

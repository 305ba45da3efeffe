"""Bits of compressed codes beside their entropies, and beside JPEG and WebP at equal PSNR.

    python -m benchmarks.compression RUN… [--split test --images 10000 --out FILE.json]

For each run: order-0 entropy of the codes, the entropy of each position, and what the file of
`mqvae compress` takes, all of it. For each run whose
images are in colour, JPEG and WebP (method 6) as well, between the two qualities whose PSNR is next
to the tokenizer's. For them images are tiled into one picture, repeated to multiples of 16 pixels,
so that one header serves all; `without_header` leaves a JPEG's tables out, and WebP has a header of
30 bytes. PSNR is of all pixels of all images together.
"""

import argparse
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mqvae.coding import Compressed
from mqvae.core.usage import CodeCounts
from mqvae.files import read_json
from mqvae.tokenizer import Tokenizer
from mqvae.tokenizer.compression import codewords_of, compressed

BATCH = 100
QUALITIES = {"JPEG": range(1, 96), "WEBP": range(0, 101)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", default="compression.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for run in options.runs:
        found[run] = content = measured(run, options.split, options.images)
        Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n{run}: {content['images']:,} images, {content['codes']:,} codes")
        for name, value in content.items():
            print(
                f"  {name:24} {value:,.4f}" if isinstance(value, float) else f"  {name:24} {value}"
            )


def measured(run: str, split: str, most: int) -> dict[str, Any]:
    """All figures of a run."""
    tokenizer = Tokenizer.from_run(run, device="cpu")
    images = tokenizer.find_images(split)
    pixels = images.take(torch.arange(min(most, len(images))))[0]  # (N, C, H, W) bytes
    codes, decoded = [], []
    for part in pixels.split(BATCH):
        codes.append(tokenizer.encode_batch(part / 255))
        output = tokenizer.task.images(tokenizer.decode(codes[-1]))
        decoded.append((output * 255).round().byte())
    grid, output = torch.cat(codes), torch.cat(decoded)
    quantizer = tokenizer.network.quantizer
    counts = CodeCounts(quantizer.num_codes, quantizer.groups)
    counts.add(grid)
    by_position = CodeCounts(quantizer.num_codes, grid[0].numel())
    by_position.add(grid)
    positions = grid.numel() // quantizer.groups
    places = by_position.groups // quantizer.groups
    file = compressed(tokenizer, grid)
    began = time.process_time()
    content = file.to_bytes(codewords_of(tokenizer))
    seconds = time.process_time() - began
    again = Compressed.from_bytes(content)
    assert np.array_equal(again.runs[0].codes, file.runs[0].codes)
    own = psnr(pixels, output)
    result: dict[str, Any] = {
        "images": len(grid),
        "codes": grid.numel(),
        "num_codes": quantizer.num_codes,
        "psnr": own,
        "nominal": quantizer.groups * math.log2(quantizer.num_codes),
        "entropy": counts.entropy(),
        "position_entropy": by_position.entropy(corrected=True) / places,
        "file": 8 * len(content) / positions,
        "bytes": len(content),
        "bits_per_pixel": 8 * len(content) / file.pixels,
        "codes_per_second": round(grid.numel() / seconds),
    }
    summary = Path(run) / "prior" / "summary.json"
    if summary.is_file():
        prior = read_json(summary)
        result["prior_bits"] = quantizer.groups * prior["bits_per_code"]
        result["prior_steps"] = prior["steps"]
    if pixels.shape[1] == 3:
        for kind in QUALITIES:
            result[kind] = at_equal_psnr(pixels, own, kind)
    return result


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    error = (one.double() - other.double()).square().mean().item()
    return 10 * math.log10(255**2 / error)


def at_equal_psnr(pixels: torch.Tensor, wanted: float, kind: str) -> dict[str, float]:
    """The quality at which a codec is nearest to a PSNR, and what it takes."""
    picture, columns = tiled(pixels)
    count = pixels.shape[0] * pixels.shape[2] * pixels.shape[3]
    low, high = QUALITIES[kind][0], QUALITIES[kind][-1]
    tried: dict[int, dict[str, float]] = {}

    def at(quality: int) -> float:
        if quality not in tried:
            buffer = io.BytesIO()
            further = {"method": 6} if kind == "WEBP" else {"optimize": True}
            picture.save(buffer, kind, quality=quality, **further)
            back = np.asarray(Image.open(buffer).convert("RGB"))
            content = buffer.getvalue()
            scan = len(content) - content.find(b"\xff\xda") if kind == "JPEG" else len(content)
            tried[quality] = {
                "quality": quality,
                "psnr": psnr(pixels, untiled(back, pixels.shape, columns)),
                "bits_per_pixel": 8 * len(content) / count,
                "without_header": 8 * scan / count,
            }
        return tried[quality]["psnr"]

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < wanted else (low, middle)
    at(low), at(high)
    # Between the two qualities around it, in proportion.
    below, above = tried[low], tried[high]
    share = (wanted - below["psnr"]) / (above["psnr"] - below["psnr"])
    between = {
        name: below[name] + share * (above[name] - below[name])
        for name in ("psnr", "bits_per_pixel", "without_header")
    }
    least = tried[low] if low == QUALITIES[kind][0] and below["psnr"] >= wanted else None
    return least or {"quality": low, **between}


def tiled(pixels: torch.Tensor) -> tuple[Image.Image, int]:
    """All images in one picture, each repeated to a multiple of 16 pixels a side."""
    count, _, height, width = pixels.shape
    fill = (0, -width % 16, 0, -height % 16)
    padded = torch.nn.functional.pad(pixels.float(), fill, mode="replicate").byte()
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    sheet = torch.zeros(rows * columns, *padded.shape[1:], dtype=torch.uint8)
    sheet[:count] = padded
    sheet[count:] = padded[-1]
    _, channels, high, wide = sheet.shape
    sheet = sheet.view(rows, columns, channels, high, wide).permute(0, 3, 1, 4, 2)
    return Image.fromarray(sheet.reshape(rows * high, columns * wide, channels).numpy()), columns


def untiled(sheet: np.ndarray, shape: torch.Size, columns: int) -> torch.Tensor:
    """The images of a picture that `tiled` made."""
    count, channels, height, width = shape
    high, wide = height + -height % 16, width + -width % 16
    parts = torch.from_numpy(sheet.copy()).view(-1, high, columns, wide, channels)
    parts = parts.permute(0, 2, 4, 1, 3).reshape(-1, channels, high, wide)
    return parts[:count, :, :height, :width]


if __name__ == "__main__":
    main()

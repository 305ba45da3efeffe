"""What else a run's weights can show: its worst images, and samples of its prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqvae.report.strips import Strip, read_strip

if TYPE_CHECKING:
    from torch import Tensor

    from mqvae.tokenizer import Tokenizer

SEEN = 2**21  # pixels of the images among which the worst are sought
WORST = 5


def worst(tokenizer: Tokenizer) -> dict[str, Strip]:
    """The test images of the largest squared errors, and what became of them."""
    import torch

    from mqvae.runs.images import load_run_split

    try:
        images = load_run_split(tokenizer.run, tokenizer.settings, "test").images
    except (OSError, ValueError):  # they are not here
        return {}
    number = min(len(images), max(SEEN // (images.shape[1] * images.shape[2]), 2 * WORST))
    x = images.take(torch.linspace(0, len(images) - 1, number).long())[0] / 255
    try:
        y = tokenizer.task.images(tokenizer.decode(tokenizer.encode_batch(x)))
    except ValueError:  # of another task
        return {}
    chosen = (y.cpu() - x).square().flatten(1).mean(1).argsort(descending=True)[:WORST]
    of = f"of {number:,} test images"
    return {
        f"The {len(chosen)} worst {of}": _strip(x[chosen]),
        f"What became of the worst {of}": _strip(y[chosen]),
    }


def drawn(tokenizer: Tokenizer) -> dict[str, Strip]:
    """Samples of the run's prior, where it has drawn some."""
    strip = read_strip(tokenizer.run.folder / "prior" / "samples.png")
    return {} if strip is None else {"Samples of the prior": strip}


def _strip(images: Tensor) -> Strip:
    """Images (N, C, S, S) in [0, 1] as tiles."""
    return Strip((255 * images.clamp(0, 1)).round().byte().movedim(1, -1).cpu().numpy())

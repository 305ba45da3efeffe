"""Runs on so few images that networks overfit."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOSSES = {"reconstruction": "mse", "classification": "cross_entropy"}  # by task


@dataclass(frozen=True)
class Few:
    """Some of the training images.

    A run's seed brings all of them into one order. Those held out are the first, those trained on
    the next, and as many as both together, on which rates are chosen, the next again.

    Attributes:
        images: Trained on.
        held_out: For validation; the codebook may be judged on them.
        side: Pixels along a side that they are resized to.
    """

    images: int
    held_out: int
    side: int


def measured(few: Few, task: str, folder: Path, device: Any) -> dict[str, Any]:
    """A finished run on the images that it was trained on, and on those that no part of it saw.

    Args:
        few: Which they are.
        task: "reconstruction" or "classification".
        folder: The run's.
        device: Where it is measured.

    Returns:
        The figure "training_…" with its description, and "validation", the task loss on the unseen.
    """
    from mqvae.data import hold_out
    from mqvae.metrics import evaluate
    from mqvae.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_run(folder, device=device)
    seed, whole = tokenizer.settings.seed, tokenizer.settings.data.load("train")
    key, found, both = LOSSES[task], [], few.held_out + few.images
    for before, count in ((few.held_out, few.images), (both, both)):
        images, _ = hold_out(whole, before, seed=seed, limit=count)
        result = evaluate(tokenizer.network, tokenizer.task, images, device=tokenizer.device)
        found.append(result.metrics[key])
    words = asdict(tokenizer.task.metrics[key])
    words["protocol"] = "the same of the images that encoder and decoder are trained on, as trained"
    return {
        "figures": {f"training_{key}": found[0]},
        "described": {f"training_{key}": {**words, "better": None}},
        "validation": found[1],
    }

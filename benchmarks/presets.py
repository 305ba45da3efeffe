"""Steps of any preset by any rule, on noise: what they cost does not depend on the images."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.costs import first_step
from mqvae.config import Settings, load_preset
from mqvae.data import InMemory
from mqvae.runs.images import Splits
from mqvae.training.images import load_splits

PRESET = "fashion-mnist-demo"
COLOUR = ("celeba-hq", "cifar10", "cifar100", "imagenet", "photos", "svhn")


def _meta(hypergradient: str, look_ahead: str) -> dict[str, Any]:
    return {
        "class_path": "mqvae.Meta",
        "init_args": {
            "hypergradient": {"class_path": f"mqvae.{hypergradient}"},
            "look_ahead": {"class_path": f"mqvae.{look_ahead}"},
        },
    }


RULES: Mapping[str, Mapping[str, Any]] = {
    "Joint": {"class_path": "mqvae.Joint"},
    "Meta(DirectOnly), kept": _meta("DirectOnly", "Kept"),
    "Meta(Amortized), kept": _meta("Amortized", "Kept"),
    "Meta(FiniteDifference), kept": _meta("FiniteDifference", "Kept"),
    "Meta(FiniteDifference), undone": _meta("FiniteDifference", "Undone"),
    "Meta(Exact), kept": _meta("Exact", "Kept"),
}


def settings_of(preset: str, rule: str, device: str) -> Settings:
    """A preset with one of `RULES`, in one process on a device.

    Raises:
        ValueError: if there is no such preset.
    """
    alone = {"accelerator": device, "devices": 1}
    return Settings.of(load_preset(preset, {"update": RULES[rule], "trainer": alone}))


def on_noise(settings: Settings) -> tuple[Splits, Settings]:
    """Noise in the form of a preset's images, one batch of it, and settings that say the form.

    The data set itself is looked at only where a preset leaves the form open.
    """
    data = settings.data
    channels = data.channels or (3 if data.name in COLOUR else None)
    if data.side is None or channels is None:
        data = load_splits(settings)[1].data
        channels = data.channels
    assert data.side is not None and channels is not None
    shape = (data.batch_size, channels, data.side, data.side)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = InMemory("noise", "train", pixels, torch.zeros(len(pixels), dtype=torch.int64), "made")
    return Splits(images, images, images), replace(settings, data=data.seen(images))


def step_on_noise(preset: str, rule: str, device: str) -> Callable[[], None]:
    """A step of a preset by one of `RULES`, to be made as often as wanted."""
    splits, settings = on_noise(settings_of(preset, rule, device))
    return first_step(settings, splits, initialize=False)

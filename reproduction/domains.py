"""Domains of grey images of 28 × 28: classes, transforms of them, other data sets.

`python -m reproduction.domains FOLDER` writes the classes that the frozen networks are trained on.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from mqvae.data import Images, load

HELD_OUT = {"trousers": 1, "sandals": 5, "bags": 8}  # classes of Fashion-MNIST
SEEN = tuple(c for c in range(10) if c not in HELD_OUT.values())


def _edges(x: Tensor) -> Tensor:
    across = (x[..., :, 1:] - x[..., :, :-1]).abs()
    down = (x[..., 1:, :] - x[..., :-1, :]).abs()
    return (F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))).clamp(0, 1)


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x[..., 7:21, 7:21], x.shape[-2:], mode="bilinear")


def _four(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2).repeat(1, 1, 2, 2)


def _noisy(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "inverted": lambda x: 1 - x,
    "turned": lambda x: x.rot90(1, (-2, -1)),
    "blurred": lambda x: gaussian_blur(x, [5, 5], [1.5, 1.5]),
    "pale": lambda x: 0.3 + 0.4 * x,
    "dark": lambda x: 0.5 * x.square(),
    "enlarged": _enlarged,
    "edges": _edges,
    "four in one": _four,
    "noisy": _noisy,
}


def pixels(images: Images, chosen: Tensor) -> Tensor:
    """Images in [0, 1], (N, C, H, W), at some places."""
    return images.take(chosen)[0].float() / 255


def _some(images: Images, count: int, generator: torch.Generator, label: int | None) -> Tensor:
    of = torch.arange(len(images)) if label is None else (images.labels == label).nonzero()[:, 0]
    return pixels(images, of[torch.randperm(len(of), generator=generator)[:count]])


def training_domains(count: int, seed: int) -> dict[str, Tensor]:
    """Each seen class under each transform, `count` images each."""
    generator = torch.Generator().manual_seed(seed)
    fashion = load("fashion-mnist", "train")
    found = {}
    for label in SEEN:
        images = _some(fashion, count, generator, label)
        for name, transform in TRANSFORMS.items():
            found[f"{label}, {name}"] = transform(images)
    return found


def test_domains(adapt: int, judge: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Domains that no training has seen: images to adapt to, and images to be judged on.

    Those to be judged on are of the test split; of photographs, other photographs.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    named = [
        *((name, "fashion-mnist", label) for name, label in HELD_OUT.items()),
        ("digits", "digits", None),
        ("photographs", "photos", None),
    ]
    for name, data, label in named:
        train = load(data, "train", side=28, channels=1, memory=False)
        test = load(data, "test", side=28, channels=1, memory=False)
        found[name] = (
            _some(train, adapt, generator, label),
            _some(test, judge, generator, label),
        )
    return found


def write_seen(folder: Path, train: int = 4000, test: int = 200) -> None:
    """Write the first images of each seen class as a folder that `mqvae train` reads."""
    for split, count in (("train", train), ("test", test)):
        images = load("fashion-mnist", split)
        for label in SEEN:
            there = folder / split / str(label)
            there.mkdir(parents=True, exist_ok=True)
            rows = (images.labels == label).nonzero()[:count, 0]
            for i, image in enumerate(images.take(rows)[0]):
                Image.fromarray(image[0].numpy()).save(there / f"{i:05}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_seen(parser.parse_args().folder)

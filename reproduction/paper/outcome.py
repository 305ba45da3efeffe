"""What a run leaves: metrics that take large networks, its curve, its strips of images."""

import base64
import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqvae.files import read_json, write_json, write_whole

if TYPE_CHECKING:
    import torch

    from mqvae.data import Images
    from mqvae.metrics.image_metric import ImageMetric

SOME = 256  # images by which a data set is known again
NORMS = ("direct_norm", "indirect_norm", "cosine")


def further_metrics(
    folder: Path, count: int, classifier: Path | None, device: "torch.device", originals: Path
) -> tuple[dict[str, float], dict[str, Any], dict[str, str]]:
    """Metrics that take large networks, what they are, and why some cannot be had.

    What was measured before is kept in the run's folder, and not measured again.

    Args:
        folder: The run's.
        count: How many test images they are measured on.
        classifier: Folder of the run that the class score is taken with; None without one.
        device: Where they are measured.
        originals: Folder where the features of original images are kept.
    """
    from mqvae.data import first
    from mqvae.metrics import CODES, evaluate
    from mqvae.metrics.registry import further_metrics as asked_for
    from mqvae.tokenizer import Tokenizer

    kept = folder / "further.json"
    known = read_json(kept) if kept.is_file() else {}
    tokenizer = Tokenizer.from_run(folder, device=device)
    options = tokenizer.settings.data
    images = first(options.load("test"), count)
    network = None
    if classifier is not None and (classifier / "summary.json").is_file():
        from mqvae.tokenizer.classifier import classifier_of

        network = classifier_of(classifier, options, device=device)
    left_out: list[str] = []
    further = asked_for(
        ["all"],
        [*tokenizer.task.metrics, *CODES, *known],
        tokenizer.task,
        images,
        device=device,
        classifier=network,
        left_out=left_out.append,
    )
    if further:
        with known_originals(further, images, originals):
            result = evaluate(
                tokenizer.network, tokenizer.task, images, device=device, further=further
            )
        for name in further:
            about = asdict(result.described[name])
            known[name] = {"value": result.metrics[name], "described": about}
        write_json(kept, known, indent=1)
    return (
        {name: each["value"] for name, each in known.items()},
        {name: each["described"] for name, each in known.items()},
        # Where it was looked for is of no interest anywhere else.
        dict(
            sentence.partition(" Looked for ")[0].split(" is left out: ", 1)
            for sentence in left_out
        ),
    )


def distance_of(folder: Path, count: int, device: "torch.device", originals: Path) -> float:
    """The distance of a run's last checkpoint: FID where its weights are here, else by VGG16.

    Args:
        folder: The run's.
        count: How many test images it is measured on.
        device: Where.
        originals: Folder where the features of original images are kept.
    """
    from mqvae.data import first
    from mqvae.metrics import evaluate
    from mqvae.metrics.registry import further_metrics as asked_for
    from mqvae.prior.distance import usual_distance
    from mqvae.tokenizer import Tokenizer

    tokenizer, name = Tokenizer.from_run(folder, device=device), usual_distance()
    images = first(tokenizer.settings.data.load("test"), count)
    asked = asked_for([name], [], tokenizer.task, images, device=device)
    with known_originals(asked, images, originals):
        result = evaluate(tokenizer.network, tokenizer.task, images, device=device, further=asked)
    return result.metrics[name]


@contextmanager
def known_originals(
    further: "Mapping[str, ImageMetric]", images: "Images", folder: Path
) -> Iterator[None]:
    """Inside, the features of images that were measured before are not measured again.

    Args:
        further: Metrics, before they are measured.
        images: What they are measured on.
        folder: Where the moments of the images' features are kept.
    """
    from safetensors.torch import load, save

    from mqvae.metrics.frechet import Frechet

    some, _ = images.take(range(0, len(images), -(-len(images) // SOME)))
    files: dict[Path, Frechet] = {}
    for name, metric in further.items():
        if isinstance(metric, Frechet):
            # The protocol says which weights, and how many images.
            told = hashlib.sha256(metric.protocol.encode() + some.numpy().tobytes())
            file = folder / f"originals-{name}-{told.hexdigest()[:6]}.safetensors"
            if file.is_file():
                metric.know(load(file.read_bytes())["sums"])
            else:
                files[file] = metric
    yield
    for file, metric in files.items():
        write_whole(file, save({"sums": metric.targets.sums}))


def strips_of(folder: Path, summary: Mapping[str, Any], *, originals: bool) -> dict[str, str]:
    """Its strips of images as PNG, in base64; grey ones as such, which takes half the bytes."""
    from PIL import Image

    found = {}
    for picture in summary["pictures"]:
        if picture["kind"] != "strip" or (picture["reference"] and not originals):
            continue
        strip = Image.open(folder / picture["file"])
        grey = all(low == high == 0 for low, high in _apart(strip))
        file = io.BytesIO()
        (strip.convert("L") if grey else strip).save(file, "PNG", optimize=True)
        name = "original" if picture["reference"] else "output"
        found[name] = base64.b64encode(file.getvalue()).decode()
    return found


def _apart(strip: Any) -> list[Any]:
    """How far the second and the third channel are from the first, at least and at most."""
    from PIL import ImageChops

    red, *others = strip.convert("RGB").split()
    return [ImageChops.difference(red, other).getextrema() for other in others]


def curve_of(folder: Path, *, norms: bool = False) -> dict[str, list[float | None]]:
    """The run's metrics.csv, what a plot needs of it."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["step", "task", "validation", "perplexity", *(NORMS if norms else ())]
    return {
        column: [float(f"{float(row[column]):.4g}") if row[column] else None for row in rows]
        for column in columns
        if any(row[column] for row in rows)
    }

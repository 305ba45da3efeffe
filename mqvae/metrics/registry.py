"""All metrics, a row each, and those that are asked for made."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from mqvae.data import Images
from mqvae.errors import MqvaeError, did_you_mean
from mqvae.metrics.bits import BITS, PRIOR
from mqvae.metrics.evaluation import CODES
from mqvae.metrics.image_metric import ImageMetric, Row
from mqvae.metrics.score import Classifier
from mqvae.metrics.sharing import SHARED
from mqvae.optional import ExtraMissing
from mqvae.tasks import Adversarial, Classification, Metric, Task, rows_of
from mqvae.weights import WeightsNotFound

FURTHER: Mapping[str, Row] = {key: Row(**row) for key, row in rows_of("further").items()}
"""Metrics of any task that gives images, measured on request."""
FRECHET = tuple(name for name, row in FURTHER.items() if ".frechet." in row.path)
"""Names of the Fréchet distances, which a prior's samples are measured by as well."""

METRICS: Mapping[str, Metric] = {
    **Adversarial.metrics,
    **Classification.metrics,
    **CODES,
    **BITS,
    **SHARED,
    **PRIOR,
    **FURTHER,
}
"""Every metric of ours: what its task measures, what its codes say, and the further ones."""

ALL = "all"


def further_metrics(
    names: Sequence[str],
    own: Sequence[str],
    task: Task,
    images: Images,
    *,
    device: torch.device | str = "cpu",
    classifier: Classifier | None = None,
    left_out: Callable[[str], object] = print,
) -> dict[str, ImageMetric]:
    """The metrics that are asked for beside those that are always measured.

    Args:
        names: Of metrics, or paths of classes as in "my_module.MyMetric"; "all" takes every one of
            ours that can be had here.
        own: The names of those that are always measured.
        task: What the network was trained for.
        images: What is measured on.
        device: Where it is measured.
        classifier: For the metrics that need classes.
        left_out: Told, in a sentence, what "all" could not have.

    Raises:
        ValueError: if there is no such metric, or it cannot be had of these images.
        ExtraMissing: if it needs a package that is not installed.
        WeightsNotFound: if it needs weights that are not on this machine.
    """
    gives_images = type(task).images is not Task.images
    known = [*own, *(FURTHER if gives_images else ())]
    for name in names:
        if name not in (*known, ALL) and not ("." in name and gives_images):
            what = "" if gives_images else f", whose task, {type(task).__name__}, gives no images"
            raise MqvaeError(
                f"there is no metric '{name}' of this run{what}.{did_you_mean(name, known)} "
                f"Metrics: {', '.join(known)}, {ALL}, or a class as in my_module.MyMetric."
            )
    wanted = [*(known if ALL in names else ()), *(n for n in names if n != ALL)]
    found: dict[str, ImageMetric] = {}
    for name in dict.fromkeys(wanted):
        if name in own:
            continue
        try:
            key, make, row = maker_of(name)
            given = {"classifier": classifier} if row.needs == "classes" else {}
            found[key] = make(images, device, **given)
            found[key].row = row
        except (ValueError, ExtraMissing, WeightsNotFound) as error:
            if name in names:
                raise
            left_out(f"{name} is left out: {error}")
    return found


def maker_of(name: str) -> tuple[str, Callable[..., Any], Row]:
    """Key, class and row of a metric.

    Args:
        name: Of the metric, or the path of its class, whose module is imported.

    Raises:
        ValueError: if there is none.
    """
    row = FURTHER.get(name)
    module, _, title = (row.path if row else name).rpartition(".")
    try:
        kind = getattr(import_module(module), title)
    except (ImportError, AttributeError) as error:
        raise MqvaeError(f"there is no metric '{name}': {error}.") from error
    if not (isinstance(kind, type) and issubclass(kind, ImageMetric)):
        raise MqvaeError(
            f"{name} is no metric: it must derive from mqvae.metrics.image_metric.ImageMetric."
        )
    return (name, kind, row) if row else (title, kind, getattr(kind, "row", Row(title, None)))

"""Which further figures there are, by name."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from mqvae.data import Images
from mqvae.errors import MqvaeError
from mqvae.metrics.frechet import Fid, FrechetVgg16
from mqvae.metrics.image_figure import ImageFigure
from mqvae.metrics.inception import InceptionScore
from mqvae.metrics.score import ClassScore
from mqvae.metrics.similarity import Lpips, Ssim
from mqvae.optional import ExtraMissing
from mqvae.spelling import nearest
from mqvae.tasks import Task
from mqvae.weights import WeightsNotFound

Maker = Callable[[Images, torch.device | str], ImageFigure]

IMAGE_FIGURES: Mapping[str, Maker] = {
    "ssim": Ssim,
    "lpips": Lpips,
    "fid": Fid,
    "inception_score": InceptionScore,
    "frechet_vgg16": FrechetVgg16,
    "class_score": ClassScore,
}
"""Figures of any task that gives images. The class score is there for those who give `makers` one
with a classifier; by itself it says what it lacks."""

ALL = "all"


def further_figures(
    names: Sequence[str],
    own: Sequence[str],
    task: Task,
    images: Images,
    *,
    device: torch.device | str = "cpu",
    makers: Mapping[str, Maker] = MappingProxyType({}),
    left_out: Callable[[str], object] = print,
) -> dict[str, ImageFigure]:
    """The figures that are asked for beside those that are always measured.

    Args:
        names: Of figures; "all" takes every one that can be had here.
        own: The names of those that are always measured.
        task: What the network was trained for.
        images: What is measured on.
        device: Where it is measured.
        makers: Of figures, in place of those in `IMAGE_FIGURES`.
        left_out: Told, in a sentence, what "all" could not have.

    Raises:
        ValueError: if there is no such figure, or it cannot be had of these images.
        ExtraMissing: if it needs a package that is not installed.
        WeightsNotFound: if it needs weights that are not on this machine.
    """
    makes_images = type(task).images is not Task.images
    makers = {**IMAGE_FIGURES, **makers}
    known = [*own, *(makers if makes_images else ())]
    for name in names:
        if name not in (*known, ALL):
            what = "" if makes_images else f", whose task, {type(task).__name__}, gives no images"
            raise MqvaeError(
                f"there is no figure '{name}' of this run{what}.{nearest(name, known)} Figures: "
                f"{', '.join(known)}, {ALL}."
            )
    wanted = known if ALL in names else names
    figures: dict[str, ImageFigure] = {}
    for name in wanted:
        if name in own:
            continue
        try:
            figures[name] = makers[name](images, device)
        except (ValueError, ExtraMissing, WeightsNotFound) as error:
            if name in names:
                raise
            left_out(f"{name} is left out: {error}")
    return figures

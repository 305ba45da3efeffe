"""Settings, tried before anything is trained."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace

from mqvae.config import Settings
from mqvae.training.assembly import assemble
from mqvae.training.images import load_splits
from mqvae.training.loggers import chosen
from mqvae.training.processes import Processes
from mqvae.training.start import start_from


def tried(settings: Iterable[Settings]) -> Iterator[Settings]:
    """Settings that `begin` takes, one after another: the parts are put together, nothing written.

    Args:
        settings: Of several runs; of those in succession with the same images they are read once.

    Raises:
        ValueError: if parts do not fit each other, the images or this machine.
        ExtraMissing: if a logger that is asked for is not installed.
    """
    of, splits, data = None, None, None
    for each in settings:
        chosen(each.trainer)
        processes = Processes(each.trainer)
        images = (each.data, each.seed, each.trainer.fast_dev_run)
        if splits is None or data is None or images != of:
            splits, resolved = load_splits(each)
            of, data = images, resolved.data
        parts, _ = assemble(replace(each, data=data), splits, processes)
        with closing(parts):
            if each.start is not None:
                start_from(each.start, parts.network)
        yield each

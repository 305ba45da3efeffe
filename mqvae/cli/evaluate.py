"""`mqvae evaluate`."""

import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mqvae.cli.own_modules import import_own
from mqvae.cli.parser import (
    add_accept,
    add_machine,
    add_refinement,
    add_run,
    parser_of,
    processes_of,
    refinement_of,
    with_prior,
)
from mqvae.cli.terminal import print_metrics, quiet
from mqvae.errors import MqvaeError

if TYPE_CHECKING:
    from mqvae.data import Identity, Images
    from mqvae.metrics.bits import Prior
    from mqvae.tokenizer import Tokenizer


def evaluate(arguments: list[str]) -> int:
    parser = parser_of(
        "evaluate",
        "Measure a run; writes evaluations/SPLIT-CHECKPOINT.json, with --refine "
        "SPLIT-CHECKPOINT-refined.json.",
    )
    add_run(parser)
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        help="test, validation (the images held out in training), or train, without these "
        "(default: test; with --data FOLDER all its images)",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER|NAME",
        help="measure on other images than the run's: a folder, shards, or a dataset by its name; "
        "resized and cropped as the run's",
    )
    parser.add_argument(
        "--own-size",
        action="store_true",
        help="with --data: neither resize nor crop; sides are filled up as `mqvae encode` does",
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="where the images are now, if not where config.yaml says (or those of --data)",
    )
    parser.add_argument(
        "--checkpoint", default="last", choices=("last", "best"), help="(default: last)"
    )
    add_refinement(parser)
    add_accept(parser)
    add_machine(parser, "the images")
    parser.add_argument(
        "--metrics",
        default="",
        metavar="NAME,…",
        help="further metrics by name, such as ssim,lpips,fid, all that can be had, or of your own "
        "as my_module.MyMetric; the task's are always measured, and those that the file has of the "
        "same weights and images stay",
    )
    parser.add_argument(
        "--classifier",
        metavar="RUN",
        help="what class_score is taken with: a run of `mqvae train classifier` on the same images",
    )
    options = parser.parse_args(arguments)
    refine = refinement_of(options)
    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    own = [name.rpartition(".")[0] for name in names if "." in name]
    for module in own:
        import_own(module, f"--metrics {module}")
    if options.classifier is not None and not (own or {"class_score", "all"} & set(names)):
        raise MqvaeError(
            "--classifier is what class_score is taken with: add --metrics class_score, or leave "
            "it out."
        )
    from functools import partial

    from mqvae.core.distributed import alone
    from mqvae.files import read_json
    from mqvae.metrics import CODES
    from mqvae.metrics import evaluate as measured
    from mqvae.metrics.bits import BITS
    from mqvae.metrics.registry import further_metrics
    from mqvae.tokenizer import Tokenizer
    from mqvae.tokenizer.classifier import classifier_of
    from mqvae.training import device_name, not_finite, write_evaluation

    if options.own_size and options.data is None:
        raise MqvaeError("--own-size is of other images: add --data FOLDER.")
    quiet()
    processes = processes_of(options)
    tokenizer = Tokenizer.from_run(
        options.run, checkpoint=options.checkpoint, device=processes.device
    )
    refine = with_prior(refine, options, tokenizer)
    measured_on = _images(options, tokenizer)
    images = measured_on.images
    classifier = None
    if options.classifier is not None:
        classifier = classifier_of(
            options.classifier, tokenizer.settings.data, device=processes.device
        )
    further = further_metrics(
        names,
        [*tokenizer.task.metrics, *CODES, *BITS],
        tokenizer.task,
        images,
        device=processes.device,
        classifier=classifier,
        left_out=_remark if processes.first else str,
    )
    result = measured(
        tokenizer.network,
        tokenizer.task,
        images,
        device=processes.device,
        together=True,
        further=further,
        fill=tokenizer.filled if options.own_size else alone,
        encode=None if refine is None else partial(tokenizer.encode_batch, refine=refine),
        prior=_prior(tokenizer, labels=not measured_on.data, speaks=processes.first),
    )
    if not processes.first:
        return 0
    path = write_evaluation(
        tokenizer.run,
        result,
        measured_on.identity,
        images.source,
        changes=measured_on.changes,
        data=measured_on.data,
        checkpoint=options.checkpoint,
        step=tokenizer.step,
        weights=tokenizer.model,
        device=device_name(processes.device, processes.count),
        refined="" if refine is None else str(refine),
    )
    for sentence in not_finite(result):
        _remark(f"warning: {sentence}")
    content = read_json(path)
    protocol = result.protocol
    split = "" if protocol["split"] == "files" else f"{protocol['split']} "
    print(
        f"{protocol['images']:,} {split}images of {protocol['dataset']}, checkpoint "
        f"{options.checkpoint} (step {tokenizer.step:,})"
        f"{'' if refine is None else f', codes {refine}'}"
    )
    print_metrics(content, content["figures"])
    print(f"written: {path}")
    return 0


@dataclass(frozen=True)
class _Images:
    """The images that are measured on.

    Attributes:
        images: The images.
        identity: Which they are.
        changes: How they differ from those of the run, where that was accepted.
        data: What they are called in files, if they are not the run's; empty if they are.
    """

    images: "Images"
    identity: "Identity"
    changes: Mapping[str, str] = field(default_factory=dict)
    data: str = ""


def _images(options: Namespace, tokenizer: "Tokenizer") -> _Images:
    """The images that the options ask for."""
    from mqvae.data import identity_of
    from mqvae.runs.images import load_run_split
    from mqvae.runs.known import Known
    from mqvae.tasks import Task
    from mqvae.training.images import other_images

    settings = tokenizer.settings
    if options.data is None:
        if options.root is not None:
            settings = replace(settings, data=settings.data.moved(options.root))
        found = load_run_split(
            tokenizer.run,
            settings,
            options.split or "test",
            accept_changed_data=options.accept_changed_data,
        )
        if not len(found.images):
            raise MqvaeError(
                f"the run has no {options.split} images (data.validation 0): take another --split."
            )
        return _Images(found.images, found.identity, found.changes)
    has_labels = type(tokenizer.task).images is Task.images and not settings.data.are_vectors
    if options.split is None and has_labels:
        raise MqvaeError(
            f"{type(tokenizer.task).__name__} is measured with labels: add --split test or train, "
            "for a dataset or a folder with class folders."
        )
    images = other_images(
        settings.data, options.data, options.split, root=options.root, own_size=options.own_size
    )
    classes = settings.data.classes or 1
    if has_labels and int(images.labels.max()) >= classes:
        raise MqvaeError(
            f"{options.data} has labels up to {int(images.labels.max())}, the run knows {classes} "
            "classes: measure it on images of these."
        )
    identity = identity_of(images)
    known = Known.of_run(tokenizer.run)
    if known and not options.own_size and known.splits.get(images.split) == identity:
        return _Images(images, identity)  # the run's own, wherever they are
    name = re.sub(r"[^\w.]+", "_", Path(options.data).name).strip("._") or "data"
    parts = [name, options.split, "own_size" if options.own_size else None]
    return _Images(images, identity, data="-".join(filter(None, parts)))


def _prior(tokenizer: "Tokenizer", *, labels: bool, speaks: bool) -> "Prior | None":
    """The run's prior, if it has one; one of other weights is named and left out."""
    from mqvae.prior.sampling import measured_under

    try:
        return measured_under(tokenizer, labels=labels)
    except MqvaeError as error:
        if speaks:
            _remark(f"no bits under the prior: {error}")
        return None


def _remark(text: str) -> None:
    print(f"mqvae: {text}", file=sys.stderr)

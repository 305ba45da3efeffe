"""`mqvae evaluate`."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mqvae.cli.own_modules import import_own
from mqvae.cli.parser import (
    Accelerator,
    AcceptChanged,
    BitsOf,
    BitsWeight,
    Checkpoint,
    Refine,
    RunName,
    processes_of,
    refinement_of,
    with_prior,
)
from mqvae.cli.terminal import print_metrics, quiet
from mqvae.errors import MqvaeError

if TYPE_CHECKING:
    from mqvae.metrics.bits import Prior
    from mqvae.runs.images import Found
    from mqvae.tokenizer import Tokenizer


def evaluate(
    run: RunName,
    *,
    split: Literal["test", "validation", "train"] | None = None,
    data: Annotated[str | None, "FOLDER|NAME"] = None,
    own_size: bool = False,
    root: Annotated[str | None, "FOLDER"] = None,
    checkpoint: Checkpoint = "last",
    refine: Refine = None,
    bits_weight: BitsWeight = None,
    bits_of: BitsOf = None,
    accept_changed_data: AcceptChanged = False,
    accelerator: Accelerator = "auto",
    devices: int = 1,
    metrics: Annotated[str, "NAME,…"] = "",
    classifier: Annotated[str | None, "RUN"] = None,
) -> int:
    """Measure a run.

    Writes evaluations/SPLIT-CHECKPOINT.json, with --refine SPLIT-CHECKPOINT-refined.json.

    Args:
        split: Test, validation (the images held out in training), or train, without these
            (default: test; with --data FOLDER all its images).
        data: Measure on other images than the run's: a folder, shards, or a dataset by its name;
            resized and cropped as the run's.
        own_size: With --data: neither resize nor crop; sides are filled up as `mqvae encode` does.
        root: Where the images are now, if not where config.yaml says (or those of --data).
        devices: Processes that share the images.
        metrics: Further metrics by name, such as ssim,lpips,fid, all that can be had, or of your
            own as my_module.MyMetric; the task's are always measured, and those that the file has
            of the same weights and images stay.
        classifier: What class_score is taken with: a run of `mqvae train classifier` on the same
            images.
    """
    how = refinement_of(refine, bits_weight, bits_of)
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    own = [name.rpartition(".")[0] for name in names if "." in name]
    for module in own:
        import_own(module, f"--metrics {module}")
    if classifier is not None and not (own or {"class_score", "all"} & set(names)):
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

    if own_size and data is None:
        raise MqvaeError("--own-size is of other images: add --data FOLDER.")
    quiet()
    processes = processes_of(accelerator, devices)
    tokenizer = Tokenizer.from_run(run, checkpoint=checkpoint, device=processes.device)
    how = with_prior(how, bits_of, tokenizer)
    if data is None:
        measured_on = _own(tokenizer, split or "test", root, accept=accept_changed_data)
    else:
        measured_on = _others(tokenizer, data, split, root, own_size=own_size)
    images = measured_on.images
    judge = None
    if classifier is not None:
        judge = classifier_of(classifier, tokenizer.settings.data, device=processes.device)
    further = further_metrics(
        names,
        [*tokenizer.task.metrics, *CODES, *BITS],
        tokenizer.task,
        images,
        device=processes.device,
        classifier=judge,
        left_out=_remark if processes.first else str,
    )
    result = measured(
        tokenizer.network,
        tokenizer.task,
        images,
        device=processes.device,
        together=True,
        further=further,
        fill=tokenizer.filled if own_size else alone,
        encode=None if how is None else partial(tokenizer.encode_batch, refine=how),
        prior=_prior(tokenizer, labels=not measured_on.data, speaks=processes.first),
    )
    if not processes.first:
        return 0
    path = write_evaluation(
        tokenizer.run,
        result,
        measured_on,
        checkpoint=checkpoint,
        step=tokenizer.step,
        weights=tokenizer.model,
        device=device_name(processes.device, processes.count),
        refined="" if how is None else str(how),
    )
    for sentence in not_finite(result):
        _remark(f"warning: {sentence}")
    content = read_json(path)
    protocol = result.protocol
    of = "" if protocol["split"] == "files" else f"{protocol['split']} "
    print(
        f"{protocol['images']:,} {of}images of {protocol['dataset']}, checkpoint "
        f"{checkpoint} (step {tokenizer.step:,}){'' if how is None else f', codes {how}'}"
    )
    print_metrics(content, content["figures"])
    print(f"written: {path}")
    return 0


def _own(tokenizer: "Tokenizer", split: str, root: str | None, *, accept: bool) -> "Found":
    """A split of the run's own images."""
    from mqvae.runs.images import load_run_split

    settings = tokenizer.settings
    if root is not None:
        settings = replace(settings, data=settings.data.moved(root))
    found = load_run_split(tokenizer.run, settings, split, accept_changed_data=accept)
    if not len(found.images):
        raise MqvaeError(
            f"the run has no {split} images (data.validation 0): take another --split."
        )
    return found


def _others(
    tokenizer: "Tokenizer", data: str, split: str | None, root: str | None, *, own_size: bool
) -> "Found":
    """Other images than the run's."""
    from mqvae.data import identity_of
    from mqvae.runs.images import Found
    from mqvae.runs.known import Known
    from mqvae.tasks import Task
    from mqvae.training.images import other_images

    own = tokenizer.settings.data
    has_labels = type(tokenizer.task).images is Task.images and not own.are_vectors
    if split is None and has_labels:
        raise MqvaeError(
            f"{type(tokenizer.task).__name__} is measured with labels: add --split test or train, "
            "for a dataset or a folder with class folders."
        )
    images = other_images(own, data, split, root=root, own_size=own_size)
    classes = own.classes or 1
    if has_labels and int(images.labels.max()) >= classes:
        raise MqvaeError(
            f"{data} has labels up to {int(images.labels.max())}, the run knows {classes} "
            "classes: measure it on images of these."
        )
    identity = identity_of(images)
    known = Known.of_run(tokenizer.run)
    if known and not own_size and known.splits.get(images.split) == identity:
        return Found(images, identity)  # the run's own, wherever they are
    name = re.sub(r"[^\w.]+", "_", Path(data).name).strip("._") or "data"
    parts = [name, split, "own_size" if own_size else None]
    return Found(images, identity, data="-".join(filter(None, parts)))


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

"""`mqvae evaluate`."""

import sys

from mqvae.cli.parser import add_accept, add_machine, parser_of, processes_of
from mqvae.cli.terminal import print_figures, quiet
from mqvae.errors import MqvaeError


def evaluate(arguments: list[str]) -> int:
    parser = parser_of("evaluate", "Measure a run; writes evaluations/SPLIT-CHECKPOINT.json.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--split",
        default="test",
        choices=("test", "validation", "train"),
        help="test, validation (the images held out in training), or train, without these "
        "(default: test)",
    )
    parser.add_argument(
        "--checkpoint", default="last", choices=("last", "best"), help="(default: last)"
    )
    add_accept(parser)
    add_machine(parser, "the images")
    parser.add_argument(
        "--metrics",
        default="",
        metavar="NAME,…",
        help="further metrics of images: ssim, lpips, fid, inception_score, frechet_vgg16, "
        "class_score, or all that can be had; the task's own are always measured. Those that the "
        "file has of the same weights and images stay",
    )
    parser.add_argument(
        "--classifier",
        metavar="RUN",
        help="what class_score is taken with: a run of `mqvae train classifier` on the same images",
    )
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.metrics.split(",") if name.strip()]
    if options.classifier is not None and not {"class_score", "all"} & set(names):
        raise MqvaeError(
            "--classifier is what class_score is taken with: add --metrics class_score, or leave "
            "it out."
        )
    from functools import partial

    from mqvae.classifier import classifier_of
    from mqvae.metrics import CODES
    from mqvae.metrics import evaluate as measured
    from mqvae.metrics.registry import Maker, further_figures
    from mqvae.metrics.score import ClassScore
    from mqvae.runs import read_json
    from mqvae.tokenizer import Tokenizer
    from mqvae.trainer import device_name, load_run_split, not_finite, write_evaluation

    quiet()
    processes = processes_of(options)
    tokenizer = Tokenizer.from_run(
        options.run, checkpoint=options.checkpoint, device=processes.device
    )
    found = load_run_split(
        tokenizer.run,
        tokenizer.settings,
        options.split,
        accept_changed_data=options.accept_changed_data,
    )
    images = found.images
    if not len(images):
        raise MqvaeError(
            f"the run has no {options.split} images: choose another --split "
            "(data.validation holds some out for validation)."
        )
    makers: dict[str, Maker] = {}
    if options.classifier is not None:
        classifier = classifier_of(
            options.classifier, tokenizer.settings.data, device=processes.device
        )
        makers["class_score"] = partial(ClassScore, classifier=classifier)
    further = further_figures(
        names,
        [*tokenizer.task.figures, *CODES],
        tokenizer.task,
        images,
        device=processes.device,
        makers=makers,
        left_out=_remark if processes.first else str,
    )
    result = measured(
        tokenizer.network,
        tokenizer.task,
        images,
        device=processes.device,
        together=True,
        further=further,
    )
    if not processes.first:
        return 0
    path = write_evaluation(
        tokenizer.run,
        result,
        found.identity,
        images.source,
        changes=found.changes,
        checkpoint=options.checkpoint,
        step=tokenizer.step,
        weights=tokenizer.model,
        device=device_name(processes.device, processes.count),
    )
    for sentence in not_finite(result):
        _remark(f"warning: {sentence}")
    content = read_json(path)
    protocol = result.protocol
    print(
        f"{protocol['images']:,} {protocol['split']} images of {protocol['dataset']}, checkpoint "
        f"{options.checkpoint} (step {tokenizer.step:,})"
    )
    print_figures(content, content["figures"])
    print(f"written: {path}")
    return 0


def _remark(text: str) -> None:
    print(f"mqvae: {text}", file=sys.stderr)

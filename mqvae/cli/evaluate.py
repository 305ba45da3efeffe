"""`mqvae evaluate`."""

import sys

from mqvae.cli.parser import add_machine, parser_of, processes_of
from mqvae.cli.terminal import print_figures, quiet
from mqvae.errors import MqvaeError


def evaluate(arguments: list[str]) -> int:
    parser = parser_of("evaluate", "Measure a run on its test images; writes evaluation.json.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    add_machine(parser, "the images")
    parser.add_argument(
        "--metrics",
        default="",
        metavar="NAME,…",
        help="further figures of images: ssim, lpips, fid, inception_score, frechet_vgg16, "
        "class_score, or all that can be had; the task's own are always measured",
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
    from mqvae.tokenizer import Tokenizer
    from mqvae.trainer import device_name, load_split, write_evaluation

    quiet()
    processes = processes_of(options)
    tokenizer = Tokenizer.from_run(
        options.run, checkpoint=options.checkpoint, device=processes.device
    )
    images = load_split(tokenizer.settings.data, options.split)
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
    content = write_evaluation(
        tokenizer.run,
        "evaluation.json",
        result,
        {
            "checkpoint": options.checkpoint,
            "step": tokenizer.step,
            "device": device_name(processes.device, processes.count),
        },
    )
    print_figures(content, content["figures"])
    print(f"written: {tokenizer.run.folder / 'evaluation.json'}")
    return 0


def _remark(text: str) -> None:
    print(f"mqvae: {text}", file=sys.stderr)

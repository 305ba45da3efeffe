"""`mqvae prior` and `mqvae sample`."""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mqvae.cli.parser import (
    add_accept,
    add_machine,
    add_run,
    also,
    folder_for,
    parser_of,
    processes_of,
)
from mqvae.cli.terminal import print_metrics, quiet, to_the_end
from mqvae.errors import MqvaeError, refused

if TYPE_CHECKING:
    from torch import Tensor

    from mqvae.prior import PriorTraining

GRID = 64  # images of samples.png at most


def prior(arguments: list[str]) -> int:
    options = _prior_parser().parse_args(arguments)
    from mqvae.prior.distance import FILE

    quiet()
    training = _training(options)
    folder, steps = training.run.folder, training.config.prior.steps
    go_on = f"mqvae prior {shlex.quote(options.run)} --resume"
    if training.step == steps and (folder / "summary.json").is_file():
        print(f"{folder} is complete: all {steps:,} steps are done.")
        return 0
    shape = " × ".join(map(str, training.config.shape))
    print(
        f"prior: {len(training.train):,} images, {shape} codes each, {steps:,} steps → {folder}"
        + (f" (from step {training.step:,})" if training.step else ""),
        file=sys.stderr,
    )
    summary, code = to_the_end(training.fit, steps, go_on)
    if summary is not None:
        print_metrics(summary, summary["figures"])
        if training.distance is not None:
            print(f"distance of samples by steps: {folder / FILE}")
        print(f"prior: {folder}\nnext: mqvae sample {shlex.quote(options.run)} --out samples")
    return code


def _prior_parser() -> argparse.ArgumentParser:
    from docstring_parser import parse

    from mqvae.prior import PriorSettings

    parser = parser_of(
        "prior", "Train a PixelCNN or a transformer over the codes of a run, in RUN/prior."
    )
    add_run(parser)
    meanings = {p.arg_name: p.description for p in parse(PriorSettings.__doc__ or "").params}
    for field in dataclasses.fields(PriorSettings):
        option, words = f"--{field.name.replace('_', '-')}", meanings[field.name]
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=words)
            continue
        if field.default is not None:
            words = f"{words} (default: {field.default})"
        kind = next(kind for kind in (str, int, float) if field.type in (kind, kind | None))
        metavar = "NAME" if kind is str else "N"
        parser.add_argument(
            option, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=words
        )
        also(parser, f"--{field.name}", option)
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        default=argparse.SUPPRESS,
        help="of the run, whose codes it learns (last)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a prior that is there")
    parser.add_argument("--resume", action="store_true", help="resume where it stopped")
    add_machine(parser)
    add_accept(parser)
    return parser


def _training(options: argparse.Namespace) -> "PriorTraining":
    from mqvae.prior import PriorSettings, begin_prior, resume_prior

    others = ("run", "overwrite", "resume", "accelerator", "accept_changed_data")
    given = {name: value for name, value in vars(options).items() if name not in others}
    if options.resume:
        if given or options.overwrite:
            named = [*given, *["overwrite"] * options.overwrite]
            names = " ".join(f"--{name.replace('_', '-')}" for name in named)
            raise MqvaeError(f"--resume uses the prior's own settings: leave out {names}.")
        return resume_prior(
            options.run,
            device=processes_of(options).device,
            accept_changed_data=options.accept_changed_data,
        )
    checkpoint = given.pop("checkpoint", "last")
    return begin_prior(
        options.run,
        PriorSettings(**given),
        checkpoint=checkpoint,
        device=processes_of(options).device,
        overwrite=options.overwrite,
        accept_changed_data=options.accept_changed_data,
    )


def sample(arguments: list[str]) -> int:
    parser = parser_of(
        "sample", "Draw images from a run's prior: PNG files, samples.png and codes.npz."
    )
    add_run(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the images")
    parser.add_argument("--count", type=int, default=64, metavar="N", help="how many (64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="below 1 for likelier codes"
    )
    parser.add_argument(
        "--class",
        type=int,
        dest="label",
        metavar="N",
        help="class of all images; a conditional prior takes its classes in turn without it",
    )
    add_machine(parser)
    parser.add_argument("--overwrite", action="store_true", help="write into a folder in use")
    options = parser.parse_args(arguments)
    import torch

    from mqvae.prior.sampling import codes_of, images_of, load_prior, sample_codes
    from mqvae.prior.settings import FOLDER, PriorConfig
    from mqvae.runs import Run
    from mqvae.tokenizer import Tokenizer

    out = folder_for(options.out, overwrite=options.overwrite)
    if not 0 <= options.seed < 2**32:
        raise MqvaeError(f"--seed must lie in 0 … {2**32 - 1}, got {options.seed}.")
    run = Run(options.run)
    config = PriorConfig.load(run.folder / FOLDER)
    tokenizer = Tokenizer.from_run(
        options.run, checkpoint=config.checkpoint, device=processes_of(options).device
    )
    network = load_prior(tokenizer)
    if options.label is not None and not network.classes:
        raise MqvaeError(
            f"the prior of {options.run} is not conditioned on classes: leave out --class, or "
            "train it with --conditional."
        )
    if options.label is not None and not 0 <= options.label < network.classes:
        raise MqvaeError(f"--class must lie in 0 … {network.classes - 1}, got {options.label}.")
    with refused("--count"):
        codes = sample_codes(
            network,
            options.count,
            torch.Generator().manual_seed(options.seed),
            temperature=options.temperature,
            label=options.label,
        )
    drawn = codes_of(tokenizer, codes)
    tokenizer.decode_to_files(drawn, out)
    drawn.save(out / "codes.npz")
    _grid(images_of(tokenizer, codes[:GRID]), out / "samples.png")
    print(f"{options.count:,} images: {out}\nside by side: {out / 'samples.png'}")
    return 0


def _grid(images: "Tensor", path: Path) -> None:
    """Images side by side, in about as many rows as columns."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    to_pil_image(make_grid(images, nrow=columns, padding=1)).save(path)

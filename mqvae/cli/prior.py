"""`mqvae prior` and `mqvae sample`."""

import csv
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mqvae.cli.parser import (
    Accelerator,
    AcceptChanged,
    RunName,
    folder_for,
    processes_of,
    tokenizer_of,
)
from mqvae.cli.terminal import print_metrics, quiet, to_the_end
from mqvae.errors import MqvaeError, refused
from mqvae.prior import PriorSettings, begin_prior, resume_prior

if TYPE_CHECKING:
    from torch import Tensor

GRID = 64  # images of samples.png at most
OVERFITTED = 1.05  # bits of validation codes at the end over the least of them


def prior(
    run: RunName,
    *,
    checkpoint: Literal["last", "best"] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    accelerator: Accelerator = "auto",
    accept_changed_data: AcceptChanged = False,
    **settings: Annotated[Any, PriorSettings],
) -> int:
    """Train a PixelCNN or a transformer over the codes of a run, in RUN/prior.

    Args:
        checkpoint: Which of the run's checkpoints, whose codes it learns (default: last).
        overwrite: Replace a prior that is there.
        resume: Resume where it stopped.
    """
    from mqvae.prior.distance import FILE

    quiet()
    if resume:
        given = {**settings, "checkpoint": checkpoint, "overwrite": overwrite or None}
        named = [f"--{k.replace('_', '-')}" for k, value in given.items() if value is not None]
        if named:
            names = " ".join(named)
            raise MqvaeError(f"--resume uses the prior's own settings: leave out {names}.")
        device = processes_of(accelerator).device
        training = resume_prior(run, device=device, accept_changed_data=accept_changed_data)
    else:
        training = begin_prior(
            run,
            PriorSettings(**settings),
            checkpoint=checkpoint or "last",
            device=processes_of(accelerator).device,
            overwrite=overwrite,
            accept_changed_data=accept_changed_data,
        )
    folder, steps = training.run.folder, training.config.prior.steps
    if training.step == steps and (folder / "summary.json").is_file():
        print(f"{folder} is complete: all {steps:,} steps are done.")
        return 0
    shape = " × ".join(map(str, training.config.shape))
    print(
        f"prior: {len(training.train):,} images, {shape} codes each, {steps:,} steps → {folder}"
        + (f" (from step {training.step:,})" if training.step else ""),
        file=sys.stderr,
    )
    go_on = f"mqvae prior {shlex.quote(run)} --resume"
    summary, code = to_the_end(training.fit, steps, go_on)
    if summary is not None:
        print_metrics(summary, summary["figures"])
        if training.distance is not None:
            print(f"distance of samples by steps: {folder / FILE}")
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["validation"]]
        bits = [(float(row["validation"]), row["step"]) for row in rows]
        if bits and bits[-1][0] > OVERFITTED * min(bits)[0]:
            least, best = min(bits)
            print(
                f"validation: {least:.3f} bits a code at step {best}, {bits[-1][0]:.3f} at the "
                f"end: few images for so many steps. Try --steps {best} --overwrite"
            )
        print(f"prior: {folder}\nnext: mqvae sample {shlex.quote(run)} --out samples")
    return code


def sample(
    run: RunName,
    *,
    out: Annotated[str, "DIR"],
    count: int = 64,
    seed: int = 0,
    temperature: float = 1.0,
    class_: Annotated[int | None, "N"] = None,
    accelerator: Accelerator = "auto",
    overwrite: bool = False,
) -> int:
    """Draw images from a run's prior: PNG files, samples.png and codes.npz.

    Args:
        out: Folder for the images.
        count: How many.
        seed: Of the noise.
        temperature: Below 1 for likelier codes.
        class_: Class of all images; a conditional prior takes its classes in turn without it.
        overwrite: Write into a folder in use.
    """
    import torch

    from mqvae.prior.sampling import codes_of, images_of, load_prior, sample_codes
    from mqvae.prior.settings import FOLDER, PriorConfig
    from mqvae.runs import Run

    folder = folder_for(out, overwrite=overwrite)
    if not 0 <= seed < 2**32:
        raise MqvaeError(f"--seed must lie in 0 … {2**32 - 1}, got {seed}.")
    config = PriorConfig.load(Run(run).folder / FOLDER)
    tokenizer = tokenizer_of(run, config.checkpoint, accelerator)
    network = load_prior(tokenizer)
    if class_ is not None and not network.classes:
        raise MqvaeError(
            f"the prior of {run} is not conditioned on classes: leave out --class, or "
            "train it with --conditional."
        )
    if class_ is not None and not 0 <= class_ < network.classes:
        raise MqvaeError(f"--class must lie in 0 … {network.classes - 1}, got {class_}.")
    source = torch.Generator().manual_seed(seed)
    with refused("--count"):
        codes = sample_codes(network, count, source, temperature=temperature, label=class_)
    drawn = codes_of(tokenizer, codes)
    tokenizer.decode_to_files(drawn, folder)
    drawn.save(folder / "codes.npz")
    _grid(images_of(tokenizer, codes[:GRID]), folder / "samples.png")
    print(f"{count:,} images: {folder}\nside by side: {folder / 'samples.png'}")
    return 0


def _grid(images: "Tensor", path: Path) -> None:
    """Images side by side, in about as many rows as columns."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    to_pil_image(make_grid(images, nrow=columns, padding=1)).save(path)

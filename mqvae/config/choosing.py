"""A preset for images, where none is named."""

from pathlib import Path
from typing import Any

from mqvae.config.classes import find
from mqvae.config.options import Spec
from mqvae.config.presets import RECOMMENDED, is_known
from mqvae.config.sources import source_of
from mqvae.data import DATASETS, look
from mqvae.data.look import Look
from mqvae.weights.packaged import CONFIG, packaged

CHOICES = {12: "digits-tiny", 40: "fashion-mnist-demo"}
"""Presets by the longest side of images that they are chosen for."""
LARGER = "images-64"
VECTORS, RESIDUAL = "vectors", "residual-ema"
"""Preset and method of vectors."""
BATCH = 64
"""Images in a batch of these presets."""
TUNED_STEPS, TUNED_LR, TUNED_BATCH = 200, 3e-4, 16
"""Of a training that starts from weights that are there."""
OF_OTHER_IMAGES = {
    "--data.root": "null",
    "--data.classes": "null",
    "--data.validation": "null",
    "--data.limit": "null",
    "--freeze": "[]",
    "--warm_start.unquantized": 0,
    "--warm_start.gradual": 0,
}
"""Settings of the training that made those weights which are none of this one."""
WITHOUT = ("-h", "--help", "--help-all", "--resume")
"""Options of commands that take no preset."""


def completed(arguments: list[str]) -> tuple[list[str], str]:
    """The arguments of `mqvae train` with a preset, and why that one was chosen.

    Images may stand in the place of the preset. Where nothing is to be chosen, what is typed comes
    back as it is.

    Args:
        arguments: A preset or images, and options.

    Returns:
        The arguments, beginning with a preset, and two sentences; empty where nothing was chosen.
    """
    names = [a.partition("=")[0] for a in arguments]
    if any(name in WITHOUT or name.endswith(".help") for name in names):
        return arguments, ""
    place, *rest = arguments if names and not names[0].startswith("-") else ["", *arguments]
    if place and not _are_images(place):
        return arguments, ""
    data = place or _said(rest, "--data", "--data.name")
    if not data:
        return arguments, ""
    source = source_of(data)
    if source["class_path"] != "mqvae.ImageData":
        return _for_another(data, source, rest)
    seen = look(data, _said(rest, "--root", "--data.root") or None)
    start = _said(rest, "--from", "--from.run")
    if start and not _said(rest, "--method") and (config := _config_of(start)):
        return _fine_tuning(start, config, data, seen, rest)
    size = _said(rest, "--size", "--data.side")
    longest = int(size) if size.isdecimal() else seen.most
    preset = next((name for most, name in CHOICES.items() if longest <= most), LARGER)
    method = _said(rest, "--method") or RECOMMENDED
    chosen = [preset, "--method", method, "--data", data]
    if not size and preset == CHOICES[40] and (seen.least < seen.most or seen.most % 4):
        chosen += ["--size", str(max(4, seen.least - seen.least % 4))]
    few = seen.count < 2 * BATCH and not _said(rest, "--batch-size", "--data.batch_size")
    if few:
        chosen += ["--batch-size", str(max(1, seen.count // 2))]
    why = (
        f"{data}: {seen}. Preset {preset}, method {method}{f', batches of {chosen[-1]}' * few}.\n"
        "`mqvae presets` and `mqvae methods` list others; --size N trains on N × N pixels."
    )
    return [*chosen, *rest], why


def _config_of(start: str) -> Path | None:
    """The settings of a run or of a tokenizer of the package; None if it is neither."""
    if folder := packaged(start):
        return folder / CONFIG
    config = Path(start).expanduser() / "config.yaml"
    return config if config.is_file() else None


def _fine_tuning(
    start: str, config: Path, data: str, seen: Look, rest: list[str]
) -> tuple[list[str], str]:
    """Settings of what is fine-tuned, with other images and few steps, and what they are."""
    batch = max(1, min(TUNED_BATCH, seen.count // 2))
    tuned = {"--steps": TUNED_STEPS, "--lr": TUNED_LR, "--batch-size": batch}
    chosen = [str(config), "--data", data]
    for option, value in (tuned | OF_OTHER_IMAGES).items():
        chosen += [option, str(value)]
    why = (
        f"{data}: {seen}. Fine-tunes {start}, with its network and its method: {TUNED_STEPS} steps "
        f"of {batch} images, learning rate {TUNED_LR}.\n"
        "--steps, --lr and --batch-size change that; --size N trains on N × N pixels."
    )
    return [*chosen, *rest], why


def _for_another(data: str, source: Spec, rest: list[str]) -> tuple[list[str], str]:
    """The same for another source than images in files."""
    kind: Any = find(source["class_path"])
    shape = kind(**source.get("init_args", {})).load("train").shape
    if len(shape) == 1:
        preset, what, usual = VECTORS, f"vectors of {shape[0]:,} numbers", RESIDUAL
    else:
        usual = RECOMMENDED
        preset = next((name for most, name in CHOICES.items() if shape[-1] <= most), LARGER)
        what = f"images of {shape[-1]} × {shape[-1]} pixels"
    method = _said(rest, "--method") or usual
    why = f"{data}: {what}. Preset {preset}, method {method}.\n`mqvae methods` lists others."
    return [preset, "--method", method, "--data", data, *rest], why


def _are_images(name: str) -> bool:
    """Whether a name in the place of a preset is data: a data set, a folder, shards, an array."""
    path = Path(name).expanduser()
    if is_known(name) or path.suffix in (".yaml", ".yml"):
        return False
    is_run = (path / "config.yaml").is_file()
    if source_of(name)["class_path"] != "mqvae.ImageData":
        return True
    return name in DATASETS or path.suffix == ".tar" or (path.is_dir() and not is_run)


def _said(arguments: list[str], *options: str) -> str:
    """The value of the last of these options; empty if none is there."""
    found = ""
    for at, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name in options:
            found = value if given else "".join(arguments[at + 1 : at + 2])
    return found

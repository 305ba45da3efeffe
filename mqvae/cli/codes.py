"""`mqvae encode` and `mqvae decode`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from mqvae.cli.parser import (
    Accelerator,
    AcceptChanged,
    BitsOf,
    BitsWeight,
    Checkpoint,
    Refine,
    RunName,
    file_for,
    folder_for,
    processes_of,
    refinement_of,
    tokenizer_of,
    with_prior,
)
from mqvae.cli.terminal import quiet
from mqvae.errors import MqvaeError


def encode(
    run: RunName,
    images: str,
    *,
    out: Annotated[str, "FILE.npz|DIR"],
    overwrite: bool = False,
    fit: bool = False,
    refine: Refine = None,
    bits_weight: BitsWeight = None,
    bits_of: BitsOf = None,
    checkpoint: Checkpoint = "last",
    accelerator: Accelerator = "auto",
    devices: int = 1,
    on_error: Literal["stop", "skip"] = "stop",
    accept_changed_data: AcceptChanged = False,
) -> int:
    """Encode images to codes.

    Args:
        images: An image file, a folder of images or shards, or a split of the run's dataset
            (train, validation, test).
        out: Where the codes go: a file for what fits in memory, or a folder of shards for any
            number of images, which the same command resumes after a stop; again, it encodes what
            was added, replaced or repaired since.
        overwrite: Replace codes at --out.
        fit: Resize, crop and convert images to what the run was trained on.
        devices: Processes that share the shards.
        on_error: What an image that cannot be read does; one that is skipped has no codes.
    """
    how = refinement_of(refine, bits_weight, bits_of)
    from mqvae.tokenizer import Tokenizer

    to_file = out.endswith(".npz")
    if to_file and devices > 1:
        raise MqvaeError("--devices shares the shards of a folder: give --out a folder.")
    place = file_for(out, overwrite=overwrite) if to_file else Path(out)
    quiet()
    processes = processes_of(accelerator, devices)
    with processes.noticing_losses():
        tokenizer = Tokenizer.from_run(run, checkpoint=checkpoint, device=processes.device)
        how = with_prior(how, bits_of, tokenizer)
        found = tokenizer.find_images(
            images, fit=fit, on_error=on_error, accept_changed_data=accept_changed_data
        )
        if to_file:
            codes = tokenizer.encode_images(found, refine=how)
            codes.without(found.skipped).save(place)
        else:
            from mqvae.tokenizer.shards import Shards

            shards = Shards(place, tokenizer, found, refine=how)
            going_on = shards.check(overwrite=overwrite)
            processes.wait()
            if processes.first:
                shards.begin(going_on=going_on)
            processes.wait()
            mine = shards.encode(rank=processes.rank, world_size=processes.count)
            written = processes.largest(mine)
            processes.wait()
    if skipped := found.skipped:
        print(
            f"mqvae: {len(skipped)} image(s) could not be read and have no codes: "
            f"{', '.join(skipped[:3])}{', …' if len(skipped) > 3 else ''}",
            file=sys.stderr,
        )
    if not processes.first:
        return 0
    if to_file:
        shape = " × ".join(map(str, codes.codes.shape[1:]))
        said = f"{len(codes.codes):,} images, {shape} codes each, of {codes.num_codes:,}: {place}"
    else:
        count, total = shards.finish(), len(shards.index["pieces"])
        there = "" if written or not going_on else ", all there before"
        said = f"{count:,} images, {total} shard(s){there}: {place}"
    print(f"{said}\nback: mqvae decode {shlex.quote(run)} {shlex.quote(str(place))} --out DIR")
    return 0


def decode(
    run: RunName,
    codes: str,
    *,
    out: Annotated[str, "DIR"],
    overwrite: bool = False,
    checkpoint: Checkpoint = "last",
    accelerator: Accelerator = "auto",
) -> int:
    """Decode codes to images, as PNG files.

    Args:
        codes: A file or a folder that encode wrote.
        out: Folder for the images.
        overwrite: Write into a folder in use.
    """
    from mqvae.tokenizer import Codes
    from mqvae.tokenizer.shards import decode_shards

    folder = folder_for(out, overwrite=overwrite)
    tokenizer = tokenizer_of(run, checkpoint, accelerator)
    if Path(codes).is_dir():
        written = decode_shards(tokenizer, codes, folder)
    else:
        written = tokenizer.decode_to_files(Codes.load(codes), folder)
    print(f"{written:,} images: {folder}")
    return 0

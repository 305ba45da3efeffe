"""`mqvae encode` and `mqvae decode`."""

import shlex
import sys
from pathlib import Path

from mqvae.cli.parser import (
    add_accept,
    add_machine,
    add_refinement,
    add_run,
    also,
    file_for,
    folder_for,
    parser_of,
    processes_of,
    refinement_of,
    with_prior,
)
from mqvae.cli.terminal import quiet
from mqvae.errors import MqvaeError


def encode(arguments: list[str]) -> int:
    parser = parser_of("encode", "Images to codes.")
    add_run(parser)
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="an image file, a folder of images or shards, or a split of the run's dataset (train, "
        "validation, test)",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE.npz|DIR",
        help="where the codes go: a file for what fits in memory, or a folder of shards for any "
        "number of images, which the same command resumes after a stop; again, it encodes what was "
        "added, replaced or repaired since",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace codes at --out")
    parser.add_argument(
        "--fit",
        action="store_true",
        help="resize, crop and convert images to what the run was trained on",
    )
    add_refinement(parser)
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    add_machine(parser, "the shards")
    parser.add_argument(
        "--on-error",
        default="stop",
        choices=("stop", "skip"),
        help="what an image that cannot be read does; one that is skipped has no codes",
    )
    also(parser, "--on_error", "--on-error")
    add_accept(parser)
    options = parser.parse_args(arguments)
    refine = refinement_of(options)
    from mqvae.tokenizer import Tokenizer

    to_file = options.out.endswith(".npz")
    if to_file and options.devices > 1:
        raise MqvaeError("--devices shares the shards of a folder: give --out a folder.")
    out = file_for(options.out, overwrite=options.overwrite) if to_file else Path(options.out)
    quiet()
    processes = processes_of(options)
    with processes.noticing_losses():
        tokenizer = Tokenizer.from_run(
            options.run, checkpoint=options.checkpoint, device=processes.device
        )
        refine = with_prior(refine, options, tokenizer)
        images = tokenizer.find_images(
            options.images,
            fit=options.fit,
            on_error=options.on_error,
            accept_changed_data=options.accept_changed_data,
        )
        if to_file:
            codes = tokenizer.encode_images(images, refine=refine)
            codes.without(images.skipped).save(out)
        else:
            from mqvae.tokenizer.shards import Shards

            shards = Shards(out, tokenizer, images, refine=refine)
            going_on = shards.check(overwrite=options.overwrite)
            processes.wait()
            if processes.first:
                shards.begin(going_on=going_on)
            processes.wait()
            mine = shards.encode(rank=processes.rank, world_size=processes.count)
            written = processes.largest(mine)
            processes.wait()
    if skipped := images.skipped:
        print(
            f"mqvae: {len(skipped)} image(s) could not be read and have no codes: "
            f"{', '.join(skipped[:3])}{', …' if len(skipped) > 3 else ''}",
            file=sys.stderr,
        )
    if not processes.first:
        return 0
    if to_file:
        shape = " × ".join(map(str, codes.codes.shape[1:]))
        said = f"{len(codes.codes):,} images, {shape} codes each, of {codes.num_codes:,}: {out}"
    else:
        count, total = shards.finish(), len(shards.index["pieces"])
        there = "" if written or not going_on else ", all there before"
        said = f"{count:,} images, {total} shard(s){there}: {out}"
    print(
        f"{said}\nback: mqvae decode {shlex.quote(options.run)} {shlex.quote(str(out))} --out DIR"
    )
    return 0


def decode(arguments: list[str]) -> int:
    parser = parser_of("decode", "Codes back to images, as PNG files.")
    add_run(parser)
    parser.add_argument("codes", metavar="CODES", help="a file or a folder that encode wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the images")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder in use")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    add_machine(parser)
    options = parser.parse_args(arguments)
    from mqvae.tokenizer import Codes, Tokenizer
    from mqvae.tokenizer.shards import decode_shards

    out = folder_for(options.out, overwrite=options.overwrite)
    tokenizer = Tokenizer.from_run(
        options.run, checkpoint=options.checkpoint, device=processes_of(options).device
    )
    if Path(options.codes).is_dir():
        written = decode_shards(tokenizer, options.codes, out)
    else:
        written = tokenizer.decode_to_files(Codes.load(options.codes), out)
    print(f"{written:,} images: {out}")
    return 0

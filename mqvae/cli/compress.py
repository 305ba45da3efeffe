"""`mqvae compress` and `mqvae decompress`."""

import argparse
import math
import shlex
from pathlib import Path

from mqvae.cli.parser import (
    add_accept,
    add_machine,
    add_run,
    file_for,
    folder_for,
    parser_of,
    processes_of,
)
from mqvae.cli.terminal import quiet
from mqvae.optional import require


def compress(arguments: list[str]) -> int:
    parser = _parser("compress", "Images or codes to a file of few bytes.")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="an image file, a folder of images of any sizes or of shards, a split of the run's "
        "dataset (train, validation, test), or codes: a file or a folder that encode wrote",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the compressed file")
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --out")
    parser.add_argument(
        "--fit",
        action="store_true",
        help="resize, crop and convert images to what the run was trained on",
    )
    add_accept(parser)
    options = parser.parse_args(arguments)
    require("constriction")
    from mqvae.tokenizer import Tokenizer
    from mqvae.tokenizer.compression import codewords_of, of_images

    out = file_for(options.out, overwrite=options.overwrite)
    quiet()
    tokenizer = Tokenizer.from_run(
        options.run, checkpoint=options.checkpoint, device=processes_of(options).device
    )
    codes = of_images(
        tokenizer,
        options.images,
        fit=options.fit,
        accept_changed_data=options.accept_changed_data,
    )
    size = codes.save(out, codewords_of(tokenizer))
    print(
        f"{len(codes):,} images, {codes.count:,} codes: {out}\n"
        f"{size:,} bytes: {8 * size / codes.count:.3f} bits a code "
        f"({math.log2(codes.num_codes):.3f} nominal), {8 * size / codes.pixels:.4f} bits a pixel\n"
        f"back: mqvae decompress {shlex.quote(options.run)} {shlex.quote(str(out))} --out DIR"
    )
    return 0


def decompress(arguments: list[str]) -> int:
    parser = _parser("decompress", "A compressed file back to images, as PNG files.")
    parser.add_argument("file", metavar="FILE", help="a file that compress wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the images")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder in use")
    options = parser.parse_args(arguments)
    require("constriction")
    from mqvae.coding import Compressed
    from mqvae.tokenizer import Tokenizer
    from mqvae.tokenizer.compression import to_files

    out = folder_for(options.out, overwrite=options.overwrite)
    found = Compressed.load(Path(options.file))
    tokenizer = Tokenizer.from_run(
        options.run, checkpoint=options.checkpoint, device=processes_of(options).device
    )
    print(f"{to_files(tokenizer, found, out):,} images: {out}")
    return 0


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = parser_of(command, description)
    add_run(parser)
    parser.add_argument(
        "--checkpoint", default="last", choices=("last", "best"), help="(default: last)"
    )
    add_machine(parser)
    return parser

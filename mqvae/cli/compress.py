"""`mqvae compress` and `mqvae decompress`."""

import math
import shlex
from pathlib import Path
from typing import Annotated

from mqvae.cli.parser import (
    Accelerator,
    AcceptChanged,
    Checkpoint,
    RunName,
    file_for,
    folder_for,
    tokenizer_of,
)
from mqvae.cli.terminal import quiet
from mqvae.optional import require


def compress(
    run: RunName,
    images: str,
    *,
    out: Annotated[str, "FILE"],
    overwrite: bool = False,
    fit: bool = False,
    checkpoint: Checkpoint = "last",
    accelerator: Accelerator = "auto",
    accept_changed_data: AcceptChanged = False,
) -> int:
    """Compress images or codes to a file.

    Args:
        images: An image file, a folder of images of any sizes or of shards, a split of the run's
            dataset (train, validation, test), or codes: a file or a folder that encode wrote.
        out: The compressed file.
        overwrite: Replace a file at --out.
        fit: Resize, crop and convert images to what the run was trained on.
    """
    require("constriction")
    from mqvae.tokenizer.compression import codewords_of, of_images

    file = file_for(out, overwrite=overwrite)
    quiet()
    tokenizer = tokenizer_of(run, checkpoint, accelerator)
    codes = of_images(tokenizer, images, fit=fit, accept_changed_data=accept_changed_data)
    size = codes.save(file, codewords_of(tokenizer))
    print(
        f"{len(codes):,} images, {codes.count:,} codes: {file}\n"
        f"{size:,} bytes: {8 * size / codes.count:.3f} bits a code "
        f"({math.log2(codes.num_codes):.3f} nominal), {8 * size / codes.pixels:.4f} bits a pixel\n"
        f"back: mqvae decompress {shlex.quote(run)} {shlex.quote(str(file))} --out DIR"
    )
    return 0


def decompress(
    run: RunName,
    file: str,
    *,
    out: Annotated[str, "DIR"],
    overwrite: bool = False,
    checkpoint: Checkpoint = "last",
    accelerator: Accelerator = "auto",
) -> int:
    """Decompress a file to images, as PNG files.

    Args:
        file: A file that compress wrote.
        out: Folder for the images.
        overwrite: Write into a folder in use.
    """
    require("constriction")
    from mqvae.coding import Compressed
    from mqvae.tokenizer.compression import to_files

    folder = folder_for(out, overwrite=overwrite)
    found = Compressed.load(Path(file))
    tokenizer = tokenizer_of(run, checkpoint, accelerator)
    print(f"{to_files(tokenizer, found, folder):,} images: {folder}")
    return 0

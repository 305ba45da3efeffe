"""`mqvae import`."""

import shlex
from typing import Annotated, Literal

from mqvae.errors import MqvaeError


def import_(
    file: str,
    *,
    out: Annotated[str, "RUN"],
    overwrite: bool = False,
    data: Annotated[str, "NAME"] = "imagenet",
    root: Annotated[str | None, "DIR"] = None,
    size: Annotated[int, "PIXELS"] = 256,
    distance: Literal["euclidean", "cosine"] | None = None,
) -> int:
    """Import a tokenizer of taming-transformers or LlamaGen as a run.

    It is measured, used and fine-tuned as any other.

    Args:
        file: Its checkpoint, .ckpt, .pt or .safetensors; only tensors are read from it.
        out: The run's folder.
        overwrite: Replace the run at --out.
        data: Images that it is measured on: a data set or a folder.
        root: Folder of the data set's files.
        size: Side of the images that it was trained on.
        distance: Distance (default: euclidean of taming-transformers, cosine of LlamaGen).
    """
    if size < 1:
        raise MqvaeError(f"--size must be 1 or more, got {size}.")
    from mqvae.tokenizer.convert import import_run

    run, found = import_run(
        file, out, data=data, root=root, side=size, distance=distance, overwrite=overwrite
    )
    folder, sizes = shlex.quote(str(run.folder)), found.network
    print(
        f"{found.form.name}: width {sizes.width}, multipliers {list(sizes.multipliers)}, "
        f"{found.num_codes:,} codes of {found.dim} dimensions, {sizes.stride} × {sizes.stride} "
        f"pixels each: {run.folder}\n"
        f"next: mqvae evaluate {folder}\n"
        f"      mqvae train {folder}/config.yaml --from {folder} --freeze encoder,codebook "
        "--out runs/tuned"
    )
    return 0

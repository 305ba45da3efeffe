"""One trainer a run folder: a lock that ends with its process."""

import contextlib
import errno
import os
import socket
import weakref
from pathlib import Path

from mqvae.errors import MqvaeError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_TAKEN = (errno.EAGAIN, errno.EACCES)


class Lock:
    """The right to train in a folder, until it is released or the process ends, in any way."""

    def __init__(self, folder: Path) -> None:
        self.process = os.getpid()
        self.release = weakref.finalize(self, _release, folder / LOCK, _locked(folder / LOCK))


_mine: "weakref.WeakValueDictionary[str, Lock]" = weakref.WeakValueDictionary()


def lock(folder: Path) -> Lock:
    """The lock of a folder, one for all of a process; refused if another process has it.

    A file system without locks gives it to all.
    """
    key = os.path.realpath(folder)
    found = _mine.get(key)
    if found is None or not found.release.alive or found.process != os.getpid():
        found = _mine[key] = Lock(folder)
    return found


def _locked(path: Path) -> int | None:
    """The open file, locked; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise MqvaeError(
                f"{path.parent} cannot be trained in, since nothing can be written to it: "
                f"{error.strerror}."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == os.stat(path).st_ino:
                break
        except FileNotFoundError:
            pass
        except OSError as error:
            who = os.pread(file, 200, 0).decode(errors="replace")
            os.close(file)
            if error.errno in _TAKEN:
                raise MqvaeError(
                    f"{path.parent} is being trained already, by {who or 'another process'}: wait "
                    "until it has ended or stop it; another run takes another --out."
                ) from None
            return None
        os.close(file)  # its holder removed it after it was opened here
    with contextlib.suppress(OSError):  # without room for it the lock holds all the same
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return file


def _release(path: Path, file: int | None) -> None:
    if file is not None:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)

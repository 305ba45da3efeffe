"""The resident set of this process."""

import contextlib
import resource
import sys
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> float:
    """Bytes that are resident now; the most so far where the system does not say."""
    return _status("VmRSS")


def most_resident() -> float:
    """The most bytes that were resident since `forget`; since the start where it cannot."""
    return _status("VmHWM")


def forget() -> None:
    """Forget the peak so far, where the system can."""
    with contextlib.suppress(OSError):
        FORGET.write_text("5")


def _status(key: str) -> float:
    if STATUS.is_file():
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return 1024.0 * float(next(line for line in lines if line.startswith(key)).split()[1])
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

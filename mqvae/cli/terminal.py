"""Output that several commands share."""

import sys
import warnings
from collections.abc import Callable
from typing import Any


def quiet() -> None:
    """Keep libraries' advice to developers off the user's terminal."""
    warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
    # Pillow's remarks on odd files, which are read all the same or named in an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def print_metrics(values: dict[str, Any], described: dict[str, Any]) -> None:
    """Metrics by their names, as they are in the run's files."""
    width = max(13, *map(len, described))
    for name in described:
        print(f"{name:<{width}} {values[name]:.6g}")


def to_the_end(
    fit: Callable[[], dict[str, Any]], steps: int, go_on: str, *, speaks: bool = True
) -> tuple[dict[str, Any] | None, int]:
    """Summary and exit code of a training; no summary where it was asked to stop.

    Args:
        fit: The training.
        steps: How many there are.
        go_on: The command that resumes it.
        speaks: Whether to say that it stopped.
    """
    from mqvae.training import Interrupted

    try:
        return fit(), 0
    except Interrupted as stop:
        said = f"stopped after step {stop.step:,} of {steps:,}; resume with\n  {go_on}"
        code = 128 + stop.signal_number
    except KeyboardInterrupt:
        said, code = f"stopped at once; resume from the last checkpoint with\n  {go_on}", 130
    if speaks:
        print(said, file=sys.stderr)
    return None, code

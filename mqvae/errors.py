"""Whose fault an error is, and what may have been meant."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

PACKAGE = str(Path(__file__).parent)
ELSEWHERE = {"gpu": "cuda"}  # what other programs call it


class MqvaeError(ValueError):
    """Something the user can mend: an option, a file, a shape, a missing download.

    Its message names the thing, what was expected, what came, and what to do. The program prints
    that message alone and exits with code 2; every other exception is a fault of mqvae's, exit
    code 1. It is a ValueError, so that code which catches one keeps working.
    """


class NotFiniteEmbeddings(MqvaeError):
    """Embeddings hold numbers that are not finite, for which no code stands."""


def above_zero(**options: float) -> None:
    """Refuse, by a MqvaeError that names the first, options that are not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise MqvaeError(f"{name} must be above 0, got {value}.")


def below_one(**options: float) -> None:
    """Refuse, likewise, options that are not in [0, 1)."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise MqvaeError(f"{name} must lie in [0, 1), got {value}.")


def at_least(least: float, **options: float) -> None:
    """Refuse, likewise, options that are below a bound, or no number."""
    for name, value in options.items():
        if not value >= least:
            raise MqvaeError(f"{name} must be {least:g} or more, got {value}.")


def at_most(most: float, **options: float) -> None:
    """Refuse, likewise, options that are above a bound, or no number."""
    for name, value in options.items():
        if not value <= most:
            raise MqvaeError(f"{name} must be {most:,} or less, got {value}.")


def one_of(known: Iterable[str | None], **options: str | None) -> None:
    """Refuse, likewise, words that are not known, among which None stands for no choice."""
    words = [word for word in known if word is not None]
    for name, value in options.items():
        if value not in known:
            raise MqvaeError(f"{name} must be {' or '.join(words)}, got {value!r}.")


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Inside, where a user's values are handed over, what a library refuses is the user's to mend.

    torch says "Invalid learning rate" by a ValueError, a size that no memory holds by a
    RuntimeError. What the package's own lines raise stays what it is, but for what torch's
    functions say when those lines call them. Messages begin with `what`, the setting.
    """
    try:
        yield
    except MqvaeError:
        raise
    except (ValueError, TypeError, RuntimeError, MemoryError, ArithmeticError) as error:
        if own := _of_the_user(error):
            raise own from error
        if _raised_here(error) and not isinstance(error, RuntimeError | MemoryError):
            raise
        raise MqvaeError(f"{what}: {brief(error)}") from error


def brief(error: BaseException) -> str:
    """An exception's message, on one line and without torch's own frames."""
    said = str(error).partition("Exception raised from ")[0]
    return " ".join(said.split())[:500] or type(error).__name__


def _of_the_user(error: BaseException | None) -> MqvaeError | None:
    """The MqvaeError that another library has wrapped."""
    while error is not None:
        if isinstance(error, MqvaeError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _raised_here(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(PACKAGE)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?', or nothing.

    >>> did_you_mean("evalute", ["train", "evaluate"])
    " Did you mean 'evaluate'?"
    """
    names = list(known)
    meant = ELSEWHERE.get(name)
    close = [meant] if meant in names else get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def shortened(value: Any, most: int = 80) -> str:
    """A value as Python writes it, cut off where it is long.

    >>> shortened("a" * 100, 10)
    "'aaaaaaaa…"
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"

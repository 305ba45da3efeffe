"""What somebody may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?', or nothing.

    >>> nearest("evalute", ["train", "evaluate"])
    " Did you mean 'evaluate'?"
    """
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""

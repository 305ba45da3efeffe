"""What somebody may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches

ELSEWHERE = {"gpu": "cuda"}  # what other programs call it


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?', or nothing.

    >>> nearest("evalute", ["train", "evaluate"])
    " Did you mean 'evaluate'?"
    """
    names = list(known)
    meant = ELSEWHERE.get(name)
    close = [meant] if meant in names else get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""

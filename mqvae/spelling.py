"""What somebody may have meant, and what they wrote."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

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


def brief(value: Any, most: int = 80) -> str:
    """A value as Python writes it, cut off where it is long.

    >>> brief("a" * 100, 10)
    "'aaaaaaaa…"
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"

"""Numbers, durations and names as people write them."""

import math
from collections.abc import Sequence

from mqvae.places import names_only

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def dataset_title(name: object) -> str:
    """The dataset as its authors write it; of a folder, which may be called as one, its name."""
    if not isinstance(name, str) or not name:
        return "an unnamed data set"
    from mqvae.data import DATASETS  # which imports torch; the report alone does without

    return DATASETS[name].title if name in DATASETS else names_only(name)


def count(number: int, noun: str) -> str:
    """A count in words up to ten.

    >>> count(3, "network"), count(1, "network"), count(10000, "image")
    ('three networks', 'one network', '10,000 images')
    """
    written = COUNTS[number] if 0 <= number < len(COUNTS) else f"{number:,}"
    return f"{written} {noun}{'' if number == 1 else 's'}"


def enumerate_words(items: Sequence[str]) -> str:
    """
    >>> enumerate_words(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def inside(title: str) -> str:
    """A title inside a sentence; one that begins with an abbreviation stays.

    >>> inside("Reconstructions"), inside("FID")
    ('reconstructions', 'FID')
    """
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def scientific(value: float) -> str:
    """
    >>> scientific(0.00002), scientific(0.001)
    ('2·10⁻⁵', '10⁻³')
    """
    mantissa, exponent = f"{value:.2e}".split("e")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    mantissa = mantissa.rstrip("0").rstrip(".")
    return power if mantissa == "1" else f"{mantissa}·{power}"


def duration(seconds: float | None) -> str:
    """
    >>> duration(7.25), duration(192), duration(7500), duration(None)
    ('7.2 s', '3 min 12 s', '2 h 05 min', '-')
    """
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def aligned(values: Sequence[float | None], *, digits: int = 3, most: int = 6) -> list[str]:
    """Numbers of one column with equally many decimals; None gives "-".

    Args:
        values: the column.
        digits: significant digits that the smallest of them keeps.
        most: decimals at most.

    >>> aligned([5.1, 12.345, None])
    ['5.10', '12.35', '-']
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    smallest = math.floor(math.log10(min(sizes))) if sizes else 0
    decimals = min(max(digits - 1 - smallest, 0), most)
    return ["-" if value is None else f"{value:,.{decimals}f}" for value in values]

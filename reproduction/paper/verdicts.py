"""Rows become sentences, and claims that are judged."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from reproduction.paper.cells import heading
from reproduction.paper.rows import IN_WORDS, paired
from reproduction.paper.sections import Claim, Column, Protocol, Row, Table

FEW = 3  # seeds under which nothing is judged
CLOSE = 4 / 3  # factor between two changes, as logarithms of ratios, that count as the same size
POINTS = ("accuracy", "f1")  # shares near each other, whose ratio says little
PAPERS: Sequence[Protocol] = ("paper", "equal")  # the two readings of the paper's protocol
OF_PAPER = (  # the metrics of the paper's tables, and what stands for them
    *("fid", "frechet_vgg16", "inception_score", "class_score", "lpips", "mse"),
    *("perplexity", "gradient_gap", "accuracy", "f1", "cross_entropy", "perceptual_loss"),
)


@dataclass(frozen=True)
class Beside:
    """A metric of a method and of another, over the seeds that both have.

    Attributes:
        pairs: Theirs, seed by seed.
        column: The metric.
        published: The paper's ratio; None where it has none, or under a protocol of ours.
    """

    pairs: Sequence[tuple[float, float]]
    column: Column
    published: float | None

    @property
    def ratios(self) -> list[float]:
        return [one / other for one, other in self.pairs]

    @property
    def lower(self) -> bool:
        """Whether a lower value is the better one."""
        return self.column.better == "lower"

    def __str__(self) -> str:
        points = self.column.key in POINTS
        shown = [one - other for one, other in self.pairs] if points else self.ratios
        form = "+.1f" if points else ".2f"
        mean = f"{statistics.fmean(shown):{form}}"
        if len(shown) == 1:
            return f"{mean} (one seed)"
        return f"{mean} ({min(shown):{form}} to {max(shown):{form}})"

    def judged(self) -> str:
        """Direction and size beside the paper's; the direction alone where it has no value."""
        if len(self.pairs) < FEW:
            return "too few seeds for a verdict"
        if self.published is None:
            return direction(self.ratios, lower=self.lower)
        return judgement(self.ratios, self.published, lower=self.lower)


def direction(ratios: Sequence[float], *, lower: bool) -> str:
    """Whether a method is better than another over all seeds.

    >>> direction([0.91, 0.94, 0.90], lower=True), direction([0.99, 1.01, 1.02], lower=True)
    ('better with every seed', 'no significant difference')
    """
    better = [ratio < 1 if lower else ratio > 1 for ratio in ratios]
    if all(better):
        return "better with every seed"
    worse = all(ratio > 1 if lower else ratio < 1 for ratio in ratios)
    return "worse with every seed" if worse else "no significant difference"


def judgement(ratios: Sequence[float], published: float, *, lower: bool = True) -> str:
    """Whether paired ratios say what a published one says, in direction and in size.

    Sizes are compared as logarithms: within a third they are the same.

    >>> judgement([0.61, 0.64, 0.60], 0.59)
    'holds'
    >>> judgement([0.91, 0.94, 0.90], 0.59)
    'holds in direction, by less'
    >>> judgement([0.31, 0.34, 0.30], 0.59)
    'holds in direction, by more'
    >>> judgement([1.34, 1.40, 1.44], 1.05)
    'does not hold, worse by more'
    >>> judgement([1.02, 1.05, 1.04], 0.59)
    'does not hold, the other way round'
    >>> judgement([0.97, 1.05, 1.01], 0.59)
    'does not hold, no significant difference'
    """
    same = [(ratio < 1) == (published < 1) and ratio != 1 for ratio in ratios]
    if not all(same):
        reverse = not any(same) and direction(ratios, lower=lower) != "no significant difference"
        return f"does not hold, {'the other way round' if reverse else 'no significant difference'}"
    size = abs(math.log(statistics.fmean(ratios))) / abs(math.log(published))
    if size > CLOSE:
        for_it = (published < 1) == lower
        return "holds in direction, by more" if for_it else "does not hold, worse by more"
    return "holds" if size >= 1 / CLOSE else "holds in direction, by less"


def beside(made: Table, protocol: Protocol, method: str, base: str, key: str) -> Beside | None:
    """A metric of two methods in a protocol; None where there is no seed that both have."""
    column = next((column for column in made.columns if column.key == key), None)
    rows = {row.method: row for row in made.rows if row.protocol == protocol}
    if column is None or method not in rows or base not in rows:
        return None
    ours, theirs = rows[method], rows[base]
    pairs = [(one, other) for one, other in paired(ours, theirs, key) if other]
    published = _published(ours, theirs, key) if protocol in PAPERS else None
    return Beside(pairs, column, published) if pairs else None


def _published(ours: Row, theirs: Row, key: str) -> float | None:
    values = [row.cells[key].paper if key in row.cells else None for row in (ours, theirs)]
    return values[0] / values[1] if values[0] and values[1] else None


def said(made: Table, method: str, base: str, key: str) -> str:
    """What the paper says of a metric of two methods; empty if it says nothing."""
    rows = {row.method: row for row in made.rows if key in row.cells}
    if method not in rows or base not in rows:
        return ""
    ours, theirs = (rows[name].cells[key].paper for name in (method, base))
    if not ours or not theirs:
        return ""
    return f"{ours - theirs:+.1f} points" if key in POINTS else f"{ours / theirs:.2f}"


def verdicts(made: Table, key: str, pairs: Sequence[tuple[str, str]]) -> Iterator[Claim]:
    """A row for each pair: a metric in every protocol, and whether the paper's claim holds.

    Args:
        made: The table.
        key: Of the metric.
        pairs: A method, and the one that it is compared with.
    """
    column = next((column for column in made.columns if column.key == key), None)
    if column is not None:
        unit = "points of " if key in POINTS else ""
        for method, base in pairs:
            words = f"{method} against {base}, {unit}{_name(column)}"
            found = claim("", words, made, (method, base), key, tuple(IN_WORDS))
            if found is not None:
                here = dict(_with_orders(found, made, method, base, key))
                yield replace(found, paper=said(made, method, base, key) or "-", here=here)


def _with_orders(
    claim: Claim, made: Table, method: str, base: str, key: str
) -> Iterator[tuple[Protocol, str]]:
    """What the paper has no protocol for has no value to hold: its cells say which is better."""
    for protocol, words in claim.here.items():
        each = beside(made, protocol, method, base, key)
        told = protocol not in PAPERS and each is not None and len(each.pairs) >= FEW
        yield protocol, f"{words}, {each.judged()}" if told and each else words


def _name(column: Column) -> str:
    """What a metric is called in a sentence."""
    return heading(replace(column, better=None)).partition(" (")[0].replace(", ", " by ")


def every(made: Table, method: str, base: str) -> str:
    """By which of the paper's metrics a method is better, in both readings of its protocol."""
    parts = []
    for protocol in PAPERS:
        found: dict[str, list[str]] = {}
        for column in made.columns:
            each = beside(made, protocol, method, base, column.key)
            if column.key in OF_PAPER and column.better and each and len(each.pairs) >= FEW:
                words = direction(each.ratios, lower=each.lower)
                found.setdefault(words, []).append(_name(column))
        if found:
            told = (f"{words} by {', '.join(names)}" for words, names in sorted(found.items()))
            parts.append(f"{IN_WORDS[protocol].lower()} {', '.join(told)}")
    return f"{method} against {base}, by every metric: {'; '.join(parts)}." if parts else ""


def claim(
    section: str,
    words: str,
    made: Table,
    pair: tuple[str, str],
    key: str,
    protocols: Sequence[Protocol] = (*PAPERS, "matched"),
) -> Claim | None:
    """A claim in some protocols, judged in the paper's; None if nothing has been run of it."""
    found = {p: each for p in protocols if (each := beside(made, p, *pair, key))}
    if not found:
        return None
    unit = " points" if key in POINTS else ""
    here = {p: f"{each}{unit}" for p, each in found.items()}
    verdict = {p: found[p].judged() if p in found else "missing" for p in PAPERS}
    return Claim(section, words, said(made, *pair, key) or "better", here, in_both(verdict))


def in_both(verdict: dict[Protocol, str]) -> str:
    """A verdict in both readings, said once where it is the same."""
    if len(set(verdict.values())) == 1:
        return next(iter(verdict.values()))
    return "; ".join(f"{IN_WORDS[p].lower()}: {words}" for p, words in verdict.items())


def best_by_every(
    section: str, made: Table, pairs: Sequence[tuple[str, str]], papers: Sequence[bool]
) -> Claim | None:
    """How many metrics of how many pairs are better with every seed.

    Args:
        section: The section that the claim is from.
        made: The table.
        pairs: Methods, each with the one it is said to be better than.
        papers: Whether each of the paper's own values says so.
    """
    here: dict[Protocol, str] = {}
    for protocol in (*PAPERS, "matched"):
        found = [
            direction(each.ratios, lower=each.lower) == "better with every seed"
            for pair in pairs
            for column in made.columns
            if column.key in OF_PAPER and column.better
            if (each := beside(made, protocol, *pair, column.key)) and len(each.pairs) >= FEW
        ]
        if found:
            here[protocol] = f"{sum(found)} of {len(found)}"
    if not here:
        return None
    words = "MQ-VAE is better by every metric, with replacement and groups too"
    verdict: dict[Protocol, str] = {
        p: "missing" if p not in here else "holds" if _all(here[p]) else "does not hold"
        for p in PAPERS
    }
    paper = f"{sum(papers)} of {len(papers)}"
    return Claim(section, words, paper, here, in_both(verdict))


def _all(count: str) -> bool:
    some, _, whole = count.partition(" of ")
    return some == whole

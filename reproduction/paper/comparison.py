"""Methods beside each other: which runs that takes in each protocol."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reproduction.paper.few import Few
from reproduction.paper.further import Beginning
from reproduction.paper.methods import META_RATE, METHODS
from reproduction.paper.results import Results
from reproduction.paper.scales import Scale
from reproduction.paper.sections import Protocol
from reproduction.paper.work import Run

CLOSE = 0.03  # costs of a step that are this near each other count as the same


@dataclass(frozen=True)
class Comparison:
    """Methods on one data set.

    Attributes:
        scale: At which.
        task: "reconstruction" or "classification".
        dataset: Name of the data set.
        methods: By their names in `METHODS`.
        seeds: How many each row has.
        size: Number of codes and their dimensions; None for the scale's.
        protocols: In which they are compared.
        few: Images that they are trained on; None for all there are.
        tuned: The comparison that has chosen the matched rates; None for this one.
    """

    scale: Scale
    task: str
    dataset: str
    methods: Sequence[str]
    seeds: int
    size: tuple[int, int] | None = None
    protocols: Sequence[Protocol] = ("paper", "equal", "matched", "time")
    few: Few | None = None
    tuned: "Comparison | None" = None

    def rows(self, protocol: Protocol) -> list[str]:
        """The methods of a protocol: at equal time without the bound."""
        return [name for name in self.methods if protocol != "time" or METHODS[name].has_codes]

    def run(
        self, method: str, rate: float | None, seed: int, *, steps: int = 0, final: bool = False
    ) -> Run:
        """A run of it."""
        steps, size = steps or self.scale.steps(self.task, self.dataset), self.size
        if size and not METHODS[method].has_codes:  # has dimensions alone
            own = self.scale.settings[self.task]["quantizer"]["init_args"]
            size = None if size[1] == own["dim"] else (own.get("num_codes", 1024), size[1])
        named = (self.scale.name, self.task, self.dataset, method, rate, steps, seed, final)
        return Run(*named, size, self.few)

    def paper_rate(self, method: str) -> float | None:
        """The codebook's rate in our reading of the paper's protocol."""
        kind = METHODS[method].codebook_rate
        rates = {"meta": META_RATE, "network": self.scale.network_rate(self.task)}
        return None if kind is None else rates[kind]

    def rate(self, protocol: Protocol, method: str, results: Results) -> float | None:
        """The codebook's rate in a protocol.

        Raises:
            LookupError: if it cannot be told yet.
        """
        own = self.paper_rate(method)
        if protocol == "equal" and own is not None:
            return META_RATE
        return own if protocol in ("paper", "equal") else self.best_rate(method, results)

    def grid(self, method: str) -> list[float | None]:
        """What the matched protocol chooses from: the scale's, the network's, the paper's own."""
        own = self.paper_rate(method)
        network = self.scale.network_rate(self.task)
        return [*([None] if own is None else sorted({own, network, *self.scale.rates}))]

    def best_rate(self, method: str, results: Results) -> float | None:
        """The rate whose first seed is best on validation images, early in its run.

        From the paper's on, to whichever side is better, until both are worse.

        Raises:
            LookupError: if that has not been run yet, or none of it has worked.
        """
        where = self.tuned or self
        best, missing = where._walk(method, results)
        if missing:
            raise LookupError(f"{method}: nothing is known of {missing[0].words}")
        if "failed" in (results.get(where._judged(method, best)) or {}):
            raise LookupError(f"{method}: no rate worked")
        return best

    def _judged(self, method: str, rate: float | None) -> Run | Beginning:
        """What a rate is judged by; runs of few images are short."""
        run = self.run(method, rate, 0)
        return run if self.few else Beginning(run, self.scale.judged_after[self.task])

    def _walk(
        self, method: str, results: Results
    ) -> tuple[float | None, Sequence[Run | Beginning]]:
        """The best rate so far, and what must be run before that is certain."""
        grid = self.grid(method)
        if len(grid) == 1:
            return grid[0], []
        at = grid.index(self.paper_rate(method))
        while True:
            near = {rate: self._judged(method, rate) for rate in grid[max(at - 1, 0) : at + 2]}
            contents = {rate: results.get(work) for rate, work in near.items()}
            missing = [near[rate] for rate, content in contents.items() if content is None]
            best = grid[at] if missing else min(near, key=lambda rate: _loss(contents[rate]))
            if best == grid[at]:
                return best, missing
            at = grid.index(best)

    def runs(
        self, protocol: Protocol, method: str, results: Results, costs: Mapping[str, float]
    ) -> list[Run]:
        """The runs of a row, one for each seed.

        Raises:
            LookupError: if it cannot be told yet.
        """
        steps = self.scale.steps(self.task, self.dataset)
        rate = self.rate(protocol, method, results)
        if protocol == "time":
            ratio = costs[method]
            if ratio > 1 + CLOSE:
                steps = max(1, round(steps / ratio / 10)) * 10 if steps >= 100 else steps
        return [self.run(method, rate, seed, steps=steps, final=True) for seed in range(self.seeds)]

    def first_runs(self, results: Results) -> Iterator[tuple[Protocol, str, Run]]:
        """The first seed of every method in both readings and matched, as far as can be told."""
        for protocol in ("paper", "equal", "matched"):
            for method in self.methods:
                try:
                    first = self.runs(protocol, method, results, {})[0]
                except LookupError:
                    continue
                yield protocol, method, replace(first, final=False)

    def choices(self, results: Results) -> Iterator[Run | Beginning]:
        """What the matched protocol chooses from, as far as it can be told."""
        for method in self.methods:
            yield from (self.tuned or self)._walk(method, results)[1]

    def wanted(self, results: Results, costs: Mapping[str, float]) -> Iterator[Run | Beginning]:
        """All that it takes, as far as it can be told from what is there, the first seeds first."""
        classifier = self.run(self.methods[0], None, 0).classifier()
        if classifier is not None:
            yield classifier
        if "paper" in self.protocols:
            rows = [self.runs("paper", method, results, costs) for method in self.methods]
            for seed in range(self.seeds):
                yield from (row[seed] for row in rows)
        if not {"matched", "time"}.isdisjoint(self.protocols):
            yield from self.choices(results)
        for protocol in self.protocols:
            for method in self.rows(protocol):
                try:
                    yield from self.runs(protocol, method, results, costs)
                except LookupError:
                    continue


def _loss(content: Mapping[str, Any] | None) -> float:
    """On validation images, of a run that has a result."""
    return math.inf if content is None or "failed" in content else float(content["validation"])

"""A scale, its results, and what follows from them for every table and figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from reproduction.paper.comparison import Comparison
from reproduction.paper.further import MEASURE, Cost
from reproduction.paper.results import Results
from reproduction.paper.runner import Work
from reproduction.paper.scales import Scale
from reproduction.paper.sections import Claim, Section


@dataclass(frozen=True)
class Study:
    """What experiments are made of.

    Attributes:
        scale: Sizes.
        seeds: How many each row has.
        results: What is there.
        present: Data sets that can be had; None for all that results are of.
    """

    scale: Scale
    seeds: int
    results: Results
    present: frozenset[str] | None = None

    def datasets(self, names: Sequence[str]) -> list[str]:
        """Those of the paper's data sets that can be had, or what stands for all of them."""
        if self.scale.dataset is not None:
            return [self.scale.dataset]
        return [name for name in names if self.present is None or name in self.present]

    def comparison(self, task: str, dataset: str, methods: Sequence[str]) -> Comparison:
        """Methods on one data set."""
        return Comparison(self.scale, task, dataset, tuple(methods), self.seeds)

    def costing(self, task: str, methods: Sequence[str]) -> dict[str, Cost]:
        """What measures a step of each method but the one that is the measure."""
        return {
            method: Cost(self.scale.name, task, method)
            for method in methods
            if method != MEASURE[task]
        }

    def costs(self, task: str, methods: Sequence[str]) -> Mapping[str, float]:
        """What a step of each method costs, VQ-VAE's being 1, as far as it was measured."""
        found = {name: self.results.get(cost) for name, cost in self.costing(task, methods).items()}
        return {MEASURE[task]: 1.0} | {name: each["ratio"] for name, each in found.items() if each}


class Experiment:
    """One table or figure.

    Attributes:
        name: As a command takes it.
        title: One line.
        claim: What the paper says.
        page: The page it belongs on: the paper's, or that of the experiment of this name.
    """

    name: str
    title: str
    claim: str
    page: ClassVar[str] = "reproduction"

    @property
    def of_paper(self) -> bool:
        """Whether it belongs on the paper's page."""
        return self.page == Experiment.page

    def wants(self, study: Study) -> Iterator[Work]:
        """The work it takes, as far as it can be told from what is there."""
        raise NotImplementedError

    def section(self, study: Study) -> Section:
        """What it shows of what is there."""
        raise NotImplementedError

    def claims(self, study: Study) -> Iterator[Claim]:
        """What comes first on the page."""
        yield from ()


def placed(title: str, ran: Sequence[str], papers: Sequence[str]) -> str:
    """A title with the data sets that there are results of, where not all are the paper's.

    >>> placed("Table 1", ["fashion-mnist"], ["fashion-mnist", "cifar100"])
    'Table 1 (on Fashion-MNIST alone)'
    """
    from mqvae.report.words import dataset_title

    if not ran or list(ran) == list(papers):
        return title
    return f"{title} (on {', '.join(dataset_title(name) for name in ran)} alone)"

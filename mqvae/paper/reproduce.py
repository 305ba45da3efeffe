"""`mqvae reproduce`: names in, results and a page out."""

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from mqvae.errors import MqvaeError
from mqvae.paper.bounds import Bounds, Settled
from mqvae.paper.codebooks import Rules
from mqvae.paper.figures import (
    CostOfAStep,
    GradientDynamics,
    QualityByTime,
    ReconstructionsOfGans,
    SamplesOfPriors,
)
from mqvae.paper.levels import Levels
from mqvae.paper.methods import paper_value
from mqvae.paper.results import Results
from mqvae.paper.rows import FEW, IN_WORDS, paired, table
from mqvae.paper.runner import Work, carry_out
from mqvae.paper.scales import SCALES
from mqvae.paper.sections import Page, Protocol, Table
from mqvae.paper.study import Experiment, Study
from mqvae.paper.tables import PAIRS_1, TABLES
from mqvae.paper.work import Place
from mqvae.spelling import nearest

ORDER = (
    *(
        "table-1",
        "bounds",
        "table-2",
        "table-3",
        "table-4",
        "table-5",
        "table-6",
        "table-7",
        "table-8",
    ),
    *("figure-3", "figure-4", "figure-5", "figure-6", "appendix-f", "scale", "codebooks", "levels"),
)
EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in sorted(
        [
            *TABLES,
            CostOfAStep(),
            SamplesOfPriors(),
            QualityByTime(),
            ReconstructionsOfGans(),
            GradientDynamics(),
            Bounds(),
            Settled(),
            Rules(),
            Levels(),
        ],
        key=lambda each: ORDER.index(each.name),
    )
}
ALL = "all"


def published(scale: str) -> Path:
    """The results that came with the program."""
    return Path(str(resources.files("mqvae.paper") / "results" / scale))


def experiments(names: Sequence[str]) -> list[Experiment]:
    """What is asked for, in the page's order.

    Raises:
        ValueError: if there is no such table or figure.
    """
    known = [*EXPERIMENTS, ALL]
    for name in names:
        if name not in known:
            raise MqvaeError(
                f"there is no '{name}'.{nearest(name, known)} There are: {', '.join(known)}."
            )
    return [
        each
        for name, each in EXPERIMENTS.items()
        if name in names or each.page in names or (ALL in names and each.of_paper)
    ]


def present(chosen: Sequence[Experiment], root: str | None) -> dict[str, str]:
    """The data sets that experiments are of: why one cannot be had, or nothing."""
    from mqvae.data import load

    names = dict.fromkeys(
        name for each in chosen for name in getattr(each, "datasets", ("fashion-mnist",))
    )
    found = {}
    for name in names:
        try:
            load(name, "test", root=root)
            found[name] = ""
        except (FileNotFoundError, ValueError) as error:
            found[name] = str(error)
    return found


def carry_out_all(chosen: Sequence[Experiment], study: Study, place: Place, *, jobs: int) -> None:
    """Do all that is missing for these tables and figures, and what follows from it."""

    def wants(results: Results) -> list[Work]:
        return [work for each in chosen for work in each.wants(study)]

    carry_out(wants, study.results, place, jobs=jobs)


def pages(chosen: Sequence[Experiment], study: Study, names: Sequence[str]) -> Iterator[Page]:
    """What there is of these tables and figures, on the pages they belong on.

    Args:
        chosen: What is wanted.
        study: What is there.
        names: By which it was asked for.
    """
    scale, told = study.scale.name, dict(conditions(study))
    of_paper = [each for each in chosen if each.of_paper]
    if of_paper:
        names = [name for name in names if name == ALL or EXPERIMENTS[name].of_paper]
        again = shlex.join(["mqvae", "reproduce", *names, "--scale", scale])
        sections = [each.section(study) for each in of_paper]
        yield Page(scale, list(headline(study)), told, sections, [again])
    for name in dict.fromkeys(each.page for each in chosen if not each.of_paper):
        found = {each.name: each.section(study) for each in chosen if each.page == name}
        headlines: Sequence[str] = ()
        if name in found:
            headlines = found[name].verdict
            found[name] = replace(found[name], title="Figures", verdict=())
        asked = [name] if name in found else list(found)
        again = shlex.join(["mqvae", "reproduce", *asked, "--scale", scale])
        title = EXPERIMENTS[name].title
        yield Page(scale, headlines, told, list(found.values()), [again], name, title)


def conditions(study: Study) -> Iterator[tuple[str, str]]:
    """Sizes, hardware, dates."""
    scale = study.scale
    yield "Meant for", SCALES[scale.name]
    for task, settings in scale.settings.items():
        network = ", ".join(f"{k} {v}" for k, v in settings["network"]["init_args"].items())
        codes = settings["quantizer"]["init_args"]
        yield (
            task.capitalize(),
            f"{scale.steps(task):,} updates, batch {settings['data']['batch_size']}, {network}, "
            f"{codes.get('num_codes', 1024):,} codes of {codes['dim']}, network rate "
            f"{scale.network_rate(task):g}",
        )
    yield (
        "Matched rates",
        "of "
        + "".join(f"{rate:g}, " for rate in scale.rates)
        + "the network's rate and that of the paper's protocol: from the last one on to "
        "whichever side is better, until both neighbours are worse, by the first seed's loss on "
        "validation images after "
        + ", ".join(f"{steps:,} updates ({task})" for task, steps in scale.judged_after.items()),
    )
    yield "Seeds", str(study.seeds)
    contents = list(study.results.contents())
    for title, key in (("Device", "device"), ("Dates", "date")):
        values = sorted({str(each[key]) for each in contents if key in each})
        if values:
            ends = dict.fromkeys((values[0], values[-1]))
            yield title, " to ".join(ends) if title == "Dates" else "; ".join(values)
    versions = {
        ", ".join(f"{name} {version}" for name, version in each["versions"].items())
        for each in contents
        if "versions" in each
    }
    if versions:
        yield "Versions", "; ".join(sorted(versions))
    yield "Runs", f"{sum(each['asks']['kind'] == 'run' for each in contents):,}"
    yield "Times", "of whole runs, with others beside them; Table 4 compares what a step costs"


def headline(study: Study) -> Iterator[str]:
    """What a reader takes home, from Table 1 on Fashion-MNIST."""
    dataset = (study.datasets(("fashion-mnist",)) or [""])[0]
    if not dataset:
        return
    methods = next(each for each in TABLES if each.name == "table-1").methods
    comparison = study.comparison("reconstruction", dataset, methods)
    made = table(comparison, 1, study.results, study.costs("reconstruction", methods))
    if made is None:
        return
    found = {
        (protocol, method): list(_ratios(made, protocol, method, base))
        for protocol in ("matched", "paper", "time")
        for method, base in PAIRS_1
    }
    matched, paper = found["matched", "MQ-VAE"], found["paper", "MQ-VAE"]
    if min(len(matched), len(paper)) >= FEW and max(paper) < 1 <= min(matched):
        yield (
            "In the paper's protocol MQ-VAE is better than VQ-VAE, as the paper says. At matched "
            "codebook rates it is not: the gain is that of the rate, which the paper's protocol "
            "gives to MQ-VAE alone. A look-ahead on the same batch and the same loss leaves "
            "little to gain: the exact indirect term is close to one that merely lengthens the "
            "gradient of encoder and decoder."
        )
    for protocol in ("matched", "paper", "time"):
        parts = [
            f"{statistics.fmean(ratios):.2f} of {base}'s for {method} ({min(ratios):.2f} to "
            f"{max(ratios):.2f} over {len(ratios)} seeds{_of_paper(dataset, method, base)})"
            for method, base in PAIRS_1
            if len(ratios := found[protocol, method]) > 1
        ]
        if parts:
            yield f"{IN_WORDS[protocol]}: the MSE is {'; '.join(parts)}."


def _ratios(made: Table, protocol: Protocol, method: str, base: str) -> Iterator[float]:
    """A method's MSE over that of another, seed by seed."""
    rows = {row.method: row for row in made.rows if row.protocol == protocol}
    if method in rows and base in rows:
        yield from (ours / theirs for ours, theirs in paired(rows[method], rows[base], "mse"))


def _of_paper(dataset: str, method: str, base: str) -> str:
    ours, theirs = (paper_value(1, dataset, name, "mse") for name in (method, base))
    return f"; the paper {ours / theirs:.2f}" if ours and theirs else ""

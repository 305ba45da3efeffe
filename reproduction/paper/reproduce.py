"""Names of tables and figures in, results and a page out."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mqvae.errors import MqvaeError, did_you_mean
from reproduction.paper.bits import ErrorByBits
from reproduction.paper.bounds import Bounds, Settled
from reproduction.paper.codebooks import Rules
from reproduction.paper.curves import QualityByTime, SamplesOfPriors
from reproduction.paper.figures import CostOfAStep, GradientDynamics, ReconstructionsOfGans
from reproduction.paper.levels import Levels
from reproduction.paper.methods import METHODS, paper_value
from reproduction.paper.results import Results, file_name
from reproduction.paper.rows import table
from reproduction.paper.runner import Wants, Work, carry_out
from reproduction.paper.scales import SCALES
from reproduction.paper.sections import Page, Section
from reproduction.paper.study import Experiment, Study
from reproduction.paper.tables import TABLES
from reproduction.paper.taken import QUOTE, TAKEN
from reproduction.paper.verdicts import FEW, beside
from reproduction.paper.work import Place
from reproduction.rows import FOLDER

ORDER = (
    *("table-1", "bits", "table-2", "table-3", "table-4", "table-5", "table-6", "table-7"),
    *("table-8", "figure-3", "figure-4", "figure-5", "figure-6", "appendix-f", "algorithm-1"),
    *("appendix-i", "appendix-i-classifier", "bounds", "scale", "codebooks", "levels"),
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
            ErrorByBits(),
            Bounds(),
            Settled(),
            Rules(),
            Levels(),
        ],
        key=lambda each: ORDER.index(each.name),
    )
}
ALL = "all"
PROGRAM = ("python", "-m", "reproduction")


def published(scale: str) -> Path:
    """The file of committed results."""
    return FOLDER / "results" / ("paper.jsonl" if scale == "cpu" else f"paper-{scale}.jsonl")


def experiments(names: Sequence[str]) -> list[Experiment]:
    """What is asked for, in the page's order.

    Raises:
        ValueError: if there is no such table or figure.
    """
    known = [*EXPERIMENTS, ALL]
    for name in names:
        if name not in known:
            raise MqvaeError(
                f"there is no '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}."
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


def carry_out_all(
    chosen: Sequence[Experiment],
    study: Study,
    place: Place,
    *,
    jobs: int,
    methods: Sequence[str] = (),
) -> None:
    """Do all that is missing for these tables and figures, and what follows from it."""
    carry_out(wants(chosen, study, methods), study.results, place, jobs=jobs)


def wants(chosen: Sequence[Experiment], study: Study, methods: Sequence[str] = ()) -> Wants:
    """The work that these tables and figures take, as far as the study's results tell.

    Args:
        chosen: The tables and figures.
        study: What is there.
        methods: The rows that count; all if there are none.

    Raises:
        ValueError: if there is no such row.
    """
    for name in methods:
        if name not in METHODS:
            raise MqvaeError(
                f"there is no method '{name}'.{did_you_mean(name, METHODS)} There are: "
                f"{', '.join(METHODS)}."
            )

    def wanted(results: Results) -> list[Work]:
        works = [work for each in chosen for work in each.wants(study)]
        if not methods:
            return works
        rows = [work for work in works if _method(work) in methods]
        before = {file_name(need) for work in rows if (need := getattr(work, "needs", None))}
        return [work for work in works if work in rows or file_name(work) in before]

    return wanted


def _method(work: Work) -> str:
    """The row that a piece of work is for."""
    run: Any = getattr(work, "run", work)
    return str(run.method)


def pages(chosen: Sequence[Experiment], study: Study, names: Sequence[str]) -> Iterator[Page]:
    """What there is of these tables and figures, on the pages they belong on.

    Args:
        chosen: What is wanted.
        study: What is there.
        names: By which it was asked for.
    """
    scale = study.scale.name
    of_paper = [each for each in chosen if each.of_paper]
    if of_paper:
        names = [name for name in names if name == ALL or EXPERIMENTS[name].of_paper]
        again = shlex.join([*PROGRAM, *names, "--scale", scale])
        sections = [each.section(study) for each in of_paper]
        claims = [claim for each in of_paper for claim in each.claims(study)]
        told = dict(conditions(study, sections))
        said = list(headline(study))
        yield Page(scale, said, told, sections, [again], claims=claims, taken=TAKEN)
    for name in dict.fromkeys(each.page for each in chosen if not each.of_paper):
        found = {each.name: each.section(study) for each in chosen if each.page == name}
        headlines: Sequence[str] = ()
        if name in found:
            headlines = found[name].verdict
            found[name] = replace(found[name], title="Tables", verdict=())
        asked = [name] if name in found else list(found)
        again = shlex.join([*PROGRAM, *asked, "--scale", scale])
        title, sections = EXPERIMENTS[name].title, list(found.values())
        told = dict(conditions(study, sections))
        yield Page(scale, headlines, told, sections, [again], name, title)


def conditions(study: Study, sections: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """Sizes, hardware, dates."""
    scale = study.scale
    yield "Meant for", SCALES[scale.name]
    for task, settings in scale.settings.items():
        network = ", ".join(f"{k} {v}" for k, v in settings["network"]["init_args"].items())
        codes = settings["quantizer"]["init_args"]
        yield (
            task.capitalize(),
            f"{scale.steps(task):,} steps, batch {settings['data']['batch_size']}, {network}, "
            f"{codes.get('num_codes', 1024):,} codes of {codes['dim']}, network's learning rate "
            f"{scale.network_rate(task):g}",
        )
    yield (
        "Matched learning rates",
        "of "
        + "".join(f"{rate:g}, " for rate in scale.rates)
        + "the network's and that of our reading of the paper: from the last one on to "
        "whichever side is better, until both neighbours are worse, by the first seed's loss on "
        "validation images after "
        + ", ".join(f"{steps:,} steps ({task})" for task, steps in scale.judged_after.items()),
    )
    yield "Seeds", str(study.seeds)
    contents = list(study.results.contents())
    for title, key in (("Device", "device"), ("Dates", "date")):
        values = sorted({str(each[key]) for each in contents if key in each})
        if values:
            ends = dict.fromkeys((values[0], values[-1]))
            yield title, " to ".join(ends) if title == "Dates" else "; ".join(values)
    known = [each["versions"] for each in contents if "versions" in each]
    for name, characters in (("torch", None), ("python", None), ("commit", 9)):
        if values := sorted({each[name][:characters] for each in known if name in each}):
            yield name.capitalize(), ", ".join(values)
    if unknown := sum(each.get("tree") != "clean" for each in known):
        yield "Of no known commit", f"{unknown} results"
    named = {run for s in sections for t in s.tables for row in t.rows for run in row.runs}
    yield "Results", f"{len(named):,} named on this page, of {len(study.results):,}"
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
        protocol: beside(made, protocol, "MQ-VAE", "VQ-VAE", "mse")
        for protocol in ("paper", "equal", "matched")
    }
    one, both, matched = found["paper"], found["equal"], found["matched"]
    if one is None or both is None or matched is None:
        return
    if min(len(each.pairs) for each in (one, both, matched)) < FEW:
        return
    if max(one.ratios) < 1 <= min(both.ratios):
        yield (
            f"MQ-VAE's MSE is {one} times VQ-VAE's where VQ-VAE has one learning rate for "
            f"everything, and {both} times where both codebooks have the paper's 6e-2: on "
            "Fashion-MNIST at this size the gain is that of the codebook's learning rate."
        )
    yield f"The paper does not decide between the two readings. Appendix I, line 793: {QUOTE}"
    perplexities = [
        row.cells["perplexity"].mean
        for protocol in ("paper", "equal")
        for row in made.rows
        if (row.method, row.protocol) == ("VQ-VAE", protocol) and "perplexity" in row.cells
    ]
    papers = paper_value(1, dataset, "VQ-VAE", "perplexity")
    if len(perplexities) == 2 and papers:
        low, high = perplexities
        yield (
            "By the words “kept the same” every codebook has 6e-2. Indirect support for one "
            f"learning rate: VQ-VAE's perplexity is {low:.0f} with it, {papers:.1f} in the paper "
            f"and {high:.0f} at 6e-2."
        )

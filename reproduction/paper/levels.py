"""Images few enough to overfit on, and a codebook judged on other images; not in the paper."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reproduction.paper.codebooks import AVERAGES, FASHION, said
from reproduction.paper.comparison import Comparison
from reproduction.paper.few import LOSSES, Few
from reproduction.paper.methods import SMOOTHED_LOSS
from reproduction.paper.rows import TITLES, paired, table
from reproduction.paper.runner import Work
from reproduction.paper.sections import Line, Plot, Row, Section, Table
from reproduction.paper.study import Experiment, Study

WITHOUT_LOOKING = ("VQ-VAE", AVERAGES)
# Eq. 13 in full, with the task loss of the upper-level batch, which `Amortized` leaves out.
SAME, NEXT, HELD_OUT, SMOOTHED = (
    "MQ-VAE, kept",
    "MQ-VAE, kept, next batch above",
    "MQ-VAE, kept, held-out batch above",
    "MQ-VAE, kept, smoothed loss above",
)
LOOKING = {
    "classification": (SAME, NEXT, HELD_OUT, SMOOTHED),
    "reconstruction": (SAME, NEXT, HELD_OUT),  # a squared error has nothing to be smoothed
}
ABOUT = (
    "Where encoder and decoder overfit, a look-ahead may judge the codebook by what they have not "
    "learned by heart: by the next batch, or by one of {held_out:,} held-out images; or by a loss "
    "that does not reward certainty, cross-entropy with {smoothing:g} of the target shared by all "
    "classes. Held-out images are images more, so rules that do not look ahead are trained on all "
    "{both:,} as well. Rates are {rates}the network's or the paper protocol's, what is best on "
    "{both:,} images that no part of any run has seen."
)


class Levels(Experiment):
    """What judges the codebook: the network's own batch and loss, another batch, another loss."""

    name = "levels"
    title = "Where the levels differ"
    claim = ""
    page = "codebooks"
    datasets = (FASHION,)

    def _comparisons(self, study: Study, task: str) -> Iterator[Comparison]:
        """Some images for the network and some held out, then all of them for the network."""
        few = study.scale.few
        for dataset in study.datasets(self.datasets):
            steps = {**study.scale.steps_of, dataset: few["steps"][task]}
            scale = replace(study.scale, rates=few["rates"], steps_of=steps)
            images, held_out, side = few["images"], few["held_out"], few["side"]
            for methods, drawn in (
                ((*WITHOUT_LOOKING, *LOOKING[task]), Few(images, held_out, side)),
                (WITHOUT_LOOKING, Few(images + held_out, 0, side)),
            ):
                yield Comparison(
                    *(scale, task, dataset, methods, study.seeds),
                    protocols=("matched",),
                    few=drawn,
                )

    def wants(self, study: Study) -> Iterator[Work]:
        for task in LOOKING:
            comparisons = list(self._comparisons(study, task))
            for comparison in comparisons:
                yield from comparison.choices(study.results)
            for seed in range(study.seeds):
                for comparison in comparisons:
                    for method in comparison.methods:
                        try:
                            yield comparison.runs("matched", method, study.results, {})[seed]
                        except LookupError:
                            continue

    def section(self, study: Study) -> Section:
        tables, sentences, plots, missing = [], [], [], []
        for task in LOOKING:
            comparisons = list(self._comparisons(study, task))
            made = [table(each, None, study.results, {}) for each in comparisons]
            tables += [each for each in made if each is not None]
            missing += [] if any(made) else [f"{task.capitalize()}: not run."]
            sentences += list(_verdicts(task, made))
            plots += [plot for each in comparisons[:1] if (plot := _overfitting(study, each))]
        told = [_about(study.scale.few), *sentences] if tables else []
        return Section(self.name, self.title, self.claim, told, tables, plots, missing=missing)


def _about(few: Mapping[str, Any]) -> str:
    return ABOUT.format(
        held_out=few["held_out"],
        smoothing=SMOOTHED_LOSS["init_args"]["label_smoothing"],
        both=few["images"] + few["held_out"],
        rates=", ".join(f"{rate:g}" for rate in few["rates"]) + ", " if few["rates"] else "",
    )


def _verdicts(task: str, made: Sequence[Table | None]) -> Iterator[str]:
    """What a look-ahead adds, and what a batch of its own adds to it, over paired seeds."""
    key = LOSSES[task]
    some, all_of_them = (
        {row.method: row for row in each.rows if key in row.cells} if each else {} for each in made
    )
    overfit = some.get("VQ-VAE")
    if overfit is not None and f"training_{key}" in overfit.cells:
        yield (
            f"{task.capitalize()}: VQ-VAE's {TITLES[key][0]} is "
            f"{overfit.cells[f'training_{key}'].mean:.3g} on training images and "
            f"{overfit.cells[key].mean:.3g} on test images."
        )
    best, best_of_all = _best(some, key), _best(all_of_them, key)
    for what, method, base, rows in (
        (f"the look-ahead adds to {best}", SAME, best, some),
        ("the next batch above adds to the same batch", NEXT, SAME, some),
        ("held-out images above add to the same batch", HELD_OUT, SAME, some),
        (f"they add to {best_of_all} trained on them too", HELD_OUT, best_of_all, all_of_them),
        ("a smoothed loss above adds to the same loss", SMOOTHED, SAME, some),
    ):
        if method in some and base in rows and (words := _beside(some[method], rows[base], key)):
            yield f"{task.capitalize()}, what {what}: {words}."


def _best(rows: dict[str, Row], key: str) -> str:
    """The better of the rules that do not look ahead."""
    there = [name for name in WITHOUT_LOOKING if name in rows]
    return min(there, key=lambda name: rows[name].cells[key].mean, default="")


def _beside(row: Row, base: Row, key: str) -> str:
    ratios = [ours / theirs for ours, theirs in paired(row, base, key)]
    if not ratios:
        return ""
    words = said(ratios, TITLES[key][0].partition(" (")[0])
    if pairs := paired(row, base, "accuracy"):
        ours, theirs = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        words += f"; accuracy {ours:.1f}%, its {theirs:.1f}%"
    return words


def _overfitting(study: Study, comparison: Comparison) -> Plot | None:
    """The first seed's loss on the batches and on held-out images, where none learns from them."""
    lines = []
    for method in ("VQ-VAE", SAME, NEXT):
        try:
            run = comparison.runs("matched", method, study.results, {})[0]
        except LookupError:
            continue
        curve = (study.results.get(run) or {}).get("curve", {})
        for column, words in (("task", "training"), ("validation", "held out")):
            points = zip(curve.get("step", ()), curve.get(column, ()), strict=False)
            there = [(step, value) for step, value in points if value is not None]
            if there:
                lines.append(Line(f"{method}, {words}", *zip(*there, strict=True)))
    if not lines:
        return None
    return Plot(
        f"levels-{comparison.dataset}-{comparison.task}",
        f"{comparison.task}, {comparison.dataset}, seed 0",
        "update",
        TITLES[LOSSES[comparison.task]][0].partition(" (")[0],
        lines,
        log_y=True,
    )

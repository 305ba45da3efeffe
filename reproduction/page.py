"""The page of the rate-distortion study, from its results and a template."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reproduction.figures import Results
from reproduction.plots import draw
from reproduction.results import read
from reproduction.rows import FOLDER, Study

DOCS = FOLDER.parent / "docs"
FASHION, PHOTOS = "fashion-mnist", "photos"
FAMILIES = ("EMA + replacement", "Rate-aware, 4,096", "Rate-aware, 1,024", "VQ-VAE")
OTHERS = (
    *("mq-vae", "gumbel", "replace-1024", "transport-1024", "rate-8192-at-8.5", "fsq", "lfq"),
    *("bsq", "rotation", "cosine", "linear-map", "residual-2", "residual-4"),
    *("groups-2", "groups-4"),
)


def write(results_file: Path, docs: Path = DOCS) -> Path:
    """Write `rate-distortion.md` and its plots; returns the page.

    Args:
        results_file: Lines of results.
        docs: Folder of the page.
    """
    study = Study.load()
    results = Results(read(results_file), study.rows)
    plots = docs / "rate-distortion"
    for data, x, others in (
        (FASHION, "entropy", OTHERS),
        (FASHION, "prior_bits", OTHERS),
        (PHOTOS, "entropy", ()),  # too few photographs to train a PixelCNN on
    ):
        draw(results, plots / f"{data}-{x}.svg", x=x, data=data, families=FAMILIES, others=others)
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    page = docs / "rate-distortion.md"
    text = environment.get_template("rate-distortion.md").render(
        results=results,
        missing=_missing(study, results),
        commits=_commits(results),
        dates=sorted({line["date"] for line in results.by_run.values()}),
        number=len(results.by_run),
        hours=sum(sum(line["seconds"].values()) for line in results.by_run.values()) / 3600,
        devices=sorted({line["device"] for line in results.by_run.values()}),
        fashion=FASHION,
        photos=PHOTOS,
    )
    page.write_text(text, encoding="utf-8")
    return page


def _missing(study: Study, results: Results) -> dict[str, list[str]]:
    """Runs of the study without a result, and those without a prior, in words."""
    seeds: dict[str, dict[str, list[str]]] = {"runs": {}, "priors": {}}
    for task in study.tasks():
        line = results.by_run.get((task.row, task.data, task.seed))
        known = line["figures"] if line else {}
        kind = "priors" if line else "runs"
        if line is None or (task.prior is not None and "prior_bits" not in known):
            words = f"{study.rows[task.row]['label']}, {task.data}"
            of = seeds[kind].setdefault(words, [])
            if str(task.seed) not in of:
                of.append(str(task.seed))
    return {
        kind: [f"{words}: seed{'s' * (len(of) > 1)} {', '.join(of)}" for words, of in found.items()]
        for kind, found in seeds.items()
    }


def _commits(results: Results) -> dict[str, list[str]]:
    """Commits of mqvae, with the rows that were run at each, in the order of dates."""
    found: dict[str, list[str]] = {}
    for line in sorted(results.by_run.values(), key=lambda line: line["date"]):
        commit = line["versions"].get("commit", "")[:9] or "†"
        rows = found.setdefault(commit, [])
        if line["row"] not in rows:
            rows.append(line["row"])
    return found

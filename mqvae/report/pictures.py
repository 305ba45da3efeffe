"""What the runs have to show: strips of images in common columns, matrices of counts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mqvae.report.charts import Mark, mark
from mqvae.report.codebook import BESIDE, BETWEEN, Decoded
from mqvae.report.run import Picture, Run
from mqvae.report.strips import Strip, data_uri, encode, read_strip
from mqvae.report.words import enumerate_words, inside
from mqvae.runs.results import read_matrix

WRITTEN = 20  # classes up to which a matrix is a table of numbers
CODEBOOK = 400  # CSS pixels that a picture of codewords is wide at least
CODES = "Codes"  # what a row shows that is in the colours of codes
TIMES = 4  # errors are shown larger than they are
ERRORS = f"Error maps, {TIMES} times the absolute error"
SHADE = (76, 132, 204)  # seen on light and on dark pages


@dataclass(frozen=True)
class Row:
    """A strip with its label; where there is none, `shows` says why.

    Attributes:
        label: What or whose it is.
        detail: Small print under the label.
        shows: What it shows.
        strip: The images.
        run: Whose they are; None for references.
        group: Number of the references whose columns it has; None where there are none.
        places: Of codes, which codewords of the picture they are, (N, h, w, G).
    """

    label: str
    detail: str
    shows: str
    strip: Strip | None
    run: int | None = None
    group: int | None = None
    places: np.ndarray | None = None


@dataclass(frozen=True)
class Samples:
    """The strips of all runs, each with its image as a URI.

    Attributes:
        title: What they show.
        rows: The strips.
        aligned: A column is one image throughout.
        exact: They are what the runs wrote, pixel for pixel.
    """

    title: str
    rows: Sequence[tuple[Row, str]]
    aligned: bool
    exact: bool

    @property
    def coded(self) -> bool:
        """Whether there are codes among them."""
        return any(row.shows == CODES for row, _ in self.rows)

    @property
    def scale(self) -> float:
        """CSS pixels per image pixel at most."""
        return max(row.strip.scale for row, _ in self.rows if row.strip)


@dataclass(frozen=True)
class Codebook:
    """The codewords of one run, decoded.

    Attributes:
        mark: The run.
        words: What they show.
        uri: The picture.
        size: Of the picture, in pixels.
        order: The codes, group after group.
        chosen: How often each was chosen; none where that was not counted.
        groups: How many groups there are, a block of the picture each.
        choices: What those of a group add up to, shown or not.
    """

    mark: Mark
    words: str
    uri: str
    size: tuple[int, int]
    order: Sequence[int] = ()
    chosen: Sequence[int] = ()
    groups: int = 1
    choices: int = 0
    gaps = (BESIDE, BETWEEN)

    @property
    def width(self) -> int:
        """In CSS pixels: small ones are enlarged."""
        return self.size[0] * math.ceil(CODEBOOK / self.size[0])

    @property
    def height(self) -> int:
        return self.size[1] * math.ceil(CODEBOOK / self.size[0])


@dataclass(frozen=True)
class Codebooks:
    """Those there are, and sentences about the others."""

    shown: Sequence[Codebook]
    missing: Sequence[str]


@dataclass(frozen=True)
class Matrix:
    """Counts of one run: cells as (count, share of its row), or a picture of the shares."""

    mark: Mark
    caption: str
    alt: str
    rows: str
    columns: str
    cells: Sequence[Sequence[tuple[int, float]]]
    uri: str


def samples(
    runs: Sequence[Run], details: Sequence[str], decoded: Sequence[Decoded]
) -> Samples | None:
    """References on top, and under them what each run made of them, in the same columns.

    Args:
        runs: The runs.
        details: What stands under their names.
        decoded: What their weights show.

    Returns:
        None if no run has a strip.
    """
    listed = [[each for each in run.pictures or () if each.kind == "strip"] for run in runs]
    strips = {each.file: read_strip(each.file) for own in listed for each in own}
    groups = _groups(listed, strips)
    rows: list[Row] = []
    for number, members in enumerate(groups):
        names = enumerate_words([runs[i].name for i in sorted(members) if listed[i]])
        of = f"of {names}" if len(groups) > 1 else ""
        references = [each for each in listed[members[0]] if each.reference]
        found = [(p.title, strip) for p in references if (strip := strips[p.file])]
        group = number if found else None
        rows += [Row(title, of, title, strip, group=group) for title, strip in found]
        for i in sorted(members):
            own = [each for each in listed[i] if not each.reference]
            for p in own:
                detail = details[i] if len(own) == 1 else p.title
                shows = p.title if strips[p.file] else "no samples yet"
                rows.append(Row(runs[i].name, detail, shows, strips[p.file], i, group))
                if found and (errors := _errors(found[0][1], strips[p.file])):
                    rows.append(Row(runs[i].name, ERRORS, ERRORS, errors, i))
            if codes := decoded[i].codes:
                detail = f"{decoded[i].different:,} different codes"
                rows.append(Row(runs[i].name, detail, CODES, codes, i, group, decoded[i].places))
            further = decoded[i].further.items()
            rows += [Row(runs[i].name, title, ERRORS, strip, i) for title, strip in further]
            if not own and not (listed[i] or runs[i].pictures):  # else it has others, below
                shows = "no samples yet" if runs[i].pictures is None else "nothing to show"
                rows.append(Row(runs[i].name, details[i], shows, None, i))
    shown = [row for row in rows if row.strip]
    if not shown:
        return None
    # Areas of one colour: small as they are, and blurred by what makes photographs small.
    uris, exact = encode([r.strip.image() for r in rows if r.strip and r.shows != CODES])
    encoded = iter(uris)
    kinds = dict.fromkeys(row.shows for row in shown if row.shows != ERRORS)
    first, *others = kinds or [ERRORS]
    return Samples(
        title=enumerate_words([first, *map(inside, others)]),
        rows=[(row, _uri(row, encoded)) for row in rows],
        aligned=any(each.reference and strips[each.file] for own in listed for each in own),
        exact=exact,
    )


def _errors(original: Strip, made: Strip | None) -> Strip | None:
    """Absolute differences of the same images, the mean of all channels, enlarged."""
    if made is None or made.tiles.shape != original.tiles.shape:
        return None
    difference = np.abs(made.tiles.astype(float) - original.tiles).mean(-1, keepdims=True)
    return Strip(np.minimum(TIMES * difference, 255).astype(np.uint8))


def _uri(row: Row, encoded: Iterator[str]) -> str:
    if row.strip is None:
        return ""
    return data_uri(row.strip.image()) if row.shows == CODES else next(encoded)


def codebooks(runs: Sequence[Run], decoded: Sequence[Decoded]) -> Codebooks:
    """The codewords of all runs, and in words why others have none."""
    images = [Image.fromarray(each.codewords) for each in decoded if each.codewords is not None]
    encoded = zip(encode(images)[0], images, strict=True)
    shown: list[Codebook] = []
    missing: dict[str, list[str]] = {}
    for i, (run, each) in enumerate(zip(runs, decoded, strict=True)):
        if each.codewords is None:
            missing.setdefault(each.words, []).append(run.name)
            continue
        uri, image = next(encoded)
        order = np.empty((1, 0), int) if each.order is None else each.order
        found = Codebook(
            mark(run.name, i),
            each.words,
            uri,
            image.size,
            order=order.ravel().tolist(),
            chosen=[] if each.chosen is None else each.chosen.ravel().tolist(),
            groups=len(order),
            choices=int(run.counts[0].counts.sum()) if run.counts else 0,
        )
        shown.append(found)
    return Codebooks(
        shown, [f"{enumerate_words(names)}: {words}" for words, names in missing.items()]
    )


def _groups(
    listed: Sequence[Sequence[Picture]], strips: Mapping[Path, Strip | None]
) -> list[list[int]]:
    """Runs whose references are the same images; a run without any joins the first."""
    groups: dict[str, list[int]] = {}
    references = [
        "".join(
            f"{strip.tiles.shape} {strip.tiles.tobytes().hex()}"
            for each in own
            if each.reference and (strip := strips[each.file])
        )
        for own in listed
    ]
    for i in sorted(range(len(listed)), key=lambda i: not references[i]):
        groups.setdefault(references[i] or next(iter(groups), ""), []).append(i)
    return list(groups.values())


def matrices(runs: Sequence[Run]) -> dict[str, list[Matrix]]:
    """The matrices of all runs by their titles."""
    found: dict[str, list[Matrix]] = {}
    for i, run in enumerate(runs):
        for picture in run.pictures or ():
            counts = read_matrix(picture.file) if picture.kind == "matrix" else None
            if counts is not None:
                found.setdefault(picture.title, []).append(_matrix(run, i, picture, counts))
    return found


def _matrix(run: Run, index: int, picture: Picture, counts: np.ndarray) -> Matrix:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    caption = f"Down: {picture.rows}, across: {picture.columns}. Shade: share of its row."
    cells, uri = [], ""
    if max(counts.shape) <= WRITTEN:
        pairs = zip(counts.tolist(), shares.tolist(), strict=True)
        cells = [list(zip(row, shaded, strict=True)) for row, shaded in pairs]
    else:
        image = np.empty((*counts.shape, 4), np.uint8)
        image[..., :3] = SHADE
        image[..., 3] = (255 * shares).round()
        uri = data_uri(Image.fromarray(image))
    height, width = counts.shape
    alt = f"{run.name}: {picture.title}, {height} by {width}"
    if height == width:
        alt += f", {np.trace(counts) / max(counts.sum(), 1):.1%} on the diagonal"
    return Matrix(mark(run.name, index), caption, alt, picture.rows, picture.columns, cells, uri)

"""The page as Markdown, and the files that it shows."""

import re
from collections.abc import Sequence

from mqvae.errors import MqvaeError
from mqvae.paper.cells import (
    DEBUG,
    LEGEND,
    SHORT,
    Shown,
    definitions,
    heading,
    notes,
    protocols,
    rate,
    seconds,
    shown,
    updates,
)
from mqvae.paper.plots import draw, standalone
from mqvae.paper.sections import PROTOCOLS, Page, Row, Section, Table


def markdown(page: Page) -> str:
    """The page as GitHub shows it; its `files` lie in a folder of its name."""
    lines = [f"# {page.title}: scale `{page.scale}`", ""]
    if page.scale == "debug":
        lines += [f"> {DEBUG}", ""]
    if page.headline:
        lines += [f"**{prose(page.headline[0])}**", ""]
    lines += _bullets(page.headline[1:])
    if page.conditions:
        lines += ["Conditions:", ""]
        lines += _bullets([f"{name}: {value}" for name, value in page.conditions.items()])
    if used := protocols(page):
        lines += ["Protocols:", "", *_bullets([PROTOCOLS[each] for each in used])]
        lines += [prose(LEGEND), ""]
    for section in page.sections:
        lines += _section(section, page.name)
    if page.commands:
        lines += ["## Commands", "", "```sh", *page.commands, "```", ""]
    return "\n".join(lines)


def files(page: Page) -> dict[str, bytes]:
    """What the Markdown shows: plots as SVG, strips of images as PNG, by name.

    Raises:
        ValueError: two of them have one name, or a name is not one of a file.
    """
    found: dict[str, bytes] = {}
    for section in page.sections:
        plots = {f"{d.plot.name}.svg": standalone(d).encode() for d in draw(section)}
        images = {image_name(section, i): image.png for i, image in enumerate(section.images)}
        for name, content in [*plots.items(), *images.items()]:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise MqvaeError(
                    f"{name!r} cannot be a file's name: expected letters, digits, '.', '-' and "
                    "'_'. Rename the plot or the section."
                )
            if name in found:
                raise MqvaeError(f"two plots are named {name!r}: give each a name of its own.")
            found[name] = content
        if len(plots) < len(section.plots):
            raise MqvaeError(f"two plots of {section.name} have one name: give each its own.")
    return found


def image_name(section: Section, place: int) -> str:
    """The file of a section's image."""
    return f"{section.name}-images-{place + 1}.png"


def prose(text: str, *, cell: bool = False) -> str:
    """A sentence that Markdown shows as it is; code between backticks stays code.

    >>> prose("1 < 2 * a_b, see `a_*`")
    '1 &lt; 2 \\\\* a\\\\_b, see `a_*`'
    """
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    for i in range(0, len(parts), 2):
        plain = parts[i].replace("&", "&amp;").replace("<", "&lt;")
        parts[i] = re.sub(r"([\\`*_\[\]~$])", r"\\\1", plain)
    joined = "".join(parts)
    return joined.replace("|", "\\|") if cell else joined


def _section(section: Section, folder: str) -> list[str]:
    lines = [f"## {prose(section.title)}", ""]
    if section.claim:
        lines += [f"The paper: {prose(section.claim)}", ""]
    if len(section.verdict) == 1:
        lines += [f"**Here:** {prose(section.verdict[0])}", ""]
    elif section.verdict:
        lines += ["**Here:**", "", *_bullets(section.verdict)]
    for table in section.tables:
        lines += _table(table)
    for plot in section.plots:
        text = prose(f"{plot.title}: {plot.y} over {plot.x}")
        lines += [f"**{prose(plot.title)}**", "", f"![{text}]({folder}/{plot.name}.svg)", ""]
    if section.images:
        lines += ["| | |", "|:--|:--|"]
        for i, image in enumerate(section.images):
            title = prose(image.title, cell=True)
            lines.append(f"| {title} | ![{title}]({folder}/{image_name(section, i)}) |")
        lines.append("")
    if section.missing:
        lines += ["Missing:", "", *_bullets(section.missing)]
    return lines


def _table(table: Table) -> list[str]:
    heads = ["Method", "Protocol", *map(heading, table.columns), "Updates"]
    lines = [
        f"### {prose(table.title)}",
        "",
        _line([prose(head, cell=True) for head in heads]),
        "|:--|:--|" + "--:|" * (len(table.columns) + 1),
    ]
    for row, cells in zip(table.rows, shown(table), strict=True):
        method = prose(row.method, cell=True)
        lines.append(_line([method, _protocol(row), *map(_cell, cells), _cost(row)]))
    lines.append("")
    lines += _bullets(notes(table))
    if told := definitions(table):
        lines += [f"<sub>{prose(told)}</sub>", ""]
    return lines + _runs(table)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Shown) -> str:
    """Ours, and below it the paper's in small print."""
    ours = " ".join(filter(None, (cell.value, cell.ratio)))
    paper = " ".join(filter(None, (cell.paper, cell.paper_ratio)))
    return _stacked(ours, paper and f"paper {paper}")


def _protocol(row: Row) -> str:
    return _stacked(SHORT[row.protocol], "" if row.rate is None else f"rate {rate(row.rate)}")


def _cost(row: Row) -> str:
    return _stacked(updates(row), seconds(row) if row.seconds else "")


def _stacked(large: str, small: str) -> str:
    # A cell that broke its lines by itself would mix ours with the paper's.
    lines = [large, f"<sub>{small}</sub>"] if small else [large]
    return "<br>".join(lines).replace(" ", "\N{NO-BREAK SPACE}")


def _runs(table: Table) -> list[str]:
    """Which results each row was made of."""
    lines = [
        f"* {prose(f'{row.method}, {SHORT[row.protocol]}')}: "
        + ", ".join(f"`{name}`" for name in row.runs)
        for row in table.rows
        if row.runs
    ]
    if not lines:
        return []
    return ["<details><summary>Runs of this table</summary>", "", *lines, "", "</details>", ""]


def _bullets(sentences: Sequence[str]) -> list[str]:
    return [*(f"* {prose(sentence)}" for sentence in sentences), ""] if sentences else []

"""The page as Markdown, with a page for each section of several, and the files that they show."""

import re
from collections.abc import Mapping, Sequence

from mqvae.errors import MqvaeError
from reproduction.paper.cells import (
    DEBUG,
    LEGEND,
    SHORT,
    Shown,
    definitions,
    groups,
    heading,
    notes,
    parts,
    protocols,
    rate,
    runs,
    seconds,
    shown,
    steps,
)
from reproduction.paper.plots import draw, standalone
from reproduction.paper.sections import PROTOCOLS, Claim, Page, Row, Section, Table


def markdown(page: Page) -> dict[str, str]:
    """File -> what GitHub shows; pictures and pages of sections lie in a folder of the page's name.

    A page of one section has it on it, as it has one of its own name; others have a page each.
    """
    here = [s for s in page.sections if s.name == page.name or len(page.sections) == 1]
    apart = [s for s in page.sections if s not in here]
    own = {section.name: f"{page.name}/{section.name}.md" for section in apart}
    lines = [f"# {page.title}: scale `{page.scale}`", ""]
    if page.scale == "debug":
        lines += [f"> {DEBUG}", ""]
    lines += _claims(page.claims, own)
    if page.headline:
        lines += [f"**{prose(page.headline[0])}**", ""]
        lines += [f"{prose(sentence)}\n" for sentence in page.headline[1:]] if page.claims else []
        lines += _bullets(page.headline[1:] if not page.claims else ())
    for section in here:
        lines += _section(section, f"{page.name}/")
    if apart:
        lines += ["Pages with claims, tables, pictures and what is missing:", ""]
        lines += [f"* [{prose(s.title)}]({own[s.name]})" for s in apart] + [""]
    how = _bullets([f"{name}: {value}" for name, value in page.conditions.items()])
    if used := protocols(page.sections, page.claims):
        how += [*_bullets([PROTOCOLS[each] for each in used]), prose(LEGEND), ""]
    lines += _folded("Sizes, protocols, machines", how)
    if page.taken:
        lines += ["## What the paper does not say, and what we took", ""]
        lines += _bullets([f"{name}: {value}" for name, value in page.taken.items()])
    if page.commands:
        lines += ["## Commands", "", "```sh", *page.commands, "```", ""]
    found = {f"{page.name}.md": lines}
    for section in apart:
        used = protocols([section])
        told = _bullets([PROTOCOLS[each] for each in used]) + ([prose(LEGEND), ""] if used else [])
        found[own[section.name]] = [
            *(_section(section, "", "#")),
            *_folded("Protocols", told),
            f"[{prose(page.title)}](../{page.name}.md): all tables and figures, sizes, machines.",
            "",
        ]
    return {name: "\n".join(lines) for name, lines in found.items()}


def _claims(claims: Sequence[Claim], pages: Mapping[str, str]) -> list[str]:
    """Each claim, the paper's value, ours, a verdict; its section is a link if it has a page."""
    if not claims:
        return []
    shown = [p for p in SHORT if any(p in claim.here for claim in claims)]
    heads = ["Claim", "Paper", *(f"Here, {SHORT[p]}" for p in shown), "Verdict"]
    lines = [_line(heads), "|:--|:--|" + ":--|" * (len(shown) + 1)]
    for claim in claims:
        name = prose(claim.claim, cell=True)
        if claim.section:
            said, own = claim.section.replace("-", " "), pages.get(claim.section)
            name += f" ([{said}]({own}))" if own else f" ({said})"
        here = [claim.here.get(p, "-") for p in shown]
        cells = [claim.paper, *here, claim.verdict]
        lines.append(_line([name, *(prose(cell, cell=True) for cell in cells)]))
    return [*lines, ""]


def _folded(summary: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    return [f"<details><summary>{summary}</summary>", "", *lines, "</details>", ""]


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
    >>> prose("+ replace: a bullet's text, not a bullet")
    "\\\\+ replace: a bullet's text, not a bullet"
    """
    found = re.split(r"(`[^`]+`)", " ".join(text.split()))
    for i in range(0, len(found), 2):
        plain = found[i].replace("&", "&amp;").replace("<", "&lt;")
        found[i] = re.sub(r"([\\`*_\[\]~$]|^[+#-](?= ))", r"\\\1", plain)
    joined = "".join(found)
    return joined.replace("|", "\\|") if cell else joined


def _section(section: Section, folder: str, level: str = "##") -> list[str]:
    lines = [f"{level} {prose(section.title)}", ""]
    if section.claim:
        lines += [f"The paper: {prose(section.claim)}", ""]
    lines += _claims(section.judged, {})
    if len(section.verdict) == 1:
        lines += [f"**Here:** {prose(section.verdict[0])}", ""]
    elif section.verdict:
        lines += ["**Here:**", "", *_bullets(section.verdict)]
    for table in section.tables:
        if not table.folded:
            lines += _table(table)
    for plot in section.plots:
        text = prose(f"{plot.title}: {plot.y} over {plot.x}")
        lines += [f"**{prose(plot.title)}**", "", f"![{text}]({folder}{plot.name}.svg)", ""]
    if section.images:
        lines += ["| | |", "|:--|:--|"]
        for i, image in enumerate(section.images):
            title = prose(image.title, cell=True)
            lines.append(f"| {title} | ![{title}]({folder}{image_name(section, i)}) |")
        lines.append("")
    if section.missing:
        lines += ["Missing:", "", *_bullets(section.missing)]
    for table in section.tables:
        if table.folded:
            lines += _folded(f"Every metric: {prose(table.title)}", _table(table))
    return lines


def _table(table: Table) -> list[str]:
    lines = [] if table.folded else [f"**{prose(table.title)}**", ""]
    cells = shown(table)
    several = len(dict(groups(table))) > 1
    for protocol, rows, columns in parts(table):
        if several and SHORT[protocol]:
            lines += [f"*{SHORT[protocol]}*", ""]
        timed = columns[-1] == len(table.columns) - 1 and any(table.rows[i].steps for i in rows)
        heads = ["Method", *(heading(table.columns[i]) for i in columns), *["Steps"] * timed]
        lines.append(_line([prose(head, cell=True) for head in heads]))
        lines.append("|:--|" + "--:|" * (len(heads) - 1))
        for i in rows:
            row = table.rows[i]
            rated = "" if row.rate is None else f"learning rate {rate(row.rate)}"
            name = prose(row.method, cell=True)
            name += f"<br>{_stacked('', rated)}" if rated else ""
            values = [name, *(_cell(cells[i][j]) for j in columns), *[_cost(row)] * timed]
            lines.append(_line(values))
        lines.append("")
    lines += _bullets(notes(table))
    if told := definitions(table):
        lines += [f"<sub>{prose(told)}</sub>", ""]
    named = _runs(table)
    return lines + (["Runs:", "", *named] if table.folded and named else _folded("Runs", named))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Shown) -> str:
    """Ours, and below it the paper's, or what is to be known of it, in small print."""
    ours = " ".join(filter(None, (cell.value, cell.ratio)))
    paper = " ".join(filter(None, (cell.paper, cell.paper_ratio)))
    return _stacked(ours, f"paper {paper}" if paper else cell.detail)


def _cost(row: Row) -> str:
    return _stacked(steps(row), seconds(row) if row.seconds else "")


def _stacked(large: str, small: str) -> str:
    # A cell that broke its lines by itself would mix ours with the paper's.
    lines = [large, *([f"<sub>{small}</sub>"] if small else [])]
    return "<br>".join(filter(None, lines)).replace(" ", "\N{NO-BREAK SPACE}")


def _runs(table: Table) -> list[str]:
    """Which results each row was made of."""
    lines = [
        f"* {prose(words)}: {', '.join(f'`{name}`' for name in names)}"
        for words, names in runs(table)
    ]
    return [*lines, ""] if lines else []


def _bullets(sentences: Sequence[str]) -> list[str]:
    return [*(f"* {prose(sentence)}" for sentence in sentences), ""] if sentences else []

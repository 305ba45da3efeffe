"""The files that the page is: Markdown with its plots and images, and one HTML file."""

import re
from pathlib import Path

from mqvae.files import write_whole
from reproduction.paper.html import html
from reproduction.paper.markdown import files, markdown
from reproduction.paper.sections import Page


def write_page(page: Page, out: Path) -> list[Path]:
    """Page -> NAME.md, what it shows and leads to under NAME/, and NAME.html.

    The same page gives the same bytes. Each file is written whole or not at all; what the previous
    NAME.md showed and this one does not is removed.

    Args:
        page: What it says.
        out: Folder; it is made if it is not there.

    Returns:
        The Markdown and the HTML file.

    Raises:
        ValueError: two plots have one name, or an image is not one.
    """
    out = Path(out)
    pages = {**markdown(page), f"{page.name}.html": html(page)}
    pictures = {f"{page.name}/{name}": content for name, content in files(page).items()}
    stale = _shown(out, page.name) - pages.keys() - pictures.keys()
    (out / page.name).mkdir(parents=True, exist_ok=True)
    for name, content in (pictures | pages).items():
        write_whole(out / name, content)
    for name in sorted(stale):
        (out / name).unlink(missing_ok=True)
    return [out / f"{page.name}.{suffix}" for suffix in ("md", "html")]


def _shown(out: Path, name: str) -> set[str]:
    """What a page and those of its sections show and lead to, as paths below `out`."""
    found = _links(out / f"{name}.md", name)
    return found.union(*(_links(out / each, name) for each in found if each.endswith(".md")))


def _links(file: Path, folder: str) -> set[str]:
    """The pictures and pages in `folder` that a page there or beside it names."""
    if not file.is_file():
        return set()
    text = file.read_text(encoding="utf-8", errors="replace")
    names = re.findall(rf"\]\((?:{folder}/)?(\w[\w.-]*\.(?:svg|png|md))\)", text)
    return {f"{folder}/{each}" for each in names}

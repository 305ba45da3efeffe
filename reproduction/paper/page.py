"""The files that the page is: Markdown with its plots and images, and one HTML file."""

import re
from pathlib import Path

from mqvae.files import write_whole
from reproduction.paper.html import html
from reproduction.paper.markdown import files, markdown
from reproduction.paper.sections import Page


def write_page(page: Page, out: Path) -> list[Path]:
    """Page -> NAME.md, what it shows under NAME/, and NAME.html.

    The same page gives the same bytes. Each file is written whole or not at all; pictures that
    the previous NAME.md showed and this one does not are removed.

    Args:
        page: What it says.
        out: Folder; it is made if it is not there.

    Returns:
        The Markdown and the HTML file.

    Raises:
        ValueError: two plots have one name, or an image is not one.
    """
    out = Path(out)
    pictures = files(page)
    pages = {f"{page.name}.md": markdown(page), f"{page.name}.html": html(page)}
    folder = out / page.name
    folder.mkdir(parents=True, exist_ok=True)
    stale = _shown(out, page.name) - pictures.keys()
    for name, content in pictures.items():
        write_whole(folder / name, content)
    for name, page_text in pages.items():
        write_whole(out / name, page_text)
    for name in sorted(stale):
        (folder / name).unlink(missing_ok=True)
    return [out / name for name in pages]


def _shown(out: Path, name: str) -> set[str]:
    """The pictures that a page shows."""
    file = out / f"{name}.md"
    if not file.is_file():
        return set()
    text = file.read_text(encoding="utf-8", errors="replace")
    return set(re.findall(rf"\]\({name}/(\w[\w.-]*\.(?:svg|png))\)", text))

"""How objects look in a notebook."""

from collections.abc import Mapping
from html import escape


def html_table(title: str, items: Mapping[str, str]) -> str:
    """A table of names and what they are, as notebooks show objects."""
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in items.items()
    )
    return f'<table><caption style="text-align:left">{escape(title)}</caption>{rows}</table>'

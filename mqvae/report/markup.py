"""HTML elements that escape whatever is not HTML already."""

from __future__ import annotations

import re
from html import escape

VOID = frozenset({"br", "hr", "img"})


class Html(str):
    """Text that is HTML already; every other string is escaped on its way into an element."""


def text(child: str) -> str:
    """Escape `child` unless it is HTML.

    >>> text("a < b"), text(Html("<br>"))
    ('a &lt; b', '<br>')
    """
    return child if isinstance(child, Html) else escape(child, quote=True)


def element(name: str, *children: str, **attributes: str | int | None) -> Html:
    """One element; an attribute that is None is left out, `class_` and `aria_label` lose their `_`.

    >>> element("td", "R&D", class_="number")
    '<td class="number">R&amp;D</td>'
    """
    written = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{''.join(map(text, children))}</{name}>")


def join(children: list[Html], separator: str = "") -> Html:
    """Elements one after another, `separator` (escaped) between them."""
    return Html(text(separator).join(children))


def breakable(name: str) -> Html:
    """A dotted name that may wrap behind its dots.

    >>> breakable("data.side")
    'data.<wbr>side'
    """
    return Html(re.sub(r"(?<=\w)\.(?=[a-zA-Z_])", ".<wbr>", text(name)))


def table(caption: str, head: list[Html], rows: list[list[Html]], *, class_: str = "") -> Html:
    """A table in a box of its own that scrolls sideways, so that a wide one never widens the page.

    The box takes the focus: without it nobody could scroll it from a keyboard.
    """
    body = [element("tr", *row) for row in rows]
    return element(
        "div",
        element(
            "table",
            element("caption", element("span", caption)),
            element("thead", element("tr", *head)),
            element("tbody", *body),
            class_=class_ or None,
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )

"""What the site adds to the pages: the commands' own help, mathematics, files from beside docs/."""

import html
import importlib
import inspect
import io
import json
import logging
import os
import posixpath
import re
import textwrap
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mqvae.cli import COMMANDS, main

# Where a code host has them; links from docs/ to them hold on the site too.
BESIDE = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/*.md",
    "benchmarks/*.py",
    "campaigns/*.py",
    "examples/*",
]

NOTEBOOKS = ["tutorial.md"]

log = logging.getLogger("mkdocs.hooks")  # a warning ends a strict build


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    for path in sorted(path for pattern in BESIDE for path in root.glob(pattern)):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for page in NOTEBOOKS:
        text = (Path(config.docs_dir) / page).read_text(encoding="utf-8")
        name = page.replace(".md", ".ipynb")
        files.append(File.generated(config, name, content=json.dumps(notebook(text), indent=1)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    # Code hosts read Markdown inside of HTML unasked.
    markdown = markdown.replace("<details>", '<details markdown="1">')
    markdown = re.sub(INDENTED, fenced, markdown, flags=re.MULTILINE)
    if uri in ("reference/commands.md", "reference/commands-codes.md"):
        markdown += commands(of_codes=uri.endswith("-codes.md"))
    elif uri.startswith("reference/"):
        first = re.search(r"^(?:::: |## )", markdown, re.MULTILINE)
        if first is not None:
            at = first.start()
            markdown = f"{markdown[:at]}{summary(markdown)}\n\n{markdown[at:]}"
    if uri in NOTEBOOKS:
        there = posixpath.basename(uri).replace(".md", ".ipynb")
        markdown = markdown.replace("\n\n", f"\n\n[As a notebook]({there})\n\n", 1)
    beside = page.file.generated_by is not None
    home = posixpath.dirname(uri if beside else f"docs/{uri}")
    markdown = re.sub(
        r"(?<=\]\()(?!\w+:)[^)\s#]+", lambda link: site_link(link[0], home, uri), markdown
    )
    # On a code host a link is called by its file, here by its page.
    return re.sub(
        r"\[[\w/.-]+\.md\](?=\(([^)\s#]+))",
        lambda link: f"[{title(link[1], uri, files) or link[0][1:-1]}]",
        markdown,
    )


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    pattern = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    content = re.sub(pattern, lambda found: mathml(found[2], found[1], page), content, flags=re.S)
    # A line ends neither within an option nor after its dashes.
    content = re.sub(
        r"(?<!<pre>)<code>[^<]*--[^<]*</code>",
        lambda code: re.sub(r"--\w[\w.-]*", r'<span class="option">\g<0></span>', code[0]),
        content,
    )
    # The names of tests are for who reads the code.
    content = re.sub(
        r"<code>(test_\w+\.py::\w+)</code>", r'<abbr title="tests: \1">test</abbr>', content
    )
    # A picture leads to itself, to be enlarged.
    content = re.sub(r'(?<!>)<img [^>]*src="([^"]+)"[^>]*>', r'<a href="\1">\g<0></a>', content)
    return re.sub(r"<table>.*?</table>", lambda table: cards(table[0]), content, flags=re.S)


INDENTED = r"(?<=\n\n)(?: {4}[^\n]*\n(?:\n(?= {4}))?)+"
"""A block of code without a language, outside of lists."""

SHELL = ("$", "MQVAE", "apt-get", "cd", "git", "make", "mqvae", "pip", "python", "torchrun")


def fenced(found: re.Match[str]) -> str:
    """An indented block of code with its language, to be coloured."""
    text = textwrap.dedent(found[0]).strip("\n")
    before = found.string[: found.start()].rstrip().rpartition("\n")[2]
    if before.lstrip().startswith(("* ", "- ")) or re.match(r"\d+\. | {2}", before):
        return found[0]  # of a list
    if text.startswith(SHELL) and not text.startswith("mqvae: "):
        language = "bash"
    elif re.match(r"[a-z_]+:( |$)", text, re.MULTILINE) and not text.startswith("mqvae: "):
        language = "yaml"
    else:
        language = "python" if re.match(r"from \w|import \w|[\w.]+( = |\()", text) else "text"
    return f"```{language}\n{text}\n```\n"


def cards(table: str) -> str:
    """A table that has whole sentences beside its first column: a phone shows rows one by one."""
    titles = [plain(title) for title in re.findall(r"<th[^>]*>(.*?)</th>", table, re.S)]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in rows]
    long = any(len(plain(cell)) > LONG for row in cells for cell in row[1:])
    if len(titles) < 3 or not long:
        return table

    def labelled(row: re.Match[str]) -> str:
        each = iter(titles)
        return re.sub("<td", lambda _: f'<td data-title="{html.escape(next(each))}"', row[0])

    return re.sub(r"<tr>.*?</tr>", labelled, table, flags=re.S).replace(
        "<table", "<table data-cards"
    )


LONG = 50
"""Letters of a cell that is a sentence."""


def plain(cell: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", cell)).strip()


def site_link(link: str, home: str, uri: str) -> str:
    """A link of a page in the folder `home` of the repository, as it is where docs/ is the root."""
    there = posixpath.normpath(posixpath.join(home, link)).removeprefix("docs/")
    return posixpath.relpath(there, posixpath.dirname(uri) or ".")


def title(link: str, uri: str, files: Files) -> str | None:
    """What the page is called that `link` on the page `uri` leads to."""
    there = files.get_file_from_path(
        posixpath.normpath(posixpath.join(posixpath.dirname(uri), link))
    )
    heading = there and re.match(r"# ([^:\n]+)", there.content_string)
    return f"*{heading[1]}*" if heading else None


def mathml(tex: str, element: str, page: Page) -> str:
    """MathML of what stands between dollars; browsers draw it without a script."""
    display = "block" if element == "div" else "inline"
    result = convert(html.unescape(tex).strip(), display=display)
    # A bar of a norm would stretch to what its exponent needs.
    result = result.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;')
    if unknown := re.search(r"\\[A-Za-z]+", result):
        log.warning("%s: latex2mathml does not know %s", page.file.src_uri, unknown[0])
    return f"<div>{result}</div>" if element == "div" else result


def notebook(text: str) -> dict[str, object]:
    """A page as a Jupyter notebook: what it types and its Python are cells of code."""
    cells: list[dict[str, object]] = []
    code = r"^```python\n.*?^```$|^(?: {4}mqvae [^\n]*\n?)+"
    at = 0
    for found in [*re.finditer(code, text, re.DOTALL | re.MULTILINE), None]:
        prose = text[at : found.start() if found else None].strip()
        if prose:  # links lead nowhere from where a notebook lies
            prose = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", prose)
            cells.append({"cell_type": "markdown", "metadata": {}, "source": prose})
        if found is None:
            break
        at = found.end()
        typed = found[0].strip("\n")
        lines = typed.splitlines()
        source = "\n".join(
            lines[1:-1] if typed.startswith("```") else [f"!{line.strip()}" for line in lines]
        )
        cells.append(
            {
                "cell_type": "code",
                "metadata": {},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
        )
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def summary(markdown: str) -> str:
    """A table of what a page of the reference has, each with the first line of its docstring."""
    rows = ["| name | what it is |", "|---|---|"]
    for path in re.findall(r"^::: ([\w.]+)$", markdown, re.MULTILINE):
        module, _, name = path.rpartition(".")
        line = (inspect.getdoc(getattr(importlib.import_module(module), name)) or "").split("\n")[0]
        rows.append(f"| [`{name}`][{path}] | {line.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


# Of the two pages of commands, those of the second: one would be too long for a phone.
OF_CODES = {"encode", "decode", "compress", "decompress", "export", "import"}
OF_CODES |= {"pretrained", "prior", "sample"}


def commands(of_codes: bool) -> str:
    """What `mqvae --help` and `mqvae COMMAND --help` print, of one of the two pages."""
    parts = [""] if of_codes else ["", help_of([])]
    for name, what in COMMANDS.items():
        if (name in OF_CODES) != of_codes:
            continue
        parts += [f"## mqvae {name}", f"{what[0].upper()}{what[1:]}.", help_of([name])]
    return "\n\n".join(parts)


def help_of(arguments: list[str]) -> str:
    shown = io.StringIO()
    with redirect_stdout(shown), patch.dict(os.environ, COLUMNS="80"):
        main([*arguments, "--help"])
    return f"```text\n{shown.getvalue().rstrip()}\n```"


class Examples(griffe.Extension):
    """griffe knows examples by the plural."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")

"""The book's settings: `sphinx-build -W docs book` makes a folder of HTML pages of it."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.ext.napoleon import GoogleDocstring

ROOT = Path(__file__).parent.parent

project = "nti"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_math_renderer = "mathml"
html_title = "nti"
html_theme_options = {"light_css_variables": {"code-font-size": "72%"}}  # 100 columns fit
exclude_patterns = ["lesson/page", "notebooks"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_member_order = "bysource"
suppress_warnings = ["config.cache"]

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+(?!.*\.png)([^)#]*)(?:#[^)]*)?\)")
"""Links to files that are no pages of the book: they work where the repository is read."""


def name_files(app: object, page: str, source: list[str]) -> None:
    """Name the repository's files instead of linking them, as a page has no repository beside it.

    Raises ValueError for a name that the repository does not have.
    """

    def name(link: re.Match[str]) -> str:
        target = link[2] or "README.md"
        if not (ROOT / target).exists():
            raise ValueError(f"{page}: got a link to {target}, expected a file of the repository")
        if target.startswith("docs/"):
            return link[0]
        return (
            link[1] if link[1].startswith("`") or link[1] == target else f"{link[1]} (`{target}`)"
        )

    source[0] = OUTSIDE.sub(name, source[0])


def write_inline(writer: Any, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers draw by themselves: a page needs no network."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_block(writer: Any, node: nodes.math_block) -> None:
    """Write a formula of a line of its own."""
    writer.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


# Napoleon takes what stands before a colon in an attribute's docstring for its type.
GoogleDocstring._parse_attribute_docstring = lambda self: self._consume_to_end()


def setup(app: Any) -> None:
    """Have every page read through `name_files`, and formulas written as MathML."""
    app.connect("source-read", name_files)
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))

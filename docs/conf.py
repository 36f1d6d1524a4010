"""The documentation site: `make docs` builds it from docs/, README and the docstrings into build/site.

The pages are written for GitHub, which shows them as they are. Here README becomes the first page, and links to files
that are no pages lead to the repository.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))  # for autodoc

from dropblock import __version__  # noqa: E402

project, author, copyright, release = "DropBlock for PyTorch", "its contributors", "its contributors", __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
highlight_language = "text"  # of a fence that names none
html_theme, html_title, html_math_renderer = "furo", "DropBlock", "mathml"
html_static_path, html_css_files = ["_static"], ["site.css"]
exclude_patterns = ["results/*/README.md"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

default_role = "py:obj"  # `name` in a docstring: a link where it names an object, else code
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True
copybutton_exclude = ".linenos, .gp, .go"

# Where files of the repository are shown; a site that is not built on GitHub names them without a link.
REPOSITORY = os.environ.get("GITHUB_REPOSITORY")
COMMIT = os.environ.get("GITHUB_SHA", "main")
LINK = re.compile(r"(?P<text>\[[^\]]*\])\((?!https?:|#)(?P<file>[^)#\s]+)(?P<place>#[^)]*)?\)")


def relinked(text: str, at: Path, to: Path) -> str:
    """The text of a page with the links of a page in folder `at` made right for one in folder `to`.

    Pages and pictures under docs/ keep their links; other files of the repository are linked to where they are shown.
    """

    def link(found: re.Match[str]) -> str:
        file, place = (at / found["file"]).resolve(), found["place"] or ""
        if file.is_relative_to(DOCS) and file.suffix in (".md", ".rst", ".png", ".jpg"):
            return f"{found['text']}({os.path.relpath(file, to)}{place})"
        if REPOSITORY is None:
            return found["text"].strip("[]")
        kind, path = "tree" if file.is_dir() else "blob", file.relative_to(ROOT)
        return f"{found['text']}(https://github.com/{REPOSITORY}/{kind}/{COMMIT}/{path}{place})"

    return LINK.sub(link, text)


# Pages that hang below another one, whose folder lists them on GitHub.
BELOW = {"RESULTS": ["results/*", "results/*/report"], "regularizers/README": ["[!R]*"]}


def read(app: Any, page: str, source: list[str]) -> None:
    """Prepare a page for the site as it is read: README for the first one, links for all."""
    folder = (DOCS / page).parent
    if page == "index":
        readme = ROOT / "README.md"
        app.env.note_dependency(readme)
        source[0] = relinked(readme.read_text(), ROOT, DOCS) + source[0]
    elif (DOCS / f"{page}.md").exists():
        # `diff NAME`, which tests read, is a diff; a fence without a language is shell.
        text = re.sub(r"^```diff .*$", "```diff", source[0], flags=re.MULTILINE)
        source[0] = relinked(text, folder, folder)
    if page in BELOW:
        source[0] += "\n\n```{toctree}\n:hidden:\n:glob:\n\n" + "\n".join(BELOW[page]) + "\n```\n"


def formula(display: str) -> Callable[[Any, Any], None]:
    """Write a formula as MathML, which browsers show by themselves: no script, no other server."""

    def visit(translator: Any, node: Any) -> None:
        translator.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit


def setup(app: Any) -> None:
    app.connect("source-read", read)
    app.add_html_math_renderer("mathml", (formula("inline"), None), (formula("block"), None))

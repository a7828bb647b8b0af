"""The book: the executed notebooks, the pages of docs/ and the docstrings, as HTML. Nothing is fetched or executed."""

import json
import re
from importlib.metadata import version as installed

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "deepsimreg"
author = "The deepsimreg authors"
copyright = author
version = release = installed("deepsimreg")
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "notebooks/*.ipynb",
    "data/README.md",
    "experiments/README.md",
    "deepsimreg/weights/*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design", "sphinx_copybutton"]
html_theme = "sphinx_book_theme"
html_title = "deepsimreg"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_theme_options = {"show_toc_level": 2, "use_download_button": True, "home_page_in_toc": True}
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # a widget has no kernel here; the figures below each stand for it
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
default_role = "code"
autodoc_typehints = "none"  # docstrings say shapes and units
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
suppress_warnings = ["mystnb.unknown_mime_type", "myst.xref_missing"]  # links to files of the project that are no pages


def _inline(writer, node) -> None:
    writer.body.append(_mathml(node, "inline"))
    raise SkipNode


def _block(writer, node) -> None:
    writer.body.append(f'<div class="math">{_mathml(node, "block")}</div>')
    raise SkipNode


def _mathml(node, display: str) -> str:
    """Browsers draw MathML themselves: no script, no fonts from elsewhere."""
    return convert(node.astext(), display=display)


def _plain(app, what, name, thing, options, lines) -> None:
    """Docstrings are plain text: outside of code `*` and `|` are no markup; drawings are shown as they are."""
    text = "\n".join(lines)
    if what == "module":
        text = re.sub(r"\n\n(?=    )", "\n\n::\n\n", text)
    drawn = (
        re.compile(r"(`[^`]*`|^    .*$)|([*|])", re.MULTILINE) if what == "module" else re.compile(r"(`[^`]*`)|([*|])")
    )
    lines[:] = drawn.sub(lambda found: found[1] or "\\" + found[2], text).splitlines()


def _described(app, name: str, source: list[str]) -> None:
    """The alternative text of a notebook's pictures lies beside them; MyST-NB looks for it in their cell."""
    if not name.startswith("notebooks/"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        found = [output.get("metadata", {}).get("image/png", {}).get("alt") for output in cell.get("outputs", [])]
        if any(found):
            cell["metadata"]["mystnb"] = {"image": {"alt": next(filter(None, found))}}
    source[0] = json.dumps(notebook)


def setup(app) -> None:
    app.connect("source-read", _described)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon

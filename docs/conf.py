"""Sphinx settings of the course site; `python -m tools.site` writes the pages and calls Sphinx."""

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.site.docstrings import to_rst  # noqa: E402

project = "llama-adapter-edu"
author = "the llama-adapter-edu contributors"
copyright = "the llama-adapter-edu contributors, Apache License 2.0"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["notebooks", "screenshots/*.md"]
suppress_warnings = ["myst.strikethrough", "myst.domains"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # nothing from another host
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

default_role = "code"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
autodoc_default_options = {"exclude-members": "__init__, __new__"}
napoleon_use_rtype = False
napoleon_preprocess_types = False

html_theme = "furo"
html_title = "llama-adapter-edu"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js", "assemble.js"]
templates_path = ["_templates"]
html_copy_source = False
html_domain_indices = False
html_show_sphinx = False
html_math_renderer = "mathml"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def _docstring(app, what, name, obj, options, lines) -> None:
    # A module's text starts at the margin: what is indented is a picture, even if all of it is.
    lines[:] = to_rst(obj.__doc__.strip("\n").split("\n") if what == "module" else lines)


def _inline_formula(translator, node) -> None:
    """MathML, which browsers draw without a script."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _formula(translator, node) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_formula, None))

"""Configuration of the documentation: `.ci/docs` builds it into build/docs."""

import os
from pathlib import Path

import schuss
from schuss.cli import main

HERE = Path(__file__).parent

project = "schuss"
author = "The schuss developers"
copyright = "2026, The schuss developers"
version = release = schuss.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "py:obj"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings have the types
autodoc_mock_imports = ["torch"]
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = False

# The published pages link to other projects. A build elsewhere needs no network.
if "READTHEDOCS" in os.environ:
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

html_theme = "furo"
html_title = f"schuss {version}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}


def draw_pictures(_: object) -> None:
    """Draw the demo's pictures, unless they are drawn already."""
    pictures = HERE / "pictures"
    if not any(pictures.glob("*.png")):
        main(["demo", "--out", str(pictures)])


def setup(app: object) -> None:
    """Have the pictures drawn before the pages are read."""
    app.connect("builder-inited", draw_pictures)  # type: ignore[attr-defined]

"""Configuration of the documentation: `.ci/docs` builds it into build/docs."""

import os
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

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
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "py:obj"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings have the types
autodoc_mock_imports = ["torch"]
# The classes of schuss.torch extend the signatures of those of torch.optim, which mocks lack.
_mocks: Any = import_module("sphinx.ext.autodoc.mock")
_mocks._MockObject.__signature__ = Signature(
    [
        Parameter("params", Parameter.POSITIONAL_OR_KEYWORD),
        Parameter("args", Parameter.VAR_POSITIONAL),
    ]
)
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # parameters that share a description stay together
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
html_math_renderer = "mathml"
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


def _end_of_section(lines: list[str], title: str) -> int:
    """Return the index of the empty line after a section, which has none inside."""
    start = lines.index(title) + 2
    return lines.index("", start) if "" in lines[start:] else len(lines)


def tidy_docstring(
    _app: object, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Prepare a docstring for napoleon."""
    if "Raises" in lines:
        # A paragraph after the exceptions would be taken for one of them.
        end = _end_of_section(lines, "Raises")
        after = lines[end + 1 : end + 3]
        if after and not after[-1].startswith("---"):
            lines[end + 1 : end + 1] = ["Notes", "-----"]
    if "References" in lines:
        # Each reference begins on a line and ends with a full stop: make them paragraphs.
        start, end = lines.index("References") + 2, _end_of_section(lines, "References")
        spaced = [part for line in lines[start:end] for part in (line, *[""] * line.endswith("."))]
        lines[start:end] = spaced


def join_summary(
    _app: object, what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Put back what napoleon took for the type of a property: the words before a colon."""
    if what == "property":
        for line in [line for line in lines if line.startswith(":type: ")]:
            lines.remove(line)
            lines[0] = f"{line.removeprefix(':type: ')}: {lines[0]}"


def mathml(translator: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers show without a script from the network."""
    display = "block" if node.tagname == "math_block" else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise SkipNode


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("builder-inited", draw_pictures)
    app.connect("autodoc-process-docstring", tidy_docstring, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", join_summary, priority=600)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))

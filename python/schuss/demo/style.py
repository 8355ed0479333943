"""How the demo's pictures look: the same colours, text and size for all of them."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from matplotlib import rc_context
from matplotlib.figure import Figure

__all__ = ["COLORS", "figure", "note", "save", "styled"]

# The colours are Okabe and Ito's, which the colour-blind tell apart.
ORANGE, GREEN = "#E69F00", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

COLORS = {"SGD": PURPLE, "Momentum": ORANGE, "RMSprop": GREEN, "Adam": BLUE}
"""The colour of each optimizer, in every picture."""

WIDTH = 8.0  # inches, so 1600 pixels
DPI = 200
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "0.6",
    "axes.grid": True,
    "axes.labelcolor": "0.25",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": "0.25",
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.titlesize": "large",
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "xtick.color": "0.35",
    "ytick.color": "0.35",
}

_Arguments = ParamSpec("_Arguments")


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Make a function draw in the demo's style, whatever the user's own is."""

    @wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def figure(height: float, title: str) -> Figure:
    """Return an empty figure of the common width; the height is in inches."""
    empty = Figure(figsize=(WIDTH, height))
    empty.suptitle(title, x=0.015, horizontalalignment="left")
    return empty


def save(picture: Figure, path: Path) -> None:
    """Write a picture as PNG."""
    with rc_context(STYLE):  # some texts are made when they are drawn
        picture.savefig(path, dpi=DPI, metadata={"Software": None})


def note(picture: Figure, text: str) -> None:
    """Write a small line below the picture."""
    picture.supxlabel(text, x=0.985, horizontalalignment="right", fontsize="x-small", color="0.45")

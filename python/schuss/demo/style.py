"""How the demo's pictures look: the same colours, text and size for all of them."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from matplotlib import rc_context
from matplotlib.figure import Figure

from schuss.history import BLUE, GREEN, ORANGE, PURPLE, VERMILION

__all__ = ["BLUE", "GREEN", "ORANGE", "PURPLE", "VERMILION", "figure", "note", "save", "styled"]

COLORS = {"SGD": PURPLE, "Momentum": ORANGE, "RMSprop": GREEN, "Adam": BLUE}
"""The colour of each optimizer, in every picture."""

WIDTH, DPI = 8.0, 200  # inches, and pixels an inch: 1600 pixels
STYLE = Path(__file__).with_name("schuss.mplstyle")

_Arguments = ParamSpec("_Arguments")


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Make a function draw in the demo's style instead of the user's."""

    @wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with rc_context(fname=STYLE):
            return draw(*args, **kwargs)

    return drawn


def figure(height: float, title: str) -> Figure:
    """Return an empty figure of the common width; the height is in inches."""
    empty = Figure(figsize=(WIDTH, height))
    empty.suptitle(title, x=0.015, horizontalalignment="left")
    return empty


def save(picture: Figure, path: Path) -> None:
    """Write a picture as PNG."""
    with rc_context(fname=STYLE):  # some texts are made only when they are drawn
        picture.savefig(path, dpi=DPI, metadata={"Software": None})


def note(picture: Figure, text: str) -> None:
    """Write a small line below the picture."""
    picture.supxlabel(text, x=0.985, horizontalalignment="right", fontsize="x-small", color="0.45")

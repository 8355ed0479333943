"""The picture of step and loop: the time of a step by its size, alone and in a training loop.

Figures that were written by --json are drawn by `python -m benchmarks.plot FILE.json... FILE.png`.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.contenders import ADAM, IN_PLACE, ONE_THREAD, SCHUSS, SHARED_THREADS
from benchmarks.harness import LIMIT, Record
from benchmarks.loop import PRODUCT_ALONE
from schuss.demo.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, figure, save, styled

GREY, LIGHT_BLUE = "0.45", "#56B4E9"
LINES: Mapping[str, dict[str, Any]] = {
    SCHUSS.name: {"color": BLUE, "linewidth": 2.6, "zorder": 4},
    SHARED_THREADS.name: {"color": BLUE, "linestyle": "--", "linewidth": 2, "zorder": 4},
    ONE_THREAD.name: {"color": LIGHT_BLUE, "zorder": 3},
    "torch raw fused": {"color": VERMILION},
    "torch fused": {"color": VERMILION, "linestyle": "--"},
    "numba": {"color": GREEN},
    "DeepSpeed": {"color": ORANGE},
    "JAX + optax": {"color": PURPLE},
    IN_PLACE.name: {"color": "0.15"},
    LIMIT: {"color": GREY, "linestyle": ":"},
    PRODUCT_ALONE.name: {"color": GREY, "linestyle": ":"},
}
"""Who is drawn, and how; the others are in the tables."""

ADAM_FLOAT32 = {"rule": ADAM.name, "dtype": "float32"}
PANELS = {
    "step": "A step alone",
    "loop": "A matrix product and a step, in turn",
}


def plot(results: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Draw those of step and loop that the results have."""
    save(picture({name: results[name] for name in PANELS if name in results}), path)


@styled
def picture(results: Mapping[str, Sequence[Record]]) -> Figure:
    drawn = figure(4.9, "Time of a step of Adam, float32, by the number of parameters")
    shown: dict[str, Any] = {}
    axes = drawn.subplots(1, len(results), squeeze=False)[0]
    for panel, (name, records) in zip(axes, results.items(), strict=True):
        panel.set_title(PANELS[name])
        shown |= _draw(panel, records)
    legend = {name: shown[name] for name in LINES if name in shown}
    drawn.legend(legend.values(), legend, loc="outside lower center", ncols=4)
    return drawn


def _draw(panel: Axes, records: Sequence[Record]) -> dict[str, Any]:
    """Draw a line through each contender's medians, and a band between its quartiles."""
    drawn = {}
    for name, style in LINES.items():
        points = [
            (record["case"]["size"], record["microseconds"], *record["quartiles"])
            for record in records
            if record["contender"] == name
            and (ADAM_FLOAT32 | record["case"]).items() >= ADAM_FLOAT32.items()
        ]
        if points:
            sizes, medians, lows, highs = zip(*sorted(points), strict=True)
            (drawn[name],) = panel.plot(sizes, medians, marker=".", label=name, **style)
            panel.fill_between(sizes, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
    panel.set(xscale="log", yscale="log", xlabel="parameters")
    panel.xaxis.set_major_formatter(EngFormatter(places=0))
    seconds = EngFormatter("s", places=0)
    panel.yaxis.set_major_formatter(lambda microseconds, _: seconds(microseconds / 1e6))
    return drawn


def main(*paths: str) -> None:
    """Draw the figures in files."""
    *sources, target = map(Path, paths)
    results: dict[str, list[Record]] = {}
    for source in sources:
        results |= json.loads(source.read_text())["benchmarks"]
    plot(results, target)


if __name__ == "__main__":
    main(*sys.argv[1:])

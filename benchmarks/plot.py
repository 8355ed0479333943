"""Pictures of the benchmarks step and loop: the time of a step, alone and in a training loop.

    python -m benchmarks.plot FIGURES.json ... PICTURE.png
    python -m benchmarks.plot --bars 1048576 FIGURES.json ... PICTURE.png

draw the figures that --json wrote: all sizes as lines, or one size of the loop as bars.
"""

import argparse
import json
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
"""The contenders that are drawn, and their styles. The tables have all of them."""

BARS = (
    "schuss",
    "schuss, shared threads",
    "NumPy in place",
    "JAX + optax",
    "torch fused",
    "DeepSpeed",
    "numba",
)
"""The contenders of the bar chart: one configuration of each library, and shared threads."""

ADAM_FLOAT32 = {"rule": ADAM.name, "dtype": "float32"}
PANELS = {
    "step": "A step alone",
    "loop": "A matrix product and a step, in turn",
}


def plot(results: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Draw the benchmarks step and loop, if the results have them."""
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


@styled
def bars(records: Sequence[Record], size: int) -> Figure:
    """Draw one size of the loop: the time of a matrix product and a step, by contender."""
    times = {
        record["contender"]: record["microseconds"] / 1e3
        for record in records
        if record["case"]["size"] == size and record["contender"] in BARS
    }
    names = sorted(times, key=times.__getitem__, reverse=True)
    title = f"A matrix product and an Adam step of {size / 1e6:.0f} million parameters"
    drawn = figure(0.8 + 0.34 * len(names), title)
    axes = drawn.subplots()
    drawn_bars = axes.barh(
        names,
        [times[name] for name in names],
        color=[BLUE if "schuss" in n else GREY for n in names],
    )
    axes.bar_label(drawn_bars, [f" {times[name]:.1f} ms" for name in names])
    axes.set_xlabel("milliseconds, lower is better")
    axes.grid(visible=False)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figures in files."""
    parser = argparse.ArgumentParser("python -m benchmarks.plot", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--bars", type=int, metavar="SIZE", help="draw this size of the loop as bars"
    )
    options = parser.parse_args(arguments)
    *sources, target = options.paths
    results: dict[str, list[Record]] = {}
    for source in sources:
        results |= json.loads(source.read_text())["benchmarks"]
    if options.bars:
        save(bars(results["loop"], options.bars), target)
    else:
        plot(results, target)


if __name__ == "__main__":
    main()

"""The pictures of the guide."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.state.courses import Course
from benchmarks.state.fall import FALL_AT
from benchmarks.state.tables import differences, last
from benchmarks.state.ways import (
    AT_RANDOM,
    BFLOAT16,
    BITSANDBYTES_8,
    EIGHT_BIT,
    FLOAT32,
    TO_NEAREST,
    TORCH_16,
    TORCHAO_8,
    WITH_MASTER,
    WITH_MASTER_24,
)
from schuss.demo.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, figure, note, save, styled

LIGHT_BLUE = "#56B4E9"
WIDTH = 4
"""Of the panels of final losses, in standard deviations to each side."""
STYLES: Mapping[str, dict[str, Any]] = {
    FLOAT32.name: {"color": "0.15", "linewidth": 4},
    BFLOAT16.name: {"color": GREEN, "linewidth": 1, "zorder": 3},  # inside of the next one
    EIGHT_BIT.name: {"color": BLUE, "linewidth": 2.5},
    TO_NEAREST.name: {"color": BLUE, "linestyle": ":", "linewidth": 2},
    WITH_MASTER.name: {"color": LIGHT_BLUE, "linewidth": 2, "linestyle": "--"},
    WITH_MASTER_24.name: {"color": GREEN},
    AT_RANDOM.name: {"color": "0.55"},
    BITSANDBYTES_8.name: {"color": VERMILION},
    TORCHAO_8.name: {"color": ORANGE, "linestyle": "--"},
    TORCH_16.name: {"color": PURPLE, "linestyle": "-."},
}
TRAININGS = {
    "digits": "Digits, a network in NumPy",
    "mlp": "scikit-learn's MLPClassifier",
    "words": "Word vectors in NumPy",
    "text": "A small transformer in PyTorch",
}
CURVES = (FLOAT32, EIGHT_BIT, WITH_MASTER, TORCH_16)
"""What is drawn as curves; the differences are of all ways."""

Ways = Mapping[str, Sequence[Course]]


def plot(results: Mapping[str, Ways], folder: Path) -> None:
    """Draw the parts that the results have."""
    trainings = {name: results[name] for name in TRAININGS if name in results}
    if "fall" in results:
        save(fall(results["fall"]), folder / "state-fall.png")
    if "updates" in results:
        save(updates(results["updates"]), folder / "state-updates.png")
    if trainings:
        save(curves(trainings), folder / "state-trainings.png")
        save(final_losses(trainings), folder / "state-losses.png")


@styled
def fall(ways: Ways) -> Figure:
    drawn = figure(3.8, "The second moment v after gradients fell to a quarter")
    axes = drawn.subplots()
    _draw_means(axes, ways, "v")
    axes.axvline(FALL_AT, color="0.6", linewidth=1)
    axes.axhline(1, color="0.6", linewidth=1)
    axes.set(xlabel="steps", ylabel="v over what it should become", yscale="log")
    axes.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.minorticks_off()
    for way, courses in ways.items():
        axes.plot([], [], label=f"{way}: {np.mean(last(courses, 'v')):.2f}", **STYLES[way])
    drawn.legend(loc="outside right center", title="after the last step", alignment="left")
    return drawn


@styled
def updates(ways: Ways) -> Figure:
    drawn = figure(3.8, "Updates along a training of word vectors, next to float32's")
    others = {way: courses for way, courses in ways.items() if way != FLOAT32.name}
    for axes, (name, title) in zip(
        drawn.subplots(1, 2),
        {"error": "Distance to float32's update", "size": "Size of the update"}.items(),
        strict=True,
    ):
        lines = _draw_means(axes, others, name)
        axes.set(title=title, xlabel="steps")
    axes.axhline(1, color="0.6", linewidth=1)
    drawn.legend(lines.values(), lines, loc="outside lower center", ncols=3)
    return drawn


@styled
def curves(trainings: Mapping[str, Ways]) -> Figure:
    drawn = figure(5.6, "Trainings: loss on examples not learned from, in nats")
    lines: dict[str, Any] = {}
    for axes, (name, ways) in _panels(drawn, trainings):
        shown = {way.name: ways[way.name] for way in CURVES if way.name in ways}
        lines |= _draw_means(axes, shown, "loss")
        axes.set(title=TRAININGS[name], xlabel="steps")
    drawn.legend(lines.values(), lines, loc="outside lower center", ncols=len(CURVES))
    return drawn


@styled
def final_losses(trainings: Mapping[str, Ways]) -> Figure:
    drawn = figure(5.6, "The final loss, less that of float32 with the same seed")
    for axes, (name, ways) in _panels(drawn, trainings, sharey=True):
        names = [way for way in ways if way != FLOAT32.name]
        losses = last(ways[FLOAT32.name], "loss")
        deviation = stdev(losses) if len(losses) > 1 else 0.0
        axes.axvspan(-deviation, deviation, color="0.5", alpha=0.15, linewidth=0)
        limit = WIDTH * deviation or np.inf  # equal losses, or a single one
        if np.isfinite(limit):
            axes.set_xlim(-limit, limit)
        for row, way in enumerate(names):
            _draw_differences(axes, row, differences(ways, way), limit, STYLES[way]["color"])
        axes.axvline(0, color="0.15", linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set(title=TRAININGS[name], xlabel="nats")
        axes.tick_params(axis="x", labelsize="small")
    note(
        drawn,
        "dots: seeds; grey: standard deviation of float32's losses over the seeds; > : further",
    )
    return drawn


def _draw_differences(
    axes: Axes, row: int, values: Sequence[float], limit: float, color: Any
) -> None:
    """Draw a dot for each value, or an arrow where it lies outside, and a line at their mean."""
    style = {"color": color, "alpha": 0.5, "markeredgewidth": 0, "clip_on": False}
    for value in values:
        marker = "o" if abs(value) <= limit else ">" if value > 0 else "<"
        axes.plot(max(-limit, min(value, limit)), row, marker, markersize=5, **style)
    axes.plot(np.mean(values), row, "|", color=color, markersize=16, markeredgewidth=2)


def _panels(
    drawn: Figure, trainings: Mapping[str, Ways], **options: Any
) -> Iterator[tuple[Axes, tuple[str, Ways]]]:
    rows, columns = -(-len(trainings) // 2), min(len(trainings), 2)
    panels = drawn.subplots(rows, columns, squeeze=False, **options)
    yield from zip(panels.flat, trainings.items(), strict=False)
    for axes in panels.flat[len(trainings) :]:
        axes.remove()


def _draw_means(axes: Axes, ways: Ways, name: str) -> dict[str, Any]:
    """Draw a line through the means over the seeds, and a band of their standard deviation."""
    lines = {}
    for way, courses in ways.items():
        steps = courses[0].steps
        values = np.array([course.values[name] for course in courses])
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        (lines[way],) = axes.plot(steps, mean, **STYLES[way])
        axes.fill_between(
            steps, mean - deviation, mean + deviation, color=STYLES[way]["color"], alpha=0.15, lw=0
        )
    return lines

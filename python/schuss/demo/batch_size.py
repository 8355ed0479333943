"""The picture of batch sizes: gradient descent on all digits at once, on 64, and on one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import schuss
from schuss.demo.digits import BATCH_SIZE, TRAINING_EXAMPLES, Digits, train
from schuss.demo.style import BLUE, ORANGE, VERMILION, figure, styled
from schuss.network import Parameters, cost_and_gradients

__all__ = ["SIZES", "Course", "Size", "compare", "picture", "updates"]

MEASURED = 40  # how often the cost of all digits is measured, at most


@dataclass(frozen=True)
class Size:
    """A size of batch, and how it learns."""

    batch_size: int
    name: str
    lr: float
    color: str


SIZES = (
    Size(TRAINING_EXAMPLES, "batch", 0.1, BLUE),
    Size(BATCH_SIZE, "mini-batch", 0.1, ORANGE),
    Size(1, "stochastic", 0.01, VERMILION),  # a higher rate would throw it about
)


@dataclass(frozen=True)
class Course:
    """How a training went: by its batches, and by all digits at some moments."""

    batch_costs: npt.NDArray[np.float64]
    """The cost of each update's batch, before the update."""

    seconds: npt.NDArray[np.float64]
    """The time in gradients and steps up to the end of each update."""

    measured: npt.NDArray[np.int64]
    """After how many updates the cost of all digits was measured."""

    costs: npt.NDArray[np.float64]
    """Those costs: the same quantity for every size of batch."""


def updates(epochs: int) -> int:
    """Return the number of updates of all trainings together."""
    return sum(_passes(size, epochs) * TRAINING_EXAMPLES // size.batch_size for size in SIZES)


def _passes(size: Size, epochs: int) -> int:
    """Return the passes over the digits with which every batch size takes about as long."""
    return epochs if size.batch_size == 1 else epochs * TRAINING_EXAMPLES // BATCH_SIZE


def compare(
    digits: Digits,
    *,
    epochs: int,
    seed: int,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Course]:
    """Return the course of each training, by the name of its size of batch.

    Stochastic gradient descent passes over the digits once an epoch, the others 22 times.
    """
    return {size.name: _course(size, digits, epochs, seed, tick) for size in SIZES}


def _course(
    size: Size, digits: Digits, epochs: int, seed: int, tick: Callable[[], object]
) -> Course:
    passes = _passes(size, epochs)
    total = passes * TRAINING_EXAMPLES // size.batch_size
    measured = np.unique(np.geomspace(1, total, MEASURED).round().astype(np.int64))
    moments, costs = set(measured.tolist()), []

    def watch(params: Parameters, history: schuss.History) -> None:
        tick()
        if history.steps in moments:
            costs.append(cost_and_gradients(params, digits.x, digits.labels)[0])

    _, history = train(
        partial(schuss.SGD, lr=size.lr),
        digits,
        epochs=passes,
        seed=seed,
        batch_size=size.batch_size,
        watch=watch,
    )
    seconds = np.cumsum(history.loss_seconds + history.step_seconds)
    return Course(history.cost, seconds, measured, np.array(costs))


@styled
def picture(courses: dict[str, Course]) -> Figure:
    """Draw the cost by updates, by passes over all digits, and by seconds."""
    drawn = figure(4.8, "Gradient descent on all digits at once, on mini-batches, on single ones")
    panels = drawn.subplots(1, 3, sharey=True)
    for size in SIZES:
        course = courses[size.name]
        label = rf"{size.name}: $b$ = {size.batch_size:,}, $\alpha$ = {size.lr}"
        each = np.arange(1, len(course.batch_costs) + 1)
        scales = (each, each * (size.batch_size / TRAINING_EXAMPLES), course.seconds)
        for axes, x in zip(panels, scales, strict=True):
            # A batch's cost is that before its update.
            axes.plot(x[:-1], course.batch_costs[1:], color=size.color, alpha=0.15, linewidth=0.4)
            axes.plot(
                x[course.measured - 1],
                course.costs,
                color=size.color,
                label=label,
                linewidth=2,
                zorder=3,
            )
    measured = np.concatenate([course.costs for course in courses.values()])
    for axes, (title, unit) in zip(
        panels,
        (("By updates", "update"), ("By passes over the digits", "epoch"), ("By time", "seconds")),
        strict=True,
    ):
        axes.set_title(title)
        axes.set_xlabel(unit)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("cost J (nats per example)")
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylim(measured.min() / 3, 2 * measured.max())
    drawn.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower left",
        ncols=3,
        title="strong: the cost of all digits; pale: that of each batch, before its update",
        title_fontsize="small",
        alignment="left",
    )
    return drawn

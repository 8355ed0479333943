"""The picture of batch sizes: gradient descent on all digits at once, on 64, and on one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import schuss
from schuss.demo.digits import BATCH_SIZE, TRAINING_EXAMPLES, Digits, train
from schuss.demo.network import Parameters, cost_and_gradients
from schuss.demo.style import BLUE, ORANGE, VERMILION, figure, styled

MEASUREMENTS = 40  # of the cost of all digits, at most


@dataclass(frozen=True)
class Size:
    """A batch size, and how it is trained and drawn."""

    batch_size: int
    name: str
    lr: float
    color: str

    def passes(self, epochs: int) -> int:
        """Return the passes over the digits with which every batch size takes about as long."""
        return epochs if self.batch_size == 1 else epochs * TRAINING_EXAMPLES // BATCH_SIZE

    def updates(self, epochs: int) -> int:
        """Return the number of updates in these passes."""
        return self.passes(epochs) * TRAINING_EXAMPLES // self.batch_size


SIZES = (
    Size(TRAINING_EXAMPLES, "batch", 0.1, BLUE),
    Size(BATCH_SIZE, "mini-batch", 0.1, ORANGE),
    Size(1, "stochastic", 0.01, VERMILION),  # higher rates are unstable
)


@dataclass(frozen=True)
class Course:
    """How a training went: the costs of its batches, and at some updates the cost of all digits."""

    batch_costs: npt.NDArray[np.float64]
    """The cost of each update's batch, before the update."""

    seconds: npt.NDArray[np.float64]
    """The time spent in gradients and steps up to the end of each update."""

    measured: npt.NDArray[np.int64]
    """The updates after which the cost of all digits was measured."""

    costs: npt.NDArray[np.float64]
    """These costs, which can be compared between batch sizes."""


def updates(epochs: int) -> int:
    """Return the number of updates of all trainings together."""
    return sum(size.updates(epochs) for size in SIZES)


def compare(
    digits: Digits, *, epochs: int, seed: int, tick: Callable[[], object] = lambda: None
) -> dict[str, Course]:
    """Return the course of each training, by the name of its batch size.

    Stochastic gradient descent passes over the digits once an epoch, the others 22 times.
    """
    return {size.name: _course(size, digits, epochs, seed, tick) for size in SIZES}


def _course(
    size: Size, digits: Digits, epochs: int, seed: int, tick: Callable[[], object]
) -> Course:
    points = np.geomspace(1, size.updates(epochs), MEASUREMENTS)
    measured = np.unique(points.round().astype(np.int64))
    costs: list[float] = []

    def watch(params: Parameters, history: schuss.History) -> None:
        tick()
        if history.steps == measured[len(costs)]:
            costs.append(cost_and_gradients(params, digits.x, digits.labels)[0])

    _, history = train(
        partial(schuss.SGD, lr=size.lr),
        digits,
        epochs=size.passes(epochs),
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
        course, color = courses[size.name], size.color
        label = rf"{size.name}: $b$ = {size.batch_size:,}, $\alpha$ = {size.lr}"
        update = np.arange(1, len(course.batch_costs) + 1)
        scales = (update, update * (size.batch_size / TRAINING_EXAMPLES), course.seconds)
        for axes, x in zip(panels, scales, strict=True):
            # The cost of a batch is that before its update.
            axes.plot(x[:-1], course.batch_costs[1:], color=color, alpha=0.15, linewidth=0.4)
            at = x[course.measured - 1]
            axes.plot(at, course.costs, color=color, label=label, linewidth=2, zorder=3)
    titles = ("By updates", "By passes over the digits", "By time")
    for axes, title, unit in zip(panels, titles, ("update", "epoch", "seconds"), strict=True):
        axes.set(title=title, xlabel=unit, xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
    costs = np.concatenate([course.costs for course in courses.values()])
    panels[0].set(ylabel="cost J (nats per example)", yscale="log")
    panels[0].set_ylim(costs.min() / 3, 2 * costs.max())
    panels[0].yaxis.set_major_formatter("{x:g}")
    drawn.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower left",
        ncols=3,
        title="strong: the cost of all digits; pale: that of each batch, before its update",
        title_fontsize="small",
        alignment="left",
    )
    return drawn

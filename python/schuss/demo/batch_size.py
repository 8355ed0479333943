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

__all__ = ["SIZES", "Size", "compare", "picture", "updates"]

SMOOTHING = 0.999  # over about 1,000 examples; each by itself is all noise


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

Costs = dict[str, npt.NDArray[np.float64]]


def updates(epochs: int) -> int:
    """Return the number of updates of all trainings together."""
    return epochs * (2 * (TRAINING_EXAMPLES // BATCH_SIZE) + TRAINING_EXAMPLES)


def compare(
    digits: Digits,
    *,
    epochs: int,
    seed: int,
    tick: Callable[[], object] = lambda: None,
) -> Costs:
    """Return the cost of every update of each training, by the name of its size of batch.

    Batch gradient descent makes as many updates as mini-batch gradient descent in those epochs,
    the others pass over the digits as often.
    """
    costs = {}
    for size in SIZES:
        whole = size.batch_size == TRAINING_EXAMPLES
        _, history = train(
            partial(schuss.SGD, lr=size.lr),
            digits,
            epochs=epochs * TRAINING_EXAMPLES // BATCH_SIZE if whole else epochs,
            seed=seed,
            batch_size=size.batch_size,
            tick=tick,
        )
        costs[size.name] = history.cost
    return costs


@styled
def picture(costs: Costs) -> Figure:
    """Draw the costs by updates, and by passes over all examples."""
    drawn = figure(4.8, "Gradient descent on all digits at once, on mini-batches, on single ones")
    by_update, by_epoch = drawn.subplots(1, 2, sharey=True)
    for size in SIZES:
        values = costs[size.name]
        label = rf"{size.name}: $b$ = {size.batch_size:,}, $\alpha$ = {size.lr}"
        passes = np.arange(len(values)) * size.batch_size / TRAINING_EXAMPLES
        if size.batch_size == 1:
            label += rf"; averaged, $\beta$ = {SMOOTHING}"
            by_epoch.plot(passes, schuss.ewma(values, SMOOTHING), color=size.color, label=label)
            continue
        above = 3 if size.name == "batch" else 2  # the smooth curve runs within the noisy one
        for axes, x in (by_update, np.arange(1, len(values) + 1)), (by_epoch, passes):
            axes.plot(x, values, color=size.color, label=label, zorder=above)
    by_update.set_title("By updates")
    by_update.set_xlabel("update")
    by_update.set_ylabel("cost J (nats per example)")
    by_update.set_yscale("log")
    by_update.yaxis.set_major_formatter("{x:g}")
    by_update.set_xlim(0, len(costs["batch"]))
    by_epoch.set_title("By passes over the digits")
    by_epoch.set_xlabel("epoch")
    by_epoch.set_xlim(0, len(costs["stochastic"]) / TRAINING_EXAMPLES)
    for axes in (by_update, by_epoch):
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.17))
    return drawn

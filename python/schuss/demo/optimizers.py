"""The picture and the table of optimizers: each learns the digits, and so does its reference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

import schuss
from schuss import reference
from schuss.demo.digits import BATCH_SIZE, TEST_EXAMPLES, TRAINING_EXAMPLES, Digits, Stepper, train
from schuss.demo.style import COLORS, figure, note, styled
from schuss.network import Parameters, accuracy

__all__ = [
    "CONTENDERS",
    "L2",
    "SPLITS",
    "Contender",
    "Result",
    "Run",
    "compare",
    "picture",
    "table",
    "updates",
]

L2 = 0.01
SPLITS = 5  # of the digits in two: what one of them tells of a ranking is chance


@dataclass(frozen=True)
class Contender:
    """An optimizer, the reference for it, and the learning rate of both."""

    fused: Callable[..., Stepper]
    reference: Callable[..., Stepper]
    lr: float

    @property
    def name(self) -> str:
        """The name in the table and in the picture."""
        return self.fused.__name__


CONTENDERS = (
    Contender(schuss.SGD, partial(reference.Optimizer, "sgd"), lr=0.2),
    Contender(schuss.Momentum, partial(reference.Optimizer, "momentum"), lr=0.5),
    Contender(schuss.RMSprop, partial(reference.Optimizer, "rmsprop"), lr=0.001),
    Contender(schuss.Adam, partial(reference.Optimizer, "adam"), lr=0.002),
)


@dataclass(frozen=True)
class Run:
    """A training: the parameters it ended with, and its history."""

    params: Parameters
    history: schuss.History

    @property
    def seconds(self) -> float:
        """The time spent in gradients and steps."""
        return float(self.history.loss_seconds.sum() + self.history.step_seconds.sum())

    @property
    def step_share(self) -> float:
        """The fraction of that time spent in steps."""
        return float(self.history.step_seconds.sum()) / self.seconds


@dataclass(frozen=True)
class Result:
    """What a contender did, with schuss and with the NumPy reference."""

    contender: Contender
    fused: Run
    reference: Run
    training_accuracy: float
    test_accuracies: tuple[float, ...]
    """That of each split of the digits, the one of `fused` first."""

    @property
    def accuracy_told(self) -> str:
        """The mean of the test accuracies, and the standard deviation of one of them."""
        mean, deviation = np.mean(self.test_accuracies), np.std(self.test_accuracies, ddof=1)
        return f"{100 * mean:.1f} ± {100 * deviation:.1f}%"

    @property
    def epoch_costs(self) -> npt.NDArray[np.float64]:
        """The mean of J over the batches of each epoch."""
        return self.fused.history.epoch_cost

    @property
    def same_bits(self) -> bool:
        """Whether both trainings ended with the same parameters, to the last bit."""
        expected = self.reference.params
        return all(p.tobytes() == expected[name].tobytes() for name, p in self.fused.params.items())


def updates(epochs: int) -> int:
    """Return the number of updates of all trainings together."""
    trainings = len(CONTENDERS) * (SPLITS + 1)  # one of each with the reference
    return trainings * epochs * (TRAINING_EXAMPLES // BATCH_SIZE)


def compare(
    digits: Digits,
    *,
    epochs: int,
    seed: int,
    tick: Callable[[], object] = lambda: None,
) -> list[Result]:
    """Train with each contender, from the same start and on the same batches.

    Then once more on each other split, to see how far the test accuracy is a matter of chance.
    """

    def watch(params: Parameters, history: schuss.History) -> None:
        tick()

    def learn(make: Callable[[Parameters], Stepper], digits: Digits, seed: int) -> Run:
        return Run(*train(make, digits, epochs=epochs, seed=seed, l2=L2, watch=watch))

    def tested(run: Run, digits: Digits) -> float:
        return accuracy(run.params, digits.x_test, digits.labels_test)

    others = [(Digits.load(other), other) for other in _other_seeds(seed)]
    results = []
    for contender in CONTENDERS:
        make = partial(contender.fused, lr=contender.lr)
        fused = learn(make, digits, seed)
        expected = learn(partial(contender.reference, lr=contender.lr), digits, seed)
        training_accuracy = accuracy(fused.params, digits.x, digits.labels)
        again = [tested(learn(make, split, other), split) for split, other in others]
        accuracies = (tested(fused, digits), *again)
        results.append(Result(contender, fused, expected, training_accuracy, accuracies))
    return results


def _other_seeds(seed: int) -> list[int]:
    return [(seed + i) % 2**32 for i in range(1, SPLITS)]


def table(results: list[Result]) -> Table:
    """Return the results as a table."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("\nOptimizer")
    for heading in (
        "Learning\nrate",
        "Final\ncost J",
        "Training\naccuracy",
        "Test\naccuracy",
        "\nSeconds",
        "Step,\nschuss",
        "Step,\nreference",
    ):
        grid.add_column(heading, justify="right")
    for result in results:
        grid.add_row(
            result.contender.name,
            f"{result.contender.lr:g}",
            f"{result.epoch_costs[-1]:.3f}",
            f"{result.training_accuracy:.1%}",
            result.accuracy_told,
            f"{result.fused.seconds:.2f}",
            f"{result.fused.step_share:.1%}",
            f"{result.reference.step_share:.1%}",
        )
    return grid


@styled
def picture(results: list[Result]) -> Figure:
    """Draw the cost curves: each mini-batch pale, the mean of each epoch strong."""
    drawn = figure(4.8, "Learning handwritten digits: cost, learning rate and test accuracy")
    axes = drawn.subplots()
    epochs = len(results[0].epoch_costs)
    label_height = 0.0
    for result in sorted(results, key=lambda result: result.epoch_costs[-1]):
        name, costs = result.contender.name, result.fused.history.cost
        color, means = COLORS[name], result.epoch_costs
        batches = np.linspace(0, epochs, len(costs), endpoint=False)
        axes.plot(batches, costs, color=color, alpha=0.35, linewidth=0.5)
        axes.plot(
            np.arange(epochs) + 0.5, means, color=color, linewidth=2, marker="o", markersize=2.5
        )
        # The curves may end close together; their labels must not.
        label_height = max(means[-1], 1.6 * label_height)
        axes.annotate(
            rf"{name}  $\alpha$ = {result.contender.lr:g}" + f"\n{result.accuracy_told}",
            (epochs, label_height),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            weight="bold",
            verticalalignment="center",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, epochs)
    axes.set_xlabel("epoch")
    axes.set_ylabel("cost J (nats per example)")
    note(
        drawn,
        f"pale: each mini-batch of {BATCH_SIZE}; strong: the mean of each epoch\n"
        f"test accuracy: mean and standard deviation of {SPLITS} splits, each with "
        f"{TEST_EXAMPLES} test images; differences within it are chance",
    )
    return drawn

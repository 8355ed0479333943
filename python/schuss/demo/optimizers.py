"""The picture and the table of optimizers: each learns the digits, and so does its reference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

import schuss
from schuss import reference
from schuss.demo.digits import BATCH_SIZE, TEST_EXAMPLES, TRAINING_EXAMPLES, Digits, train
from schuss.demo.network import Parameters, accuracy
from schuss.demo.style import COLORS, figure, note, styled
from schuss.landscapes import Stepper

L2 = 0.01
SPLITS = 5  # of the digits in two: the ranking on a single split is partly chance


@dataclass(frozen=True)
class Contender:
    """An optimizer, its reference in NumPy, and the learning rate of both."""

    fused: Callable[..., Stepper]
    reference: Callable[..., Stepper]
    lr: float

    @property
    def name(self) -> str:
        """The name in the table and in the picture."""
        return self.fused.__name__


class FormulaOptimizer:
    """A formula of `schuss.reference` with its states.

    `reference.Optimizer` would be slower: in each step, it also measures the gradients.
    """

    def __init__(
        self,
        formula: Callable[..., None],
        states: int,
        params: Parameters,
        *,
        lr: float,
        counts_steps: bool = False,
    ) -> None:
        self._update = partial(formula, lr=lr)
        self._params, self._counts_steps, self._steps = params, counts_steps, 0
        self._states = {k: [np.zeros_like(p) for _ in range(states)] for k, p in params.items()}

    def step(self, grads: Parameters) -> None:
        """Update the parameters in place."""
        self._steps += 1
        options = {"step": self._steps} if self._counts_steps else {}
        for name, param in self._params.items():
            self._update(param, grads[name], *self._states[name], **options)


CONTENDERS = (
    Contender(schuss.SGD, partial(FormulaOptimizer, reference.sgd, 0), lr=0.2),
    Contender(schuss.Momentum, partial(FormulaOptimizer, reference.momentum, 1), lr=0.5),
    Contender(schuss.RMSprop, partial(FormulaOptimizer, reference.rmsprop, 1), lr=0.001),
    Contender(
        schuss.Adam, partial(FormulaOptimizer, reference.adam, 2, counts_steps=True), lr=0.002
    ),
)


@dataclass(frozen=True)
class Run:
    """The final parameters and the history of a training."""

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
    """The trainings of a contender with schuss and with its reference."""

    contender: Contender
    fused: Run
    reference: Run
    training_accuracy: float
    test_accuracies: tuple[float, ...]
    """The test accuracy on each split of the digits, that of `fused` first."""

    @property
    def accuracy_text(self) -> str:
        """The mean of the test accuracies and their standard deviation."""
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
    trainings = len(CONTENDERS) * (SPLITS + 1)  # one of them with the reference
    return trainings * epochs * (TRAINING_EXAMPLES // BATCH_SIZE)


def compare(
    digits: Digits, *, epochs: int, seed: int, tick: Callable[[], object] = lambda: None
) -> list[Result]:
    """Train with each contender, from the same initial weights and on the same batches.

    Then once more on each other split, to measure how much the test accuracy depends on chance.
    """

    def learn(make: Callable[[Parameters], Stepper], digits: Digits, seed: int) -> Run:
        options: dict[str, Any] = {"epochs": epochs, "seed": seed, "l2": L2}
        return Run(*train(make, digits, watch=lambda *_: tick(), **options))

    others = [(seed + i) % 2**32 for i in range(1, SPLITS)]
    splits = [(digits, seed), *((Digits.load(other), other) for other in others)]
    results = []
    for contender in CONTENDERS:
        runs = [learn(partial(contender.fused, lr=contender.lr), *split) for split in splits]
        tested = [
            accuracy(run.params, split.x_test, split.labels_test)
            for run, (split, _) in zip(runs, splits, strict=True)
        ]
        trained = accuracy(runs[0].params, digits.x, digits.labels)
        expected = learn(partial(contender.reference, lr=contender.lr), digits, seed)
        results.append(Result(contender, runs[0], expected, trained, tuple(tested)))
    return results


COLUMNS: dict[str, Callable[[Result], str]] = {
    "\nOptimizer": lambda result: result.contender.name,
    "Learning\nrate": lambda result: f"{result.contender.lr:g}",
    "Final\ncost J": lambda result: f"{result.epoch_costs[-1]:.3f}",
    "Training\naccuracy": lambda result: f"{result.training_accuracy:.1%}",
    "Test\naccuracy": lambda result: result.accuracy_text,
    "\nSeconds": lambda result: f"{result.fused.seconds:.2f}",
    "Step,\nschuss": lambda result: f"{result.fused.step_share:.1%}",
    "Step,\nreference": lambda result: f"{result.reference.step_share:.1%}",
}


def table(results: list[Result]) -> Table:
    """Return the results as a table."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, heading in enumerate(COLUMNS):
        grid.add_column(heading, justify="right" if index else "left")
    for result in results:
        grid.add_row(*(show(result) for show in COLUMNS.values()))
    return grid


@styled
def picture(results: list[Result]) -> Figure:
    """Draw the cost curves: each mini-batch (pale), and the mean of each epoch (strong)."""
    drawn = figure(4.8, "Learning handwritten digits: cost, learning rate and test accuracy")
    axes = drawn.subplots()
    epochs = len(results[0].epoch_costs)
    label_height = 0.0
    for result in sorted(results, key=lambda result: result.epoch_costs[-1]):
        name, costs = result.contender.name, result.fused.history.cost
        color, means = COLORS[name], result.epoch_costs
        batches = np.linspace(0, epochs, len(costs), endpoint=False)
        axes.plot(batches, costs, color=color, alpha=0.35, linewidth=0.5)
        middles = np.arange(epochs) + 0.5
        axes.plot(middles, means, color=color, linewidth=2, marker="o", markersize=2.5)
        # Labels keep their distance even if curves end close together.
        label_height = max(means[-1], 1.6 * label_height)
        axes.annotate(
            rf"{name}  $\alpha$ = {result.contender.lr:g}" + f"\n{result.accuracy_text}",
            (epochs, label_height),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            weight="bold",
            verticalalignment="center",
        )
    axes.set(xlabel="epoch", ylabel="cost J (nats per example)", xlim=(0, epochs), yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    note(
        drawn,
        f"pale: each mini-batch of {BATCH_SIZE}; strong: the mean of each epoch\n"
        f"test accuracy: mean and standard deviation of {SPLITS} splits, each with "
        f"{TEST_EXAMPLES} test images; differences within it are chance",
    )
    return drawn

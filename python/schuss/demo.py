"""The demo: a network learns handwritten digits with each optimizer and with its NumPy twin."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import schuss
from schuss import reference
from schuss._arrays import Array
from schuss.network import Parameters, accuracy, cost_and_gradients, initial_parameters

__all__ = ["CONTENDERS", "Contender", "Digits", "Result", "Run", "Twin", "compare", "run", "train"]

LAYERS = (64, 256, 128, 10)
BATCH_SIZE = 64
L2 = 0.01
# About 80/20, and such that all batches are full: J's L2 term depends on the size of the batch.
TRAINING_EXAMPLES = 22 * BATCH_SIZE


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 digits of 8 x 8 pixels, scaled to [0, 1] and split in two."""

    x: Array
    labels: npt.NDArray[np.int64]
    x_test: Array
    labels_test: npt.NDArray[np.int64]

    @classmethod
    def load(cls, seed: int) -> "Digits":
        """Load the digits and split them at random, each class alike."""
        pixels, labels = load_digits(return_X_y=True)
        x, x_test, labels, labels_test = train_test_split(
            (pixels / 16).astype(np.float32),
            labels,
            train_size=TRAINING_EXAMPLES,
            stratify=labels,
            random_state=seed,
        )
        return cls(x, labels, x_test, labels_test)


class Stepper(Protocol):
    """What makes optimizer steps on parameters that it holds."""

    def step(self, grads: Any, /) -> None:
        """Update the parameters in place."""


@dataclass(frozen=True)
class Contender:
    """An optimizer and its NumPy twin, with as many arrays of state for each parameter."""

    fused: Callable[..., Stepper]
    formula: Callable[..., None]
    states: int
    lr: float
    color: str
    counts_steps: bool = False

    @property
    def name(self) -> str:
        """The name in the table and in the picture."""
        return self.fused.__name__


# The colours are Okabe and Ito's, which the colour-blind tell apart.
CONTENDERS = (
    Contender(schuss.SGD, reference.sgd, 0, lr=0.2, color="#CC79A7"),
    Contender(schuss.Momentum, reference.momentum, 1, lr=0.5, color="#E69F00"),
    Contender(schuss.RMSprop, reference.rmsprop, 1, lr=0.001, color="#009E73"),
    Contender(schuss.Adam, reference.adam, 2, lr=0.002, color="#0072B2", counts_steps=True),
)


class Twin:
    """A contender by the formulas of `schuss.reference`, with state kept by hand."""

    def __init__(self, contender: Contender, params: Parameters) -> None:
        self._contender = contender
        self._params = params
        self._state = {
            name: [np.zeros_like(p) for _ in range(contender.states)] for name, p in params.items()
        }
        self._steps = 0

    def step(self, grads: Parameters) -> None:
        """Update the parameters in place."""
        self._steps += 1
        options = {"step": self._steps} if self._contender.counts_steps else {}
        for name, p in self._params.items():
            state = self._state[name]
            self._contender.formula(p, grads[name], *state, lr=self._contender.lr, **options)


@dataclass
class Run:
    """A training: the parameters, the cost J of every batch, and where the time went."""

    params: Parameters
    costs: list[float] = field(default_factory=list)
    gradient_seconds: float = 0.0
    step_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The time spent in gradients and steps."""
        return self.gradient_seconds + self.step_seconds

    @property
    def step_share(self) -> float:
        """The fraction of that time spent in steps."""
        return self.step_seconds / self.seconds


def train(
    make_optimizer: Callable[[Parameters], Stepper],
    digits: Digits,
    *,
    epochs: int,
    seed: int,
    progress: Callable[[], object] = lambda: None,
) -> Run:
    """Train the network; the same seed gives the same start and the same batches."""
    run = Run(initial_parameters(LAYERS, np.random.default_rng(seed)))
    optimizer = make_optimizer(run.params)
    batches = schuss.minibatches(digits.x, digits.labels, batch_size=BATCH_SIZE, rng=seed)
    for _ in range(epochs):
        for x, labels in batches:
            start = perf_counter()
            cost, gradients = cost_and_gradients(run.params, x, labels, l2=L2)
            between = perf_counter()
            optimizer.step(gradients)
            end = perf_counter()
            run.costs.append(cost)
            run.gradient_seconds += between - start
            run.step_seconds += end - between
            progress()
    return run


@dataclass(frozen=True)
class Result:
    """What a contender did, with schuss and with its NumPy twin."""

    contender: Contender
    fused: Run
    twin: Run
    epochs: int
    training_accuracy: float
    test_accuracy: float

    @property
    def epoch_costs(self) -> npt.NDArray[np.float64]:
        """The mean of J over the batches of each epoch."""
        costs = np.array(self.fused.costs, np.float64).reshape(self.epochs, -1)
        return np.asarray(costs.mean(axis=1))

    @property
    def same_bits(self) -> bool:
        """Whether both trainings ended with the same parameters, to the last bit."""
        twin = self.twin.params
        return all(p.tobytes() == twin[name].tobytes() for name, p in self.fused.params.items())


def compare(*, epochs: int, seed: int) -> list[Result]:
    """Train with each contender, from the same start and on the same batches."""
    digits = Digits.load(seed)
    steps = 2 * len(CONTENDERS) * epochs * (TRAINING_EXAMPLES // BATCH_SIZE)
    results = []
    # The matrices are too small for BLAS to gain by threads, and on busy cores it loses a lot.
    # disable=None: no bar where standard error is no terminal.
    with (
        threadpool_limits(1, user_api="blas"),
        tqdm(total=steps, unit=" steps", disable=None, leave=False) as bar,
    ):
        learn = partial(train, digits=digits, epochs=epochs, seed=seed, progress=bar.update)
        for contender in CONTENDERS:
            bar.set_description(f"{contender.name}, schuss")
            fused = learn(partial(contender.fused, lr=contender.lr))
            bar.set_description(f"{contender.name}, twin")
            twin = learn(partial(Twin, contender))
            training_accuracy = accuracy(fused.params, digits.x, digits.labels)
            test_accuracy = accuracy(fused.params, digits.x_test, digits.labels_test)
            results.append(Result(contender, fused, twin, epochs, training_accuracy, test_accuracy))
    return results


def table(results: list[Result]) -> Table:
    """Return the results as a table."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("\nOptimizer")
    for heading in (
        "Final\ncost J",
        "Training\naccuracy",
        "Test\naccuracy",
        "\nSeconds",
        "Step with\nschuss",
        "Step with\nthe twin",
    ):
        grid.add_column(heading, justify="right")
    for result in results:
        grid.add_row(
            result.contender.name,
            f"{result.epoch_costs[-1]:.3f}",
            f"{result.training_accuracy:.1%}",
            f"{result.test_accuracy:.1%}",
            f"{result.fused.seconds:.2f}",
            f"{result.fused.step_share:.1%}",
            f"{result.twin.step_share:.1%}",
        )
    return grid


def picture(results: list[Result]) -> Figure:
    """Return the cost curves: each mini-batch pale, the mean of each epoch strong."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    label_height = 0.0
    for result in sorted(results, key=lambda result: result.epoch_costs[-1]):
        color, means = result.contender.color, result.epoch_costs
        batches = np.linspace(0, result.epochs, len(result.fused.costs), endpoint=False)
        axes.plot(batches, result.fused.costs, color=color, alpha=0.35, linewidth=0.5)
        epochs = np.arange(result.epochs) + 0.5
        axes.plot(epochs, means, color=color, linewidth=2, marker="o", markersize=2.5)
        # The curves may end close together; their labels must not.
        label_height = max(means[-1], 1.25 * label_height)
        axes.annotate(
            f"{result.contender.name}  {result.test_accuracy:.1%}",
            (result.epochs, label_height),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            weight="bold",
            verticalalignment="center",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, results[0].epochs)
    axes.set_xlabel("epoch")
    axes.set_ylabel("cost J (nats per example)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Learning handwritten digits: cost and test accuracy", loc="left", weight="bold")
    axes.text(
        0.99,
        0.97,
        f"pale: each mini-batch of {BATCH_SIZE}\nstrong: the mean of each epoch",
        transform=axes.transAxes,
        horizontalalignment="right",
        verticalalignment="top",
        color="0.35",
    )
    return figure


def run(*, out: Path, epochs: int, seed: int) -> int:
    """Train, print a table, write a picture, and return the exit status."""
    console = Console(highlight=False, markup=False)
    layers = "-".join(map(str, LAYERS))
    console.print(
        f"A {layers} network learns handwritten digits: {TRAINING_EXAMPLES:,} images,\n"
        f"mini-batches of {BATCH_SIZE}, epochs: {epochs}, lambda: {L2}."
    )
    results = compare(epochs=epochs, seed=seed)
    console.print(table(results))
    console.print(
        "Cost: mean of the last epoch, nats per example. Seconds: training with schuss.\n"
        "Step: its share of the training's time, with schuss and with the NumPy twin."
    )
    differing = [result.contender.name for result in results if not result.same_bits]
    if differing:
        console.print(
            f"schuss and its twin ended with different parameters: {', '.join(differing)}."
        )
    else:
        console.print("schuss and its twin ended with the same parameters, to the last bit.")
    picture(results).savefig(out, dpi=150)
    console.print(f"The cost curves are in {out}", soft_wrap=True)
    return 1 if differing else 0

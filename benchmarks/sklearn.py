"""Whole trainings by scikit-learn's `MLPClassifier`, patched and not.

All contenders train in this process, with the same scikit-learn, NumPy and BLAS. They differ only
in the steps.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from itertools import product
from time import perf_counter
from typing import Any, NamedTuple, get_args

import numpy as np

import schuss
from benchmarks.contenders import SCHUSS, SHARED_THREADS
from benchmarks.harness import (
    Array,
    DType,
    Record,
    Settings,
    check_values,
    interleave,
    line,
    settle,
    tracked,
)
from benchmarks.peers import installed

FEATURES, CLASSES = 784, 10
HIDDEN: Sequence[tuple[int, ...]] = ((512, 512), (1_024, 1_024), (100,))
BATCH_SIZES = (200, 32)
BATCHES, EPOCHS = 20, 3
"""The number of batches an epoch, and of epochs: enough that the checks of the data, once for each
training, do not matter."""
CHECKED_WIDTH, CHECKED_BATCHES = 20, 3


@contextmanager
def _patched_with_shared_threads() -> Iterator[None]:
    with schuss.share_threads_with_blas(), schuss.sklearn.patch_sklearn():
        yield


UNPATCHED = "scikit-learn"
CONTENDERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    UNPATCHED: nullcontext,
    SCHUSS.name: lambda: schuss.sklearn.patch_sklearn(),
    SHARED_THREADS.name: _patched_with_shared_threads,
}


class Training(NamedTuple):
    """A training: the model before it, and its data."""

    solver: str
    hidden: tuple[int, ...]
    batch_size: int
    dtype: DType

    def data(self) -> tuple[Array, Array]:
        rng, examples = np.random.default_rng(0), BATCHES * self.batch_size
        return rng.random((examples, FEATURES), self.dtype), rng.integers(0, CLASSES, examples)

    def fit(self, x: Array, y: Array) -> Any:
        """Train a new model, and return it."""
        model = import_module("sklearn.neural_network").MLPClassifier(
            hidden_layer_sizes=self.hidden,
            solver=self.solver,
            batch_size=self.batch_size,
            max_iter=EPOCHS,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Stochastic Optimizer")  # few epochs
            return model.fit(x, y)

    def labels(self) -> Mapping[str, object]:
        return {
            "solver": self.solver,
            "hidden": " + ".join(f"{width:,}" for width in self.hidden),
            "batch": self.batch_size,
            "dtype": self.dtype,
        }


def check_trainings(training: Training, names: list[str]) -> None:
    """Raise WrongResultError unless small models of all contenders are those of scikit-learn."""
    small = training._replace(hidden=tuple(CHECKED_WIDTH for _ in training.hidden))
    x, y = (array[: CHECKED_BATCHES * small.batch_size] for array in small.data())
    expected = small.fit(x, y)
    for name in names:
        with CONTENDERS[name]():
            model = small.fit(x, y)
        losses = (np.array(each.loss_curve_, small.dtype) for each in (model, expected))
        check_values(f"{name}: the loss", *losses, exact=False)
        for mine, theirs in zip(model.coefs_, expected.coefs_, strict=True):
            check_values(f"{name}: the weights", mine, theirs, exact=False)


def measure(name: str, training: Training, x: Array, y: Array) -> float:
    """Return the seconds of a training."""
    with CONTENDERS[name]():
        settle()
        start = perf_counter()
        training.fit(x, y)
        return perf_counter() - start


def sklearn(settings: Settings) -> list[Record]:
    """Trainings of scikit-learn's MLPClassifier; the sizes are widths of two hidden layers."""
    if not installed("sklearn"):
        return []
    names = [name for name in CONTENDERS if name != SHARED_THREADS.name or SHARED_THREADS.present()]
    networks: Sequence[tuple[int, ...]] = [(w, w) for w in settings.sizes] or HIDDEN
    trainings = [
        Training(solver, hidden, batch_size, dtype)
        for solver, of_solver in (("adam", networks), ("sgd", networks[:1]))
        for hidden, batch_size, dtype in product(of_solver, BATCH_SIZES, get_args(DType))
    ]
    records = []
    for training in tracked("sklearn", trainings):
        check_trainings(training, names)
        x, y = training.data()
        measures = {name: partial(measure, name, training, x, y) for name in names}
        times = interleave(measures, settings.rounds)
        records += [
            line(training.labels(), name, times, "milliseconds", [SCHUSS.name]) for name in names
        ]
    return records

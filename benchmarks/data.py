"""The benchmarks of data: averages of series, and epochs of mini-batches.

To add a peer, write a function that prepares its work, and add it to the cases that it runs in.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import schuss
from benchmarks.harness import (
    Array,
    Record,
    Settings,
    WrongResultError,
    check_values,
    ordinary,
    tracked,
)
from benchmarks.tasks import Peer, Work, contend, one_thread

BETA = 0.98

CHECK_SIZE = 70_003
"""Long enough that a series is averaged in parts and examples are shuffled and gathered in stages;
the last batch is short, for batches of 64 and of 1,000."""

Order: TypeAlias = npt.NDArray[np.int64]


# Averages of a series.


@dataclass(frozen=True)
class Series:
    """Values to average, with the bias correction or without."""

    values: npt.NDArray[Any]
    corrected: bool

    def check(self, name: str, work: Work) -> None:
        expected = schuss.reference.ewma(self.values, BETA, bias_correction=self.corrected)
        what = f"{name}: the {'corrected' if self.corrected else 'bare'} average"
        check_values(what, work(), expected, exact=name.startswith("schuss"))

    def timed(self, work: Work) -> Work:
        return work


def schuss_ewma(series: Series) -> Work:
    return partial(schuss.ewma, series.values, BETA, bias_correction=series.corrected)


def schuss_ewma_into(series: Series) -> Work:
    out = np.empty_like(series.values)
    return partial(schuss.ewma, series.values, BETA, bias_correction=series.corrected, out=out)


def schuss_ewma_in_place(series: Series) -> Work:
    values = series.values.copy()
    return partial(schuss.ewma, values, BETA, bias_correction=series.corrected, out=values)


def scipy_lfilter(series: Series) -> Work:
    lfilter = import_module("scipy.signal").lfilter
    return partial(lfilter, [1 - BETA], [1, -BETA], series.values)


def pandas_ewm(series: Series) -> Work:
    values = import_module("pandas").Series(series.values)
    return lambda: values.ewm(alpha=1 - BETA, adjust=True).mean().to_numpy()


_FORMS: dict[str, Callable[[Series], Work]] = {
    "schuss": schuss_ewma,
    "schuss, out=": schuss_ewma_into,
    "schuss, in place": schuss_ewma_in_place,
}
EWMA = (*(Peer(*form) for form in _FORMS.items()), *(one_thread(*form) for form in _FORMS.items()))
AVERAGES: dict[str, tuple[Peer[Series], ...]] = {
    "bare recurrence": (*EWMA, Peer("scipy lfilter", scipy_lfilter, "scipy")),
    "bias-corrected": (*EWMA, Peer("pandas ewm", pandas_ewm, "pandas")),
}
COPY = Peer[Series]("x.copy()", lambda series: series.values.copy)


def average(settings: Settings) -> list[Record]:
    """The averages of one series: float64, beta 0.98."""

    def pose(form: str, size: int) -> Series:
        return Series(ordinary(size, dtype="float64"), form == "bias-corrected")

    cases = list(product(settings.sizes or (10_000_000,), AVERAGES.items()))
    records = []
    for size, (form, peers) in tracked("average", cases):
        labels = {"average": form, "size": size}
        records += contend(
            labels, partial(pose, form), (CHECK_SIZE, size), peers, [COPY], settings.rounds
        )
    return records


# Epochs of mini-batches.

Epoch: TypeAlias = Callable[[], Iterable[Any]]
"""Gives the batches of another epoch at each call."""


@dataclass(frozen=True)
class Examples:
    """The data of an epoch: examples in rows (axis 0) or in columns (axis 1)."""

    x: Array
    axis: int
    batch_size: int

    def __len__(self) -> int:
        return int(self.x.shape[self.axis])

    def check(self, name: str, work: Epoch) -> None:
        """Check that two epochs have full batches, each example once, and different orders."""
        whole, rest = divmod(len(self), self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * (rest > 0)
        expected = np.moveaxis(self.x, self.axis, 0)
        orders: list[Order] = []
        for _ in range(2):
            batches = [np.moveaxis(np.asarray(batch).copy(), self.axis, 0) for batch in work()]
            if [len(batch) for batch in batches] != sizes:
                raise WrongResultError(f"{name}: not all batches have {self.batch_size} examples")
            seen = np.concatenate(batches)
            orders.append(np.argsort(seen[:, 0]))
            if not np.array_equal(seen[orders[-1]], expected):
                raise WrongResultError(f"{name}: an epoch does not hold each example once")
        if np.array_equal(orders[0], orders[1]):
            raise WrongResultError(f"{name}: an epoch has the order of the one before")

    def timed(self, work: Epoch) -> Work:
        def epoch() -> None:
            for _ in work():
                pass

        return epoch


def examples_in(layout: str, features: int, batch_size: int, size: int) -> Examples:
    """Return increasing examples, which a check can tell apart."""
    rows = np.arange(size * features, dtype=np.float32).reshape(size, features)
    if layout == "rows":
        return Examples(rows, 0, batch_size)
    return Examples(np.ascontiguousarray(rows.T), 1, batch_size)


def schuss_minibatches(examples: Examples) -> Epoch:
    x, size, axis = examples.x, examples.batch_size, examples.axis
    return schuss.minibatches(x, batch_size=size, rng=0, axis=axis).__iter__


Pick: TypeAlias = Callable[[Array, Order, int], Array]


def _cut(pick: Pick, examples: Examples, order: Order) -> Iterator[Array]:
    x, size, axis = examples.x, examples.batch_size, examples.axis
    for start in range(0, len(order), size):
        yield pick(x, order[start : start + size], axis)


def _shuffled(pick: Pick) -> Callable[[Examples], Epoch]:
    def prepare(examples: Examples) -> Epoch:
        rng = np.random.default_rng(0)
        return lambda: _cut(pick, examples, rng.permutation(len(examples)))

    return prepare


def _index(x: Array, chosen: Order, axis: int) -> Array:
    return x[chosen] if axis == 0 else x[:, chosen]


def take_into_a_buffer(examples: Examples) -> Epoch:
    rng = np.random.default_rng(0)
    buffer = np.empty((examples.batch_size, *examples.x.shape[1:]), examples.x.dtype)

    def pick(x: Array, chosen: Order, axis: int) -> Array:
        # The mode "raise" would go through a copy.
        return np.take(x, chosen, axis, out=buffer[: len(chosen)], mode="clip")

    return lambda: _cut(pick, examples, rng.permutation(len(examples)))


def take_in_ready_order(examples: Examples) -> Epoch:
    order = np.random.default_rng(0).permutation(len(examples))
    return lambda: _cut(np.take, examples, order)


def torch_data_loader(examples: Examples) -> Epoch:
    torch, data = import_module("torch"), import_module("torch.utils.data")
    dataset = data.TensorDataset(torch.from_numpy(examples.x))
    loader = data.DataLoader(dataset, batch_size=examples.batch_size, shuffle=True)
    return lambda: (x for (x,) in loader)


MINIBATCHES = (Peer("schuss", schuss_minibatches), one_thread("schuss", schuss_minibatches))
NUMPY = (Peer("NumPy indexing", _shuffled(_index)), Peer("np.take", _shuffled(np.take)))
DATA_LOADER = Peer("torch DataLoader", torch_data_loader, "torch")
READY_ORDER = Peer("np.take, order ready", take_in_ready_order)

BY_ROWS = (*MINIBATCHES, *NUMPY, Peer("np.take, out=", take_into_a_buffer), DATA_LOADER)
BY_COLUMNS = (*MINIBATCHES, *NUMPY)


def batches(settings: Settings) -> list[Record]:
    """A shuffled epoch: float32."""
    cases = [
        ("rows", 1_000_000, 64, 64, BY_ROWS, ()),
        ("rows", 1_000_000, 64, 1_000, BY_ROWS, ()),
        ("columns", 1_000_000, 64, 64, BY_COLUMNS, ()),
        ("columns", 1_000_000, 64, 1_000, BY_COLUMNS, ()),
        # The difference per batch is the cost of the shuffle and the loop.
        ("rows", 5_000_000, 16, 1_000, MINIBATCHES, (READY_ORDER,)),
    ]
    records = []
    for layout, usual, features, batch, peers, yardsticks in tracked("batches", cases):
        pose = partial(examples_in, layout, features, batch)
        for size in settings.sizes or (usual,):
            labels = {"layout": layout, "examples": size, "features": features, "batch": batch}
            sizes = (CHECK_SIZE, size)
            for record in contend(labels, pose, sizes, peers, yardsticks, settings.rounds):
                a_batch = record["milliseconds"] * 1e3 / -(-size // batch)
                records.append({**record, "microseconds_a_batch": a_batch})
    return records

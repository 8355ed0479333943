"""Steps of rows in NumPy, by fancy indexing. Rows without a gradient rest."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import Array, Rule
from benchmarks.rows.draws import Batch, Indices
from benchmarks.rows.ways import ROWWISE_ADAGRAD, Training, Way

FEW = 0.25
"""The share of repeated rows up to which these are added one by one."""


def summed(batch: Batch) -> tuple[Indices, Array]:
    """Return the distinct rows and the sums of their gradients, in the way that is fastest."""
    order = np.argsort(batch.indices, kind="stable")
    sorted_indices = batch.indices[order]
    first = np.concatenate(([True], sorted_indices[1:] != sorted_indices[:-1]))
    starts = np.flatnonzero(first)
    if len(order) - len(starts) > FEW * len(order):
        return sorted_indices[starts], np.add.reduceat(batch.values[order], starts, axis=0)
    sums = batch.values[order[starts]]
    places = np.cumsum(first) - 1
    np.add.at(sums, places[~first], batch.values[order[~first]])
    return sorted_indices[starts], sums


Update = Callable[..., None]
"""Changes the table and its states in the given rows by their gradients."""


def _adam(t: int, rows: Indices, g: Array, p: Array, m: Array, v: Array, **c: float) -> None:
    of_rows = m[rows]
    of_rows *= c["beta1"]
    of_rows += (1 - c["beta1"]) * g
    m[rows] = of_rows
    g *= g
    g *= 1 - c["beta2"]
    squares = v[rows]
    squares *= c["beta2"]
    squares += g
    v[rows] = squares
    root = (1 - c["beta2"] ** t) ** 0.5
    np.sqrt(squares, out=squares)
    squares += c["eps_hat"] + c["eps"] * root
    of_rows /= squares
    of_rows *= c["lr"] * root / (1 - c["beta1"] ** t)
    p[rows] -= of_rows


def _sgd(
    t: int, rows: Indices, g: Array, p: Array, *, lr: float, weight_decay: float = 0.0
) -> None:
    of_rows = p[rows]
    if weight_decay:
        g += weight_decay * of_rows
    g *= lr
    of_rows -= g
    p[rows] = of_rows


def _momentum(
    t: int, rows: Indices, g: Array, p: Array, v: Array, *, lr: float, beta: float
) -> None:
    of_rows = v[rows]
    of_rows *= beta
    g *= 1 - beta
    of_rows += g
    v[rows] = of_rows
    of_rows *= lr
    p[rows] -= of_rows


def _adagrad(t: int, rows: Indices, g: Array, p: Array, s: Array, *, lr: float, eps: float) -> None:
    squares = s[rows]
    squares += g * g
    s[rows] = squares
    np.sqrt(squares, out=squares)
    squares += eps
    g /= squares
    g *= lr
    p[rows] -= g


def _rowwise_adagrad(
    t: int, rows: Indices, g: Array, p: Array, s: Array, *, lr: float, eps: float
) -> None:
    sums = s[rows]
    sums += np.einsum("ij,ij->i", g, g) / g.shape[1]
    s[rows] = sums
    g *= (lr / (np.sqrt(sums) + eps))[:, None]
    p[rows] -= g


def _prepare(
    update: Update, states: int, rule: Rule, table: Array, batches: Sequence[Batch]
) -> Training:
    arrays = [np.zeros_like(table) for _ in range(states)]
    if rule is ROWWISE_ADAGRAD:
        arrays = [np.zeros(len(table), table.dtype)]
    t = 0

    def step(batch: Batch) -> None:
        nonlocal t
        t += 1
        update(t, *summed(batch), table, *arrays, **rule.hyperparameters)

    return Training([partial(step, batch) for batch in batches])


_UPDATES: dict[str, tuple[Any, int]] = {
    "Adam": (_adam, 2),
    "SGD": (_sgd, 0),
    "SGD, decay": (_sgd, 0),
    "momentum": (_momentum, 1),
    "Adagrad": (_adagrad, 1),
    "row-wise Adagrad": (_rowwise_adagrad, 1),
}
NUMPY = Way(
    "NumPy, fancy indexing", {name: partial(_prepare, *each) for name, each in _UPDATES.items()}
)

"""Gradients of rows, what they mean, and a pair of optimizers, of rows and of dense arrays."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

import schuss
from schuss._arrays import computed_dtype
from schuss._core import subnormals_are_zero
from support.arrays import Array, numbers
from support.optimizers import assert_same, make_optimizer


def random_rows(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    count: int = 4,
    *,
    dtype: Any = np.float32,
    index: Any = np.int64,
    special: bool = False,
) -> schuss.Rows:
    """Return rows at random indices, some of them several times."""
    indices = rng.integers(0, shape[0], count if shape[0] else 0).astype(index)
    values = numbers(rng, (len(indices), *shape[1:]), dtype, special=special)
    return schuss.Rows(indices, values)


def dense_of(rows: Any, param: Array) -> Any:
    """Return the array that rows mean: zeros, to which each is added in turn. Others return."""
    if not isinstance(rows, schuss.Rows):
        return rows
    dense = np.zeros(param.shape, computed_dtype(param))
    with np.errstate(all="ignore"):
        for index, value in zip(rows.indices, rows.values, strict=True):
            value = value.astype(computed_dtype(value))
            with subnormals_are_zero():
                dense[index] = dense[index] + value.astype(dense.dtype)
    return dense


def denser(grads: Any, params: Any) -> Any:
    """Return gradients in the structure of the parameters, without rows."""
    if isinstance(params, dict):
        return {key: denser(grads[key], params[key]) for key in params}
    if isinstance(params, list):
        return [denser(*each) for each in zip(grads, params, strict=True)]
    return dense_of(grads, params)


class Pair:
    """An optimizer that gets rows, and the same optimizer, which gets what they mean."""

    def __init__(self, name: str, params: Any, **options: Any) -> None:
        self.rows = make_optimizer(name, params, **options)
        self.dense = make_optimizer(name, copy.deepcopy(params), **options)

    def denser(self, grads: Any) -> Any:
        """Return gradients without rows."""
        return denser(grads, self.dense.params)

    def step(self, grads: Any, *, scale: float = 1.0) -> None:
        """Make the step of both."""
        dense = self.denser(grads)
        self.rows.step(grads, scale=scale)
        self.dense.step(dense, scale=scale)

    def do(self, change: Callable[[Any], object]) -> None:
        """Do the same to both."""
        change(self.rows)
        change(self.dense)

    def check(self) -> None:
        """Assert that both have the same bits, after all rows were brought up to date."""
        self.rows.flush()
        assert_same(self.rows, self.dense)
        assert repr(self.rows.last) == repr(self.dense.last)

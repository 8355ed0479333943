"""Gradients of an optimizer: arrays, rows of arrays, and their sums."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from schuss._arrays import Array, components, computed_dtype
from schuss._core import subnormals_are_zero
from schuss.reference._numbers import apply_scale, wide, widen_grad
from schuss.rows import as_rows


class Gradient(NamedTuple):
    """The gradient of one parameter."""

    values: Array  # in the parameter's shape
    rows: Array | None  # those that it has, each once; None: all
    source: Array  # the user's array

    def clear(self) -> None:
        """Set the user's array to zero."""
        self.source[...] = 0


def gradient_of(param: Array, grad: Any) -> Gradient:
    """Return the gradient of a parameter that the user gives: an array, or rows.

    The rows are added to zeros in their order, in the dtype of the computation.
    """
    rows = as_rows(grad)
    if rows is None:
        return Gradient(np.asarray(grad), None, np.asarray(grad))
    touched = np.unique(rows.indices)
    expected = len(rows), *param.shape[1:]
    if (
        rows.values.shape != expected
        or rows.length not in (None, len(param))
        or (touched.size and not 0 <= touched[0] <= touched[-1] < len(param))
    ):
        raise ValueError(
            f"reference.Optimizer: a gradient is {rows!r}, expected rows of an array of shape "
            f"{param.shape}, with indices from 0 to below {len(param)}"
        )
    values = np.zeros(param.shape, computed_dtype(param))
    total = components(values)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        np.add.at(total, rows.indices, widen_grad(components(rows.values), total))
    return Gradient(values, touched, rows.values)


class GradientSums:
    """The sums of the accumulated gradients, one for each parameter."""

    __slots__ = ("_sums", "_totals")

    def __init__(self, params: Sequence[Array]) -> None:
        self._totals = [np.zeros(each.shape, computed_dtype(each)) for each in params]
        self.drop()

    def __getitem__(self, parameter: int) -> Gradient | None:
        """Return the sum of a parameter's gradients; None if it had none."""
        return self._sums[parameter]

    def add(self, parameter: int, grad: Gradient, scale: float) -> None:
        """Add a gradient times a factor. The sum has rows as long as all gradients have."""
        before, total = self._sums[parameter], self._totals[parameter]
        values, rows = components(total), grad.rows
        term = apply_scale(values, widen_grad(components(grad.values), values), wide(scale))
        with subnormals_are_zero(), np.errstate(all="ignore"):
            values[...] = term if before is None else values + term
            if before is not None and rows is not None:
                rows = None if before.rows is None else np.union1d(before.rows, rows)
            if rows is not None:
                values += 0.0  # rows are added to +0
        self._sums[parameter] = Gradient(total, rows, total)

    def drop(self) -> None:
        """Drop all sums."""
        self._sums: list[Gradient | None] = [None] * len(self._totals)


class RestingRows:
    """The rows that a lazy step leaves as they are."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: list[tuple[Array, Array, Array]] = []

    def keep(self, arrays: Sequence[Array | None], touched: Array, rows: int) -> None:
        """Keep the other rows of the arrays of a parameter that has `rows` rows."""
        others = np.setdiff1d(np.arange(rows), touched)
        if not others.size:
            return
        for array in arrays:
            if array is not None and array.size > 0:
                by_row = array.reshape(rows, -1)  # a view: also of blocks of 8 bits
                self._kept.append((by_row, others, by_row[others]))

    def restore(self) -> None:
        """Write the rows that were kept."""
        for array, others, values in self._kept:
            array[others] = values

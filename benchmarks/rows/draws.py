"""The rows that mini-batches touch, and their gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

import schuss
from benchmarks.harness import Array

Indices = npt.NDArray[np.int64]

ZIPF_EXPONENT = 1.21
"""Of 10,000 words of a vocabulary of a million, about 2,300 differ."""


@dataclass(frozen=True)
class Batch:
    """The gradient of a mini-batch: a row of values for each index, which may be repeated."""

    indices: Indices
    values: Array

    @cached_property
    def distinct(self) -> Indices:
        return np.unique(self.indices)

    @property
    def rows(self) -> schuss.Rows:
        return schuss.Rows(self.indices, self.values)


Draw = Callable[[int, int, int], list[Indices]]
"""Takes the numbers of mini-batches, of rows of each, and of rows of the table; returns indices."""


def uniform(batches: int, count: int, rows: int) -> list[Indices]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, rows, count) for _ in range(batches)]


def zipf(batches: int, count: int, rows: int) -> list[Indices]:
    """Draw as words occur in a text: the n-th most frequent one is in row n."""
    sums = np.cumsum(np.arange(1.0, rows + 1) ** -ZIPF_EXPONENT)
    rng = np.random.default_rng(0)
    return [np.searchsorted(sums, rng.random(count) * sums[-1]) for _ in range(batches)]


def every_row_once(batches: int, count: int, rows: int) -> list[Indices]:
    """Draw all rows, each in one mini-batch: in turn, each has rested in all others."""
    order = np.random.default_rng(0).permutation(rows)
    return np.split(order[: rows // count * count], rows // count)


UNIFORM, ZIPF, ONCE = "uniform", "Zipf", "every row once"
DRAWS: Mapping[str, Draw] = {UNIFORM: uniform, ZIPF: zipf, ONCE: every_row_once}


def batches(draw: str, number: int, count: int, rows: int, columns: int) -> list[Batch]:
    """Return mini-batches, whose gradients are normally distributed and share their memory."""
    values = np.random.default_rng(1).standard_normal((count, columns), np.float32)
    return [Batch(indices, values) for indices in DRAWS[draw](number, count, rows)]

"""How mini-batches are cut from one array: as views, or gathered into pooled buffers."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss import _core
from schuss._arrays import Array
from schuss._hyperparameters import axis_of
from schuss._parts import Part

# Several batches are gathered in one call. Of rows, this many bytes, to save calls. Of columns,
# more: each cache line holds elements of several examples, and reading it once for all of them is
# faster (measured: an epoch of 64 x 1,000,000 float32 takes 0.09 s; batch by batch, 0.14 s).
ROWS_AT_ONCE, COLUMNS_AT_ONCE = 1 << 20, 1 << 26
SORTING = 32  # bytes that gathering columns needs for each example, besides the example itself
CACHE_LINE = 64


class Source:
    """An array of examples; internally they lie along the first axis."""

    def __init__(self, name: str, array: Array, axis: int) -> None:
        self.name = name
        self.axis = axis_of("minibatches", axis, array, name)
        if type(array) is np.ndarray:  # subclasses may not own their memory, or have their own view
            array = _core.held(array)
        self.array = np.moveaxis(array, self.axis, 0)
        self.examples = len(self.array)
        self._free: list[Array] = []  # memory of buffers that no array refers to any more

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy need."""
        return {**self.__dict__, "_free": []}

    def slices(
        self,
        order: npt.NDArray[np.int64] | None,
        size: int,
        first: int,
        end: int,
        part: Part,
        *,
        copy: bool,
    ) -> Iterator[Array]:
        """Yield a part of each batch of an epoch, with the examples along the array's own axis.

        Without an order and without `copy`, batches are views of the array.
        """
        batches = self._batches(order, size, first, min(end, self.examples), part)
        if copy:
            batches = (batch.copy() for batch in batches)
        if self.axis == 0:
            return batches
        axes = (*range(1, self.axis + 1), 0, *range(self.axis + 1, self.array.ndim))
        return (batch.transpose(axes) for batch in batches)

    def _batches(
        self, order: npt.NDArray[np.int64] | None, size: int, first: int, end: int, part: Part
    ) -> Iterator[Array]:
        is_gathered = type(self.array) in (np.ndarray, np.memmap) and not self.array.dtype.hasobject
        if order is None or not is_gathered:
            for start in range(first, end, size):
                share = slice(*part.within(start, min(start + size, end)))
                yield self.array[share if order is None else order[share]]
            return
        at_once, bytes_each = ROWS_AT_ONCE, self.array.nbytes // self.examples
        if self._lies_in_columns():
            at_once, bytes_each = COLUMNS_AT_ONCE, bytes_each + SORTING
        each = part.size(size)
        step = max(at_once // max(each * bytes_each, 1), 1) * size
        for start in range(first, end, step):
            batches = order[start : min(start + step, end)]
            chosen = part.of(batches, size)
            buffer = self._buffer(len(chosen))
            _core.gather(self.array, chosen, buffer)
            full, rest = divmod(len(batches), size)
            # An iteration takes half the time of slices.
            yield from buffer[: full * each].reshape(full, each, *buffer.shape[1:])
            if rest:
                yield buffer[full * each :]

    def _buffer(self, examples: int) -> Array:
        """Return memory for examples, pooled: touching new memory takes as long as filling it."""
        shape, dtype = (examples, *self.array.shape[1:]), self.array.dtype
        size = math.prod(shape) * dtype.itemsize
        if not 0 < size <= COLUMNS_AT_ONCE:
            return np.empty(shape, dtype)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        if memory.nbytes < size:
            memory = np.empty(size, np.uint8)
        pooled = np.asarray(_PooledBuffer(memory, self._free))
        buffer: Array = pooled[:size].view(dtype).reshape(shape)
        return buffer

    def _lies_in_columns(self) -> bool:
        """Whether a cache line holds elements of several examples."""
        piece = self.array.itemsize
        steps = zip(self.array.strides[1:], self.array.shape[1:], strict=True)
        for step, length in sorted((abs(step), length) for step, length in steps if length > 1):
            if step > piece:
                return piece < CACHE_LINE and abs(self.array.strides[0]) < step
            piece *= length
        return False


class _PooledBuffer:
    """Memory that returns to the pool once no array, the user's views included, refers to it."""

    __slots__ = ("__array_interface__", "_free", "_memory")

    def __init__(self, memory: Array, free: list[Array]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        # The pool keeps two: one is in use while the next one is filled. Without `_free`, Ctrl-C
        # interrupted __init__.
        free = getattr(self, "_free", None)
        if free is not None and len(free) < 2:
            free.append(self._memory)

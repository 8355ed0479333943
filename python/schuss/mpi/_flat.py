"""Whole arrays of the user, read and written in the order of the parameters' memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from schuss import _core
from schuss._arrays import Array
from schuss.mpi._cut import Range
from schuss.mpi._messages import Format, Message, components, copy_arrays


class Gradients:
    """The gradients of one rank in one step, as they are sent.

    Ranges count the components of complex numbers.
    """

    def __init__(
        self,
        orders: Sequence[_core.MemoryOrder],
        grads: Sequence[Array | None],
        formats: Sequence[Format | None],
    ) -> None:
        self._orders, self._grads = orders, grads
        self._flat: list[Array | None] = []
        for order, grad, format in zip(orders, grads, formats, strict=True):
            dense = None if grad is None or format is None else order.flat(grad)
            self._flat.append(None if dense is None else components(dense))

    def memory(self, param: int, dtype: np.dtype[Any]) -> Array | None:
        """Return the memory of a gradient if it lies there as it is sent, else None."""
        flat = self._flat[param]
        return flat if flat is not None and flat.dtype == dtype else None

    def memory_of(self, message: Message) -> Array | None:
        """Return the memory of a large message if it lies there as it is sent, else None."""
        if not message.large:
            return None
        ((param, begin, end),) = message.ranges
        memory = self.memory(param, message.format.wire)
        return None if memory is None else memory[begin:end]

    def write(self, message: Message, values: Array) -> None:
        """Write the gradients of a message's ranges to its values."""
        targets, sources = [], []
        for r, target in zip(message.ranges, message.split(values), strict=True):
            source = self._values(r, message.format)
            if source is None:
                target.fill(0)
            elif source.dtype == target.dtype:
                targets.append(target)
                sources.append(source)
            else:
                _convert(message.format.used, source, target)
        copy_arrays(targets, sources)

    def _values(self, r: Range, format: Format) -> Array | None:
        """Return the gradient of a range in its own dtype; None for zeros."""
        flat, grad = self._flat[r.param], self._grads[r.param]
        if flat is not None:
            return flat[r.begin : r.end]
        if grad is None:
            return None
        per_number = 1 + (grad.dtype.kind == "c")
        gathered = np.empty((r.end - r.begin) // per_number, grad.dtype)
        self._orders[r.param].gather(grad, r.begin // per_number, gathered)
        return components(gathered)


def _convert(dtype: np.dtype[Any], source: Array, target: Array) -> None:
    """Convert values; those of one 16-bit format to the other by a wider dtype."""
    if source.itemsize == target.itemsize == 2:
        wider = np.empty(source.size, dtype)
        _core.convert(source, wider)
        source = wider
    _core.convert(source, target)


class Parameters:
    """The user's parameters, and this rank's pieces of them.

    owned: where the pieces begin and end, in numbers of each parameter.
    """

    def __init__(
        self,
        orders: Sequence[_core.MemoryOrder],
        params: Sequence[Array],
        pieces: Sequence[Array],
        owned: Sequence[tuple[int, int]],
    ) -> None:
        self._orders, self._params = orders, params
        self._pieces = [components(piece) for piece in pieces]
        self._per_number = [1 + (param.dtype.kind == "c") for param in params]
        self._begins = [
            begin * count for (begin, _), count in zip(owned, self._per_number, strict=True)
        ]
        self._flat: list[Array | None] = []
        for order, param in zip(orders, params, strict=True):
            dense = order.flat(param)
            self._flat.append(None if dense is None else components(dense))

    def memory_of(self, message: Message) -> Array | None:
        """Return the memory of a large message in the parameter; None if it has gaps there."""
        if not message.large:
            return None
        ((param, begin, end),) = message.ranges
        flat = self._flat[param]
        return None if flat is None else flat[begin:end]

    def piece_of(self, r: Range) -> Array:
        """Return the memory of a range of this rank's pieces."""
        first = self._begins[r.param]
        return self._pieces[r.param][r.begin - first : r.end - first]

    def read(self, message: Message, values: Array) -> None:
        """Copy ranges of this rank's pieces to the values of a message."""
        copy_arrays(message.split(values), [self.piece_of(r) for r in message.ranges])

    def write(self, message: Message, values: Array) -> None:
        """Copy the values of a message to its ranges of the parameters."""
        targets, sources = [], []
        for r, source in zip(message.ranges, message.split(values), strict=True):
            flat = self._flat[r.param]
            if flat is None:
                self._scatter(r, source)
            else:
                targets.append(flat[r.begin : r.end])
                sources.append(source)
        copy_arrays(targets, sources)

    def write_piece(self, r: Range) -> None:
        """Copy a range of this rank's pieces to its parameter if that has gaps in memory."""
        if self._flat[r.param] is None:
            self._scatter(r, self.piece_of(r))

    def _scatter(self, r: Range, values: Array) -> None:
        param = self._params[r.param]
        begin = r.begin // self._per_number[r.param]
        self._orders[r.param].scatter(values.view(param.dtype), begin, param)

"""Low-precision copies of parameters, and the registry of the optimizers that write them."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.lib.array_utils import byte_bounds

from schuss import _core
from schuss._arrays import Array, ArrayLike, dtype_among, zeros_along
from schuss._settings import Configurable, holder_of


def is_dtype(copies: Any) -> bool:
    """Return whether the argument `copies` asks for new arrays of a dtype."""
    return isinstance(copies, str | type | np.dtype)


def copies_for(call: str, copies: Any, plan: _core.Plan) -> list[ArrayLike] | None:
    """Return the copies that the argument asks for, or raise TypeError or ValueError."""
    if copies is None:
        return None
    for array in plan.arrays:
        if array.dtype != np.float32:
            raise ValueError(
                f"{call}: copies are asked for where a parameter is {array.dtype}, expected "
                "parameters in float32"
            )
    if is_dtype(copies):
        dtype = dtype_among(call, "copies", copies, ("float16", "bfloat16"))
        return [zeros_along(array, 0, dtype) for array in plan.arrays]
    return plan.hold_copies(copies, call)


class WritesCopies(Protocol):
    """An object that writes copies of parameters."""

    @property
    def arrays(self) -> list[Array]:
        """The parameters."""

    def check_copies(self, call: str) -> None:
        """Raise ValueError if a copy cannot be written."""

    def write_copies(self) -> None:
        """Write the parameters to their copies."""


_WRITERS: WeakValueDictionary[int, WritesCopies] = WeakValueDictionary()
"""All objects that write copies, by id."""


def register(writer: WritesCopies) -> None:
    """Let `writer_of_copies` find this object."""
    _WRITERS[id(writer)] = writer


def writer_of_copies(
    call: str, arrays: Iterable[Array], besides: Configurable | None = None
) -> Callable[[], None]:
    """Return a function that rewrites the copies of parameters that overlap these arrays.

    The function is idempotent. Copies that cannot be written are refused at once. The optimizer
    `besides` is left out: it writes its own copies.
    """
    left_out = None if besides is None else holder_of(besides)
    spans = _spans(arrays)
    starts, ends = [start for start, _ in spans], [end for _, end in spans]

    def overlaps(array: Array) -> bool:
        start, end = byte_bounds(array)
        first = bisect_left(ends, start + 1)  # the first span that ends after the start
        return first < len(starts) and starts[first] < end

    found = []
    for writer in [reference() for reference in _WRITERS.valuerefs()]:
        if writer is None or writer is left_out:
            continue
        if any(map(overlaps, [array for array in writer.arrays if array.size])):
            writer.check_copies(call)
            found.append(writer)

    def write() -> None:
        for writer in found:
            writer.write_copies()

    return write


def _spans(arrays: Iterable[Array]) -> list[tuple[int, int]]:
    """Return the byte ranges of arrays in ascending order; those that touch are merged."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(byte_bounds(array) for array in arrays if array.size):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans

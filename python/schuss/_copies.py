"""The registry of the optimizers that keep low-precision copies of their parameters."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from numpy.lib.array_utils import byte_bounds

from schuss._arrays import Array
from schuss._internals import Internals, internals_of
from schuss._settings import Configurable

_WRITERS: WeakValueDictionary[int, Internals] = WeakValueDictionary()
"""All optimizers that have copies, by id."""


def register(internals: Internals) -> None:
    """Let `writer_of_copies` find an optimizer, if it has copies."""
    if internals.copies is not None:
        _WRITERS[id(internals)] = internals


def writer_of_copies(
    call: str, arrays: Iterable[Array], besides: Configurable | None = None
) -> Callable[[], None]:
    """Return a function that rewrites the copies of parameters that overlap these arrays.

    The function is idempotent. Copies that cannot be written are refused at once. The optimizer
    `besides` is left out: it writes its own copies.
    """
    left_out = None if besides is None else internals_of(besides)
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

"""The registry of the optimizers, for calls that read or write parameters without them."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from numpy.lib.array_utils import byte_bounds

from schuss._arrays import Array, ArrayTree, arrays_of
from schuss._internals import Internals, internals_of
from schuss._settings import Configurable

_OPTIMIZERS: WeakValueDictionary[int, Internals] = WeakValueDictionary()
"""All optimizers, by id."""


def register(internals: Internals) -> None:
    """Let the other functions find an optimizer."""
    _OPTIMIZERS[id(internals)] = internals


def flush_rows(call: str, name: str, tree: ArrayTree) -> None:
    """Flush the optimizers that have a parameter with rows behind in an array of a structure.

    call, name: those of the structure in messages.
    """
    behind = [each for each in _registered() if each.core.pending]
    if behind:  # no structure is read in vain
        arrays = arrays_of(call, name, tree)
        for optimizer in _overlapping(behind, arrays, lambda each: each.arrays_behind):
            optimizer.flush(call)


def writer_of_copies(
    call: str, arrays: Iterable[Array], besides: Configurable | None = None
) -> Callable[[], None]:
    """Return a function that rewrites the copies of parameters that overlap these arrays.

    The function is idempotent. Copies that cannot be written are refused at once. The optimizer
    `besides` is left out: it writes its own copies.
    """
    left_out = None if besides is None else internals_of(besides)
    writers = [each for each in _registered() if each.copies is not None and each is not left_out]
    found = _overlapping(writers, arrays)
    for writer in found:
        writer.check_copies(call)

    def write() -> None:
        for writer in found:
            writer.write_copies()

    return write


def _registered() -> list[Internals]:
    found = [reference() for reference in _OPTIMIZERS.valuerefs()]
    return [each for each in found if each is not None]


def _overlapping(
    optimizers: Iterable[Internals],
    arrays: Iterable[Array],
    params: Callable[[Internals], Iterable[Array]] = lambda each: each.arrays,
) -> list[Internals]:
    """Return the optimizers of which one of the parameters `params` overlaps an array."""
    spans = _spans(arrays)
    starts, ends = [start for start, _ in spans], [end for _, end in spans]

    def overlaps(array: Array) -> bool:
        start, end = byte_bounds(array)
        first = bisect_left(ends, start + 1)  # the first span that ends after the start
        return first < len(starts) and starts[first] < end

    return [
        each for each in optimizers if any(overlaps(array) for array in params(each) if array.size)
    ]


def _spans(arrays: Iterable[Array]) -> list[tuple[int, int]]:
    """Return the byte ranges of arrays in ascending order; those that touch are merged."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(byte_bounds(array) for array in arrays if array.size):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans

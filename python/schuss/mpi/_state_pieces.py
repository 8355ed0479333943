"""The pieces of state in files: what a step reads, changes and writes at once."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from schuss._arrays import Array
from schuss._blocks import has_blocks
from schuss.mpi._mapped_file import MappedFile, in_pages
from schuss.reference._square_code import BLOCK

_BYTES = 1 << 22
"""About the bytes of one state in a piece. Disks read 4 MiB at full speed."""
_UNIT = 131_072
"""The elements of a piece are a multiple of it: whole pages in every format, 33 of 8-bit blocks."""


class Piece:
    """A range of the elements of one parameter, whose states are read and written together."""

    def __init__(self, begin: int, end: int, states: Sequence[Array], first: int) -> None:
        """Take the elements from `begin` to `end` among those of all parameters.

        first: the place of `begin` among the elements of the parameter itself.
        """
        self.begin, self.end = begin, end
        self._parts = [(state.base, _part(state, first, first + end - begin)) for state in states]
        self.size = sum(
            in_pages(part.nbytes) for file, part in self._parts if isinstance(file, MappedFile)
        )
        """The bytes of a buffer for it."""

    def load(self, buffer: memoryview) -> list[Array]:
        """Read the states into a buffer. Return them: arrays there, or those that are in memory."""
        return self._move(buffer, MappedFile.load)

    def store(self, buffer: memoryview) -> None:
        """Write the states from a buffer."""
        self._move(buffer, MappedFile.store)

    def windows(self, states: Sequence[Array], begin: int, end: int) -> list[Array]:
        """Return the part from `begin` to `end`, among all elements, of the states of the piece."""
        return [_part(state, begin - self.begin, end - self.begin) for state in states]

    def _move(
        self, buffer: memoryview, move: Callable[[MappedFile, int, memoryview], None]
    ) -> list[Array]:
        arrays, start = [], 0
        for file, part in self._parts:
            if isinstance(file, MappedFile):
                size = in_pages(part.nbytes)
                move(file, file.offset_of(part), buffer[start : start + size])
                arrays.append(np.ndarray(part.shape, part.dtype, buffer, start))
                start += size
            else:
                arrays.append(part)
        return arrays


def pieces_of(
    states: Sequence[Sequence[Array]], sizes: Sequence[int], active: Sequence[bool]
) -> Iterator[Piece]:
    """Yield the pieces of the parameters that have states in files, in their order.

    states: for each parameter. sizes: the numbers of their elements. active: whether they move.
    """
    for of_param, size, moves, end in zip(states, sizes, active, accumulate(sizes), strict=True):
        in_files = [state for state in of_param if isinstance(state.base, MappedFile)]
        if not moves or not in_files:
            continue
        units = max(_BYTES * size // max(state.nbytes for state in in_files) // _UNIT, 1)
        start, length = end - size, units * _UNIT
        for first in range(0, size, length):
            stop = min(first + length, size)
            yield Piece(start + first, start + stop, of_param, first)


def _part(state: Array, first: int, end: int) -> Array:
    """Return what belongs to a range of elements."""
    if has_blocks(state):
        first, end = first // BLOCK, -(-end // BLOCK)
    return state[first:end]

"""How the elements of many arrays are divided among ranks."""

from collections.abc import Sequence
from typing import NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

BLOCK = 128
"""Parts end at multiples of this number of elements, so that blocks of 8-bit state stay whole."""
TILE = 4096
"""Buckets end at multiples of this number of elements of a piece."""
_MIN_BUCKET = 4096  # bytes


class Range(NamedTuple):
    """Consecutive elements of one parameter, in the order of its memory."""

    param: int
    begin: int
    end: int


Bucket: TypeAlias = list[list[Range]]
"""For each rank, the ranges of its part that are exchanged at one time."""

_Ints: TypeAlias = npt.NDArray[np.int64]


class Cut:
    """The parts of the ranks: contiguous over all arrays one after another, of equal bytes.

    sizes, itemsizes: the numbers of elements of the arrays, and the bytes of an element.
    """

    def __init__(self, sizes: Sequence[int], itemsizes: Sequence[int], ranks: int) -> None:
        self.sizes, self.itemsizes, self.ranks = list(sizes), list(itemsizes), ranks
        self.bounds: _Ints = _ends(self.sizes, self.itemsizes, [0] * len(sizes), ranks, BLOCK)
        """`bounds[i, r]` to `bounds[i, r + 1]` are the elements of array i that rank r owns."""

    def of(self, rank: int) -> list[tuple[int, int]]:
        """Return what a rank owns of each array: the first element and the end."""
        return [(begin, end) for begin, end in self.bounds[:, rank : rank + 2].tolist()]

    def extended(self, sizes: Sequence[int], itemsizes: Sequence[int]) -> Self:
        """Return a cut with further arrays; the parts of the existing ones stay."""
        more = type(self)(sizes, itemsizes, self.ranks)
        more.bounds = np.concatenate([self.bounds, more.bounds])
        more.sizes, more.itemsizes = self.sizes + more.sizes, self.itemsizes + more.itemsizes
        return more

    def bytes_of(self, rank: int) -> int:
        """Return the bytes of the arrays that a rank owns."""
        owned = self.bounds[:, rank + 1] - self.bounds[:, rank]
        return int(owned @ np.array(self.itemsizes, np.int64))

    def buckets(self, bucket_bytes: int) -> list[Bucket]:
        """Cut all parts into the same number of pieces, of about this size in bytes.

        They have at least about 4096 bytes. Within an array, they end at multiples of `TILE`
        elements of what the rank owns of it.
        """
        largest = max((self.bytes_of(rank) for rank in range(self.ranks)), default=0)
        count = max(1, -(-largest // max(bucket_bytes, _MIN_BUCKET)))
        buckets: list[Bucket] = [[] for _ in range(count)]
        for rank in range(self.ranks):
            begins = self.bounds[:, rank].tolist()
            owned = (self.bounds[:, rank + 1] - self.bounds[:, rank]).tolist()
            ends = _ends(owned, self.itemsizes, begins, count, TILE).T.tolist()
            for k, bucket in enumerate(buckets):
                bucket.append(
                    [
                        Range(param, begin, end)
                        for param, (begin, end) in enumerate(zip(ends[k], ends[k + 1], strict=True))
                        if begin < end
                    ]
                )
        return buckets


def _ends(
    sizes: list[int], itemsizes: list[int], begins: list[int], parts: int, unit: int
) -> _Ints:
    """Cut arrays into parts of about equal bytes, and return where the parts of each array end.

    The result has a row for each array and `parts + 1` columns. Element numbers count from `begins`
    and are multiples of `unit` more than it, or the ends of arrays.
    """
    nbytes = [size * itemsize for size, itemsize in zip(sizes, itemsizes, strict=True)]
    total = sum(nbytes)
    wanted = np.array([total * part // parts for part in range(parts + 1)], np.int64)
    rows = np.empty((len(sizes), parts + 1), np.int64)
    before = 0
    for row, size, itemsize, begin, length in zip(
        rows, sizes, itemsizes, begins, nbytes, strict=True
    ):
        within = np.clip(wanted - before, 0, length) / itemsize
        row[:] = np.minimum(np.round(within / unit).astype(np.int64) * unit, size)
        # The end is nearer than the multiple of the unit before it.
        row[within > (row + size) / 2] = size
        row[0], row[-1] = 0, size
        row += begin
        before += length
    return rows

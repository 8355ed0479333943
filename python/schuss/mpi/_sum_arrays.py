"""The memory of summed gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from schuss._arrays import Array
from schuss.mpi._messages import LINE, Format, Memory, Message


class SumArrays:
    """Arrays for the sums of one rank, in memory that is kept from step to step.

    sizes, dtypes: the numbers of each parameter that the rank owns, and the dtype of their sums.
    The memory suffices for gradients of all parameters, so that the sums of any step share it.
    """

    def __init__(self, sizes: Sequence[int], dtypes: Sequence[np.dtype[Any]]) -> None:
        self._nbytes = sum(
            size * dtype.itemsize + LINE for size, dtype in zip(sizes, dtypes, strict=True)
        )
        self._memory = Memory()

    def lay_out(
        self, plan: Sequence[Sequence[Message]], formats: Sequence[Format | None]
    ) -> tuple[list[Array | None], list[list[Array]]]:
        """Return the sums of each parameter, and those of each message of each bucket.

        Parameters without a format have None; those of which this rank owns nothing are empty.
        """
        extents = [[0, 0] for _ in formats]  # in bytes, of each parameter
        begins: list[list[int]] = []
        end, last = 0, -1
        for bucket in plan:
            begins.append([])
            for message in bucket:
                if message.ranges[0].param != last:
                    end = -(-end // LINE) * LINE
                begins[-1].append(end)
                for r in message.ranges:
                    if r.param != last:
                        extents[r.param][0] = end
                    last = r.param
                    end += (r.end - r.begin) * message.format.used.itemsize
                    extents[r.param][1] = end
        memory = self._memory(self._nbytes)
        sums = [
            None if format is None else memory[begin:end].view(format.used)
            for (begin, end), format in zip(extents, formats, strict=True)
        ]
        targets = [
            [_values(memory, begin, message) for begin, message in zip(*of, strict=True)]
            for of in zip(begins, plan, strict=True)
        ]
        return sums, targets


def _values(memory: Array, begin: int, message: Message) -> Array:
    dtype = message.format.used
    return memory[begin : begin + message.items * dtype.itemsize].view(dtype)

"""Sums of gradients, and parameters, by the collective functions of the library.

On many ranks, its trees and rings need fewer messages than those from each to each.
"""

from collections.abc import Sequence

import numpy as np

from schuss._arrays import Array
from schuss.mpi._flat import Gradients, Parameters
from schuss.mpi._messages import Memory, Plan, buffer_bytes
from schuss.mpi._ranks import Ranks, Request

_GRADS, _SUMS, _PARAMS, _PIECES = range(4)


class CollectiveSums:
    """Sums in the order that the library chooses.

    All messages are in the dtype of the sums. See `PairwiseSums` for the methods.
    """

    def __init__(
        self, ranks: Ranks, slots: int, memory: Memory, plan: Plan, targets: list[list[Array]]
    ) -> None:
        self._ranks, self._slots, self._memory, self._plan = ranks, slots, memory, plan
        self._targets = targets
        self._requests: list[list[Request]] = [[] for _ in range(slots)]
        self._sums: list[list[tuple[Array, Array]]] = [[] for _ in range(slots)]

    def begin(self, grads: Gradients, weights: Sequence[float] | None) -> None:
        """Take the gradients of a step."""
        assert weights is None
        self._grads = grads

    def start(self, k: int) -> None:
        """Begin to sum bucket k."""
        ranks, slot = self._ranks, k % self._slots
        requests, sums = [], []
        dtypes = {m.format.wire for part in self._plan[k] for m in part}
        for i, dtype in enumerate(sorted(dtypes, key=lambda dtype: dtype.itemsize)):
            parts = [[m for m in part if m.format.wire == dtype] for part in self._plan[k]]
            width = max(sum(m.items for m in part) for part in parts)
            size = width * dtype.itemsize
            rows = self._memory(ranks.size * size, _GRADS, slot, i).view(dtype)
            rows = rows[: ranks.size * width]
            for owner, part in enumerate(parts):
                begin = owner * width
                for message in part:
                    self._grads.write(message, rows[begin : begin + message.items])
                    begin += message.items
            total = self._memory(size, _SUMS, slot, i).view(dtype)[:width]
            requests.append(ranks.comm.Ireduce_scatter_block(rows, total))
            begin = 0
            for message, target in zip(self._plan[k][ranks.rank], self._targets[k], strict=True):
                if message.format.wire == dtype:
                    sums.append((target, total[begin : begin + target.size]))
                    begin += target.size
        self._requests[slot], self._sums[slot] = requests, sums

    def finish(self, k: int) -> None:
        """Wait for the sums of bucket k."""
        slot = k % self._slots
        self._ranks.wait(self._requests[slot], "gradients")
        for target, values in self._sums[slot]:
            np.copyto(target, values)

    def end(self) -> None:
        """Forget the gradients of this rank: when a sum has arrived, they have, too."""
        del self._grads


class CollectiveParameters:
    """Parameters, gathered from all ranks. See `PairwiseParameters` for the methods."""

    def __init__(
        self, ranks: Ranks, slots: int, memory: Memory, plan: Plan, params: Parameters
    ) -> None:
        self._ranks, self._slots, self._memory, self._plan = ranks, slots, memory, plan
        self._params = params
        self._gathered: list[tuple[list[Request], Array]] = [([], np.empty(0))] * slots

    def start(self, k: int) -> None:
        """Begin to gather bucket k."""
        ranks, bucket, slot = self._ranks, self._plan[k], k % self._slots
        width = max(map(buffer_bytes, bucket))
        piece = self._memory(width, _PIECES, slot, 0)[:width]
        for message in bucket[ranks.rank]:
            self._params.read(message, message.of(piece))
        rows = self._memory(ranks.size * width, _PARAMS, slot, 0)[: ranks.size * width]
        self._gathered[slot] = [ranks.comm.Iallgather(piece, rows)], rows

    def finish(self, k: int) -> None:
        """Wait until bucket k has arrived."""
        requests, rows = self._gathered[k % self._slots]
        self._ranks.wait(requests, "parameters")
        for source, row in enumerate(rows.reshape(self._ranks.size, -1)):
            if source != self._ranks.rank:
                for message in self._plan[k][source]:
                    self._params.write(message, message.of(row))

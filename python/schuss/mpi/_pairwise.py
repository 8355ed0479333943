"""Sums of gradients, and parameters, by messages from each rank to each other."""

from collections.abc import Sequence

import numpy as np

from schuss import _core
from schuss._arrays import Array
from schuss.mpi._flat import Gradients, Parameters
from schuss.mpi._messages import GRADS_TAG, PARAMS_TAG, Memory, Message, Plan, buffer_bytes
from schuss.mpi._ranks import Ranks, Request


def _others(ranks: Ranks) -> list[int]:
    """Return the other ranks, the next one first: so no rank is the first one of all."""
    return [(ranks.rank + step) % ranks.size for step in range(1, ranks.size)]


class PairwiseSums:
    """Sums in the order of the ranks.

    Each rank sends its gradients to the ranks that own them, from their own memory where it can.

    targets: the memory for the sums of each of this rank's messages, for each bucket.
    """

    def __init__(
        self, ranks: Ranks, slots: int, memory: Memory, plan: Plan, targets: list[list[Array]]
    ) -> None:
        self._ranks, self._slots, self._memory, self._plan = ranks, slots, memory, plan
        self._targets = targets
        self._receives: list[list[Request]] = [[] for _ in range(slots)]
        self._sends: list[list[Request]] = [[] for _ in range(slots)]
        self._sends_of_memory: list[Request] = []

    def begin(self, grads: Gradients, weights: Sequence[float] | None) -> None:
        """Take the gradients of a step."""
        self._grads, self._weights = grads, weights
        self._senders = [
            rank for rank in range(self._ranks.size) if weights is None or weights[rank] != 0
        ]

    def start(self, k: int) -> None:
        """Begin to send and receive bucket k."""
        ranks, bucket, slot = self._ranks, self._plan[k], k % self._slots
        ranks.wait(self._sends[slot], "gradients to be received")
        sends: list[Request] = []
        receives: list[Request] = []
        for source in reversed(_others(ranks)):
            if source in self._senders:
                buffer = self._buffer(k, source)
                receives += [
                    ranks.comm.Irecv(buffer[m.begin : m.end], source, GRADS_TAG)
                    for m in bucket[ranks.rank]
                ]
        for owner in _others(ranks) if ranks.rank in self._senders else ():
            for message in bucket[owner]:
                values = self._grads.memory_of(message)
                requests = sends if values is None else self._sends_of_memory
                if values is None:
                    size = buffer_bytes(bucket[owner])
                    values = message.of(self._memory(size, slot, ranks.rank, owner))
                    self._grads.write(message, values)
                requests.append(ranks.comm.Isend(values.view(np.uint8), owner, GRADS_TAG))
        self._receives[slot], self._sends[slot] = receives, sends

    def finish(self, k: int) -> None:
        """Wait for bucket k, and sum it."""
        self._ranks.wait(self._receives[k % self._slots], "gradients")
        weights = self._weights
        if weights is not None:
            weights = [weights[rank] for rank in self._senders]
        for message, target in zip(self._plan[k][self._ranks.rank], self._targets[k], strict=True):
            terms = [self._term(k, rank, message) for rank in self._senders]
            _core.add(terms, target, weights)

    def _term(self, k: int, rank: int, message: Message) -> Array:
        """Return the gradients of a rank."""
        if rank != self._ranks.rank:
            return message.of(self._buffer(k, rank))
        values = self._grads.memory_of(message)
        if values is None:
            values = message.of(self._buffer(k, rank))
            self._grads.write(message, values)
        return values

    def _buffer(self, k: int, source: int) -> Array:
        return self._memory(buffer_bytes(self._plan[k][self._ranks.rank]), k % self._slots, source)

    def end(self) -> None:
        """Wait until the gradients of this rank have been received."""
        sends = [*self._sends_of_memory, *(send for slot in self._sends for send in slot)]
        self._sends_of_memory.clear()
        self._ranks.wait(sends, "gradients to be received")
        del self._grads  # they are the user's


class PairwiseParameters:
    """Each rank sends its pieces to all others, from and to the parameters where it can."""

    def __init__(
        self, ranks: Ranks, slots: int, memory: Memory, plan: Plan, params: Parameters
    ) -> None:
        self._ranks, self._slots, self._memory, self._plan = ranks, slots, memory, plan
        self._params = params
        self._requests: list[list[Request]] = [[] for _ in range(slots)]

    def start(self, k: int) -> None:
        """Begin to send bucket k of this rank's pieces, and to receive those of the others."""
        ranks, bucket = self._ranks, self._plan[k]
        requests: list[Request] = []
        for source in reversed(_others(ranks)):
            for message in bucket[source]:
                values = self._target(k, source, message)
                requests.append(ranks.comm.Irecv(values.view(np.uint8), source, PARAMS_TAG))
        for message in bucket[ranks.rank]:
            if message.large:
                values = self._params.piece_of(message.ranges[0])
            else:
                values = self._target(k, ranks.rank, message)
                self._params.read(message, values)
            requests += [
                ranks.comm.Isend(values.view(np.uint8), dest, PARAMS_TAG) for dest in _others(ranks)
            ]
        self._requests[k % self._slots] = requests

    def _target(self, k: int, source: int, message: Message) -> Array:
        """Return the memory in which a message is received, or from which it is sent."""
        values = self._params.memory_of(message)
        if values is None:
            size = buffer_bytes(self._plan[k][source])
            values = message.of(self._memory(size, k % self._slots, source))
        return values

    def finish(self, k: int) -> None:
        """Wait until bucket k has arrived."""
        self._ranks.wait(self._requests[k % self._slots], "parameters")
        for source in _others(self._ranks):
            for message in self._plan[k][source]:
                if self._params.memory_of(message) is None:
                    self._params.write(message, self._target(k, source, message))

"""A step on many machines, on paper: the time and the memory, by a model with five inputs.

A message of b bytes takes α + b/β: α is the latency and β the bandwidth, of sending and of
receiving at once (Hockney's model). Memory gives B bytes a second. For n parameters on N machines:

    all-reduce, then a full step
        wire     2·⌈log₂N⌉·α + 2·(N-1)/N·4n/β           (Rabenseifner's algorithm)
        memory   (N-1)/N·12n/B + 28n/B                  sums; Adam's step
        time     wire + memory                          the step waits for the sums
    sharded, in K buckets; w bytes for a gradient on the wire
        wire     2·K·(N-1)·α + (N-1)/N·(w + 4)·n/β      pieces to their owners, parameters back
        memory   (w + 4/N)·n/B + 28n/N/B + c            sums; the step of one's own part
                 c = (4 + w)·n/B if w < 4, else 0       the conversion
        time     max(wire, memory) + min(wire, memory)/K    one bucket is stepped while the next
                                                            arrives

Nothing else happens: no stragglers, no traffic of others, no overlap with the backward pass. The
memory of a machine is parameters, gradients and state; sharded, with the sum of the gradients of
its own part, and above 8 machines 4 buffers that have a bucket of all machines; all-reduced, with
the sum of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

from schuss.mpi._exchange import BUFFERS, MAX_PAIRWISE, bucket_bytes_for

ADAM_BYTES = 28
"""Bytes an element that Adam's step moves: four arrays are read and three written."""
ADD_BYTES = 12
PARAM = GRAD = 4
STATE_BYTES = {"float32": 8.0, "8-bit": 2 * (1 + 4 / 128)}
"""Of Adam, an element: a byte for each moment, and a scale of 4 bytes for each block of 128."""


@dataclass(frozen=True)
class Network:
    """What connects the machines: seconds of latency, bytes a second each way."""

    name: str
    latency: float
    bandwidth: float


NETWORKS = (
    Network("10 Gb/s Ethernet", 30e-6, 1.15e9),
    Network("100 Gb/s Ethernet", 15e-6, 11e9),
    Network("400 Gb/s InfiniBand", 2e-6, 45e9),
)
"""Assumptions, not measurements: nine tenths of the nominal bandwidth, and usual latencies of
messages through MPI."""


@dataclass(frozen=True)
class Cluster:
    """Equal machines with one rank each: their number, network, and bytes a second of memory."""

    machines: int
    network: Network
    memory: float

    @property
    def _others(self) -> float:
        """The share of an array that other machines own."""
        return (self.machines - 1) / self.machines

    def all_reduced(self, params: float) -> float:
        """Return the seconds of an all-reduce of the gradients and a full step everywhere."""
        wire = 2 * ceil(log2(self.machines)) * self.network.latency
        wire += 2 * self._others * GRAD * params / self.network.bandwidth
        moved = self._others * ADD_BYTES + ADAM_BYTES
        return wire + moved * params / self.memory

    def sharded(self, params: float, grad: int = GRAD) -> float:
        """Return the seconds of a sharded step; `grad` is the size of a gradient on the wire."""
        bucket = bucket_bytes_for(self.machines, int(PARAM * params))
        buckets = max(ceil(PARAM * params / self.machines / bucket), 1)
        wire = 2 * buckets * (self.machines - 1) * self.network.latency
        wire += self._others * (grad + PARAM) * params / self.network.bandwidth
        moved = grad + GRAD / self.machines + ADAM_BYTES / self.machines
        if grad < GRAD:
            moved += GRAD + grad
        memory = moved * params / self.memory
        return max(wire, memory) + min(wire, memory) / buckets


def bytes_of_all_reduced(params: float) -> float:
    """Return the bytes that a machine needs if every one keeps the whole state."""
    return params * (PARAM + 2 * GRAD + STATE_BYTES["float32"])


def bytes_of_sharded(params: float, machines: int, state: str = "float32") -> float:
    """Return the bytes that a machine needs if each keeps its own part of the state."""
    kept = params * (PARAM + GRAD + (GRAD + STATE_BYTES[state]) / machines)
    if machines <= MAX_PAIRWISE:
        return kept
    part = PARAM * params / machines
    bucket = min(bucket_bytes_for(machines, int(PARAM * params)), part)
    return kept + BUFFERS * machines * bucket


MODELS = {"1 billion": 1e9, "70 billion": 70e9}
MACHINES: Sequence[int] = (8, 64, 256, 1_024)

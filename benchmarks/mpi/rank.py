"""The program of a rank: rank 0 answers the benchmark's calls, and all ranks make them together.

mpiexec -n 2 python -m mpi4py -m benchmarks.mpi.rank ranks
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import schuss
from benchmarks.checkpoints import memory
from benchmarks.harness import (
    CHECK_STEPS,
    TINY_GRADIENT,
    WrongResultError,
    check_values,
    ordinary,
    settle,
)
from benchmarks.mpi.torch_ways import TORCH_WAYS
from benchmarks.mpi.ways import HYPERPARAMETERS, PARTS, WAYS, Prepared, Task, Way
from benchmarks.processes import serve

ALL = {way.name: way for way in (*WAYS, *TORCH_WAYS, *PARTS)}
ARRAYS = 16
"""ZeRO shares out whole arrays, so there are several."""
CHECK_SHAPES = ((300, 70), (3,), (4_096,), (129, 65), (5_000,))
PEAK = Path("/proc/self/clear_refs")
PINGS, MESSAGES, MESSAGE = 1_000, 16, 1 << 22


class Rank:
    """What a rank does in the benchmark; all ranks call the same methods."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.prepared: dict[str, Prepared] = {}
        schuss.set_num_threads(max(1, (os.cpu_count() or 1) // comm.Get_size()))

    def pose(self, size: int) -> None:
        """Make arrays of this many elements together."""
        self.prepared.clear()
        self.task = Task(self.comm, [(max(size // ARRAYS, 1),)] * ARRAYS)
        for flat in (self.task.flat_params, self.task.flat_grads):
            flat[...] = ordinary(flat.size)

    def prepare(self, name: str) -> dict[str, int]:
        """Check the contender, make its first step, and return the bytes that it takes."""
        way = ALL[name]
        if not way.part:
            check(way, self.comm)
        before = 0
        if PEAK.exists():
            PEAK.write_text("5")  # resets the peak
            before = memory("VmRSS")
        prepared = self.prepared[name] = way.prepare(self.task)
        self.measure(name)
        sizes = {"state": prepared.state_bytes()}
        return (
            {**sizes, "peak": memory("VmHWM") - before - prepared.surplus}
            if PEAK.exists()
            else sizes
        )

    def measure(self, name: str) -> float:
        """Return the seconds of a step, from when all ranks begin."""
        prepared = self.prepared[name]
        prepared.before()
        settle()
        self.comm.Barrier()
        start = perf_counter()
        prepared.step()
        return perf_counter() - start

    def network(self) -> dict[str, float]:
        """Return the latency and the bandwidth between ranks 0 and 1, which both send at once."""
        rank = self.comm.Get_rank()
        if rank > 1:
            return {}
        other = 1 - rank
        small = np.zeros(1, np.uint8)
        sent, received = np.zeros((2, MESSAGES, MESSAGE), np.uint8)

        def ping_pong() -> None:
            for turn in (0, 1):
                if turn == rank:
                    self.comm.Send(small, other)
                else:
                    self.comm.Recv(small, other)

        def exchange() -> None:
            requests = [self.comm.Irecv(message, other) for message in received]
            requests += [self.comm.Isend(message, other) for message in sent]
            for request in requests:
                request.Wait()

        return {
            "latency": float(np.median(_times(ping_pong, PINGS))) / 2,
            "bandwidth": sent.nbytes / float(np.median(_times(exchange, 7))),
        }


def _times(work: Callable[[], None], rounds: int) -> Sequence[float]:
    times = []
    work()
    for _ in range(rounds):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return times


def check(way: Way, comm: Any) -> None:
    """Compare a few steps with the reference, which takes the gradients of all ranks.

    Raises
    ------
    WrongResultError
        If a parameter is not what the reference computes: exactly, or within rounding.
    """
    task = Task(comm, CHECK_SHAPES)
    task.flat_params[...] = ordinary(task.flat_params.size)
    expected = [param.copy() for param in task.params]
    reference = schuss.reference.Optimizer("adam", expected, **HYPERPARAMETERS, **way.options)
    prepared = way.prepare(task)
    rngs = [np.random.default_rng(rank) for rank in range(task.ranks)]
    for _ in range(CHECK_STEPS):
        for rank, rng in enumerate(rngs):
            grads = [rng.standard_normal(shape).astype(np.float32) for shape in task.shapes]
            for grad in grads:
                grad[..., ::2] *= np.float32(TINY_GRADIENT)
            if rank == comm.Get_rank():
                for own, grad in zip(task.grads, grads, strict=True):
                    np.copyto(own, grad)
            reference.accumulate([way.as_sent(grad) for grad in grads])
        reference.step(scale=1 / task.ranks)
        prepared.before()
        prepared.step()
    prepared.finish()
    for i, (param, values) in enumerate(zip(task.params, expected, strict=True)):
        check_values(f"{way.name}: params[{i}]", param, values, exact=way.exact)


class Conductor:
    """Answers calls on rank 0: it makes all ranks do the same."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def all(self, method: str, *arguments: object) -> list[Any]:
        """Return what the method returns on each rank."""
        self._rank.comm.bcast((method, arguments))
        outcomes = self._rank.comm.gather(_outcome(self._rank, method, arguments))
        for _, wrong in outcomes:
            if wrong is not None:
                raise WrongResultError(wrong)
        return [result for result, _ in outcomes]


def _outcome(rank: Rank, method: str, arguments: Sequence[object]) -> tuple[Any, str | None]:
    try:
        return getattr(rank, method)(*arguments), None
    except WrongResultError as error:
        return None, str(error)


def main() -> None:
    """Work until the benchmark closes the pipe to rank 0."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    rank = Rank(comm)
    if comm.Get_rank() == 0:
        serve(lambda _: Conductor(rank))
        comm.bcast(None)
    else:
        while (call := comm.bcast(None)) is not None:
            comm.gather(_outcome(rank, *call))


if __name__ == "__main__":
    main()

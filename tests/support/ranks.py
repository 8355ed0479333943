"""Programs on several ranks: in threads of this process, or on those of mpiexec.

Under ``mpiexec -n SIZE python -m pytest``, `run` runs a program of that many ranks on the real
ones, and skips the test if it needs another number.
"""

import os
import sys
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from support.arrays import Array

# Seconds. Far longer than any test takes, also where the machine is busy or paused.
_LIMIT = 1800.0


class Aborted(BaseException):
    """Another rank has raised: a real MPI would end this process."""


class Network:
    """The messages among the ranks, and what is to happen to them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.RLock()
        self.aborted = False
        self.lost = 0
        """How many messages were dropped."""
        self._sends: defaultdict[Any, deque[Send]] = defaultdict(deque)
        self._collectives: dict[Any, Collective] = {}
        self._dropped: set[tuple[int, int]] = set()
        self._delays: dict[tuple[int, int], int] = {}

    def drop(self, source: int, dest: int) -> None:
        """Lose all further messages from one rank to another."""
        with self.lock:
            self._dropped.add((source, dest))

    def delay(self, source: int, dest: int, polls: int) -> None:
        """Let further messages arrive only after so many tests of the receiver's request."""
        with self.lock:
            self._delays[source, dest] = polls

    def post(self, key: Any, array: Array) -> "Send":
        _, source, dest, _ = key
        with self.lock:
            send = Send(self, array, self._delays.get((source, dest), 0))
            if (source, dest) in self._dropped:
                self.lost += 1
                send.done = True
            else:
                self._sends[key].append(send)
            return send

    def take(self, key: Any) -> "Send | None":
        sends = self._sends[key]
        if not sends or sends[0].delay > 0:
            if sends:
                sends[0].delay -= 1
            return None
        return sends.popleft()

    def collective(self, key: Any) -> "Collective":
        with self.lock:
            return self._collectives.setdefault(key, Collective(self))


class Request:
    def __init__(self, network: Network) -> None:
        self.network, self.done = network, False

    def Test(self) -> bool:
        with self.network.lock:
            if self.network.aborted:
                raise Aborted
            if not self.done:
                self.progress()
        if not self.done:
            sleep(0)  # lets other threads run, as mpi4py does
        return self.done

    def progress(self) -> None:
        """Set `done` if that is so now."""


class Send(Request):
    """It is done when the receiver has copied the array, which must not change until then."""

    def __init__(self, network: Network, array: Array, delay: int) -> None:
        super().__init__(network)
        self.array, self.delay = array, delay


class Receive(Request):
    def __init__(self, network: Network, array: Array, key: Any, before: "Receive | None") -> None:
        super().__init__(network)
        self.array, self.key, self.before = array, key, before

    def progress(self) -> None:
        if self.before is not None and not self.before.done:  # messages do not overtake
            self.before.progress()
            if not self.before.done:
                return
        self.before = None
        send = self.network.take(self.key)
        if send is not None:
            assert send.array.nbytes <= self.array.nbytes, "the message is truncated"
            self.array.view(np.uint8)[: send.array.nbytes] = send.array.view(np.uint8)
            self.done = send.done = True


class Collective(Request):
    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.sent: dict[int, tuple[str, Array, Array]] = {}

    def add(self, rank: int, kind: str, sent: Array, received: Array) -> "Collective":
        with self.network.lock:
            self.sent[rank] = kind, sent, received
            return self

    def progress(self) -> None:
        if len(self.sent) < self.network.size:
            return
        kinds, arrays, outs = zip(*(self.sent[r] for r in range(self.network.size)), strict=True)
        assert len(set(kinds)) == 1, f"the ranks call {kinds}"
        if kinds[0] == "allgather":
            for out in outs:
                out[...] = np.concatenate([a.reshape(-1) for a in arrays]).reshape(out.shape)
        else:
            total = sum(arrays[-2::-1], arrays[-1])  # in an order of its own, as libraries do
            for rank, out in enumerate(outs):
                part = total.reshape(-1)
                if kinds[0] == "reduce_scatter_block":
                    part = part[rank * out.size : (rank + 1) * out.size]
                out[...] = part.reshape(out.shape)
        self.done = True


class Comm:
    """A rank's communicator, with the calls of mpi4py's that schuss uses."""

    __hash__ = None  # type: ignore[assignment]  # as those of mpi4py
    _delete: Callable[["Comm", int, Any], None]

    def __init__(self, network: Network, rank: int, context: tuple[int, ...] = ()) -> None:
        self.network, self.rank, self.context = network, rank, context
        self._collectives = self._duplicates = 0
        self.freed = False
        self._last: dict[Any, Receive] = {}
        self._attributes: dict[int, Any] = {}

    @classmethod
    def Create_keyval(cls, *, delete_fn: Callable[["Comm", int, Any], None]) -> int:
        cls._delete = staticmethod(delete_fn)
        return 1  # there is only one

    def Get_attr(self, keyval: int) -> Any:
        return self._attributes.get(keyval)

    def Set_attr(self, keyval: int, attrval: Any) -> None:
        self._attributes[keyval] = attrval

    def Free(self) -> None:
        self.freed = True
        for keyval, value in self._attributes.items():
            self._delete(self, keyval, value)

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.network.size

    def Dup(self) -> "Comm":
        self._duplicates += 1
        return Comm(self.network, self.rank, (*self.context, self._duplicates))

    def Isend(self, buf: Array, dest: int, tag: int = 0) -> Request:
        return self.network.post((self.context, self.rank, dest, tag), _checked(buf))

    def Irecv(self, buf: Array, source: int, tag: int = 0) -> Request:
        key = self.context, source, self.rank, tag
        receive = Receive(self.network, _checked(buf, written=True), key, self._last.get(key))
        self._last[key] = receive
        return receive

    def Iallreduce(self, sendbuf: Array, recvbuf: Array) -> Request:
        assert sendbuf.size == recvbuf.size
        return self._collective("allreduce", sendbuf, recvbuf)

    def Ireduce_scatter_block(self, sendbuf: Array, recvbuf: Array) -> Request:
        assert sendbuf.size == recvbuf.size * self.network.size
        return self._collective("reduce_scatter_block", sendbuf, recvbuf)

    def Iallgather(self, sendbuf: Array, recvbuf: Array) -> Request:
        assert sendbuf.size * self.network.size == recvbuf.size
        return self._collective("allgather", sendbuf, recvbuf)

    def _collective(self, kind: str, sent: Array, received: Array) -> Request:
        assert sent.dtype == received.dtype
        self._collectives += 1
        collective = self.network.collective((self.context, self._collectives))
        return collective.add(self.rank, kind, _checked(sent), _checked(received, written=True))


def _checked(array: Array, *, written: bool = False) -> Array:
    """Return what mpi4py would accept as a buffer."""
    assert isinstance(array, np.ndarray)
    assert array.flags.c_contiguous
    assert array.flags.writeable or not written
    assert array.dtype.name in ("uint8", "int64", "uint64", "float32", "float64"), array.dtype
    return array


def run_in_threads(program: Callable[[Comm], Any], size: int) -> list[Any]:
    """Run `program(comm)` on each rank; return the results, or raise the first error."""
    network = Network(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            results[rank] = program(Comm(network, rank))
        except Aborted:
            pass
        except BaseException as error:
            errors.append(error)
            network.aborted = True

    threads = [threading.Thread(target=work, args=[rank], daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LIMIT)
    stuck = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    network.aborted = True
    if errors:
        raise errors[0]
    if stuck:
        pytest.fail(f"ranks {stuck} of {size} hang")
    return results


def world_size() -> int | None:
    """The number of processes that mpiexec has started; None without it."""
    size = os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE")
    return None if size is None else int(size)


def shared(value: Any) -> Any:
    """Return the value that rank 0 has; without mpiexec, this one."""
    if world_size() is None:
        return value
    from mpi4py import MPI

    return MPI.COMM_WORLD.bcast(value)


def run(program: Callable[[Any], Any], size: int) -> list[Any]:
    """Run `program(comm)` on each rank; return the results of all, or raise the first error."""
    world = world_size()
    if world is None:
        return run_in_threads(program, size)
    if world != size:
        pytest.skip(f"needs {size} ranks")
    from mpi4py import MPI

    comm, result, error = MPI.COMM_WORLD, None, None
    try:
        result = program(comm)
    except BaseException as raised:
        error = raised
    arrival, deadline = comm.Ibarrier(), monotonic() + _LIMIT / 100
    while not arrival.Test():
        if error is not None and monotonic() > deadline:  # the others wait for this rank
            traceback.print_exception(error, file=sys.__stderr__)
            comm.Abort(1)
        sleep(1e-3)
    if error is not None:
        comm.allgather((None, repr(error)))
        raise error
    outcomes = comm.allgather((result, None))
    for rank, (_, failure) in enumerate(outcomes):
        if failure is not None:
            pytest.fail(f"rank {rank} of {size}: {failure}")
    return [result for result, _ in outcomes]

"""The processes that share an optimizer: how they agree, wait, and exchange small messages."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from hashlib import blake2b
from time import monotonic, sleep
from typing import Any, TypeAlias

import numpy as np

from schuss._arrays import Array
from schuss._interrupts import Deferred

Comm: TypeAlias = Any
"""A communicator with the buffer calls of mpi4py that `Ranks` and `Exchange` use."""
Request: TypeAlias = Any
"""What its nonblocking calls return: an object with the method `Test`."""

_PIECE = (
    1 << 22
)  # bytes of a broadcast: so large arrays pass through the tree of ranks in a pipeline
_MESSAGE = 1 << 28  # bytes of a gathered message; some MPIs count in 32 bits
_MAX_PICKLED = 1 << 16  # bytes of a pickled error; a larger one is sent as text
_SPINS, _YIELDS = 50, 1000  # polls before the first yield, which may be long, and the first sleep
_SLEEP, _LONGEST_SLEEP = 1e-6, 1e-3  # seconds: each sleep is that much longer than the last
_PATIENCE = 1.0  # seconds of waiting after which signal handlers run


class _Channel:
    """A duplicate of a user's communicator: its messages never meet the user's own."""

    def __init__(self, comm: Comm) -> None:
        self.comm = comm.Dup() if hasattr(comm, "Dup") else comm
        self.failure: str | None = None
        self.optimizers = 0
        """How many optimizers all ranks have made."""
        self.raised: BaseException | None = None
        """The error that the last vote within the present call raised, on all ranks."""
        self.depth = 0
        """How many calls are under way, one within the other."""

    @contextmanager
    def call(self) -> Iterator[None]:
        """Keep the error of a vote in the block until the outermost call ends."""
        self.raised = None
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if not self.depth:
                self.raised = None


def _channel_of(comm: Comm) -> _Channel:
    """Return the duplicate of a communicator, which is made once, and freed with it."""
    if not hasattr(comm, "Create_keyval"):
        return _Channel(comm)
    kind: Any = type(comm)
    key = _attribute_of(kind)
    channel: _Channel | None = comm.Get_attr(key)
    if channel is None:
        channel = _Channel(comm)
        comm.Set_attr(key, channel)
    return channel


@cache
def _attribute_of(kind: type[Any]) -> int:
    """Return the key of the attribute by which communicators of a class know their duplicates."""

    def free(comm: Comm, key: int, channel: _Channel) -> None:
        channel.failure = "its communicator was freed"
        channel.comm.Free()

    key: int = kind.Create_keyval(delete_fn=free)
    return key


class Ranks:
    """The processes of a communicator, and this one's place among them.

    All methods but `wait` are collective. With one process, none of them communicates.

    comm: a communicator with mpi4py's buffer calls, or None for one process.
    timeout: the seconds after which a wait without any progress is given up.
    """

    def __init__(self, comm: Comm | None, timeout: float) -> None:
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()
        self.timeout = timeout
        self._channel = None if self.size == 1 else _channel_of(comm)
        self._optimizer = 0
        self._signals: Deferred | None = None

    @property
    def comm(self) -> Comm:
        """The communicator for messages of the library's own; RuntimeError if it has failed."""
        channel = self._channel
        assert channel is not None
        if channel.failure is not None:
            raise RuntimeError(
                f"the communication among the ranks has failed before ({channel.failure}): start "
                "the processes again, and load the last checkpoint"
            )
        return channel.comm

    def number(self) -> None:
        """Give the optimizer a number, by which votes tell it from others of the communicator."""
        if self._channel is not None:
            self._channel.optimizers += 1
            self._optimizer = self._channel.optimizers

    def agree(self, call: str, error: BaseException | None = None, facts: bytes = b"") -> bool:
        """Vote: return whether all ranks have the same facts, or raise the error of one on all.

        Every collective call begins with a vote, and any two votes match. If ranks have errors, all
        raise that of the lowest such rank. If they are in different calls, all raise RuntimeError.
        An error that a vote within the same call has raised on all ranks is raised again without
        another vote.
        """
        channel = self._channel
        if error is not None and (
            channel is None or channel.failure is not None or error is channel.raised
        ):
            raise error
        if channel is None:
            return True
        if self._optimizer:
            call = f"{call} of optimizer {self._optimizer}"
        with self.uninterrupted():
            sums = self._summed(_vote(call, facts, error), f"the vote of {call}").tolist()
            numbers, high, low = sums[:4], sums[4:8], sums[8:12]
            # The numbers of all ranks are equal just where the mean of their squares is the square
            # of their mean.
            same = all(
                self.size * ((upper << 32) + lower) == total * total
                for total, upper, lower in zip(numbers, high, low, strict=True)
            )
            if not same or sums[12]:
                try:
                    self._compare(call, error)
                except BaseException as raised:
                    channel.raised = raised
                    raise
        return same

    def _compare(self, call: str, error: BaseException | None) -> None:
        """Raise the error of the lowest rank that has one, or RuntimeError for different calls."""
        votes = self.gather(pickle.dumps((call, None if error is None else _packed(error))))
        calls, errors = zip(*map(pickle.loads, votes), strict=True)
        failed = [rank for rank, packed in enumerate(errors) if packed is not None]
        if failed:
            rank = failed[0]
            if rank == self.rank:
                assert error is not None
                raise error
            other = _unpacked(errors[rank])
            other.add_note(f"This is the error of rank {rank}, which all {self.size} ranks raise.")
            raise other from error
        for rank, other_call in enumerate(calls):
            if other_call != calls[0]:
                raise RuntimeError(
                    f"rank 0 calls {calls[0]}, rank {rank} calls {other_call}: expected all ranks "
                    "to make the same calls in the same order"
                )

    @contextmanager
    def together(self, call: str) -> Iterator[None]:
        """Run a block that does not communicate, and vote: all ranks raise the error of one."""
        with self._nested():
            error: BaseException | None = None
            try:
                yield
            except BaseException as raised:
                error = raised
            self.agree(call, error)

    def _nested(self) -> AbstractContextManager[None]:
        return nullcontext() if self._channel is None else self._channel.call()

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Defer signal handlers to the end of the block.

        They run earlier only in a wait of more than a second, and end the communication then.
        """
        if self._signals is not None:
            yield
            return
        with self._nested(), Deferred() as self._signals:
            try:
                yield
            finally:
                self._signals = None

    def wait(self, requests: Sequence[Request], what: str = "the other ranks") -> None:
        """Wait until all requests have completed.

        Raises TimeoutError if none of them does for too long. Then, or if a signal handler raises,
        the communication has failed: messages are under way that nobody will receive.
        """
        try:
            _poll(requests, self._while_waiting(what))
        except BaseException as error:
            self.fail(f"{type(error).__name__}: {error}")
            raise

    def fail(self, reason: str) -> None:
        """Refuse all further communication of this communicator."""
        if self._channel is not None and self._channel.failure is None:
            self._channel.failure = reason

    def _while_waiting(self, what: str) -> Callable[[float], None]:
        def check(seconds: float) -> None:
            if seconds > _PATIENCE and self._signals is not None:
                self._signals.run_handlers()
            if seconds > self.timeout:
                raise TimeoutError(
                    f"rank {self.rank} has waited {self.timeout:g} s for {what}: a rank has died "
                    "or is stalled (`mpiexec … python -m mpi4py script.py` ends all ranks when one "
                    "raises; the argument timeout sets the limit)"
                )

        return check

    def gather(self, data: bytes) -> list[bytes]:
        """Return the data of all ranks, in their order."""
        if self.size == 1:
            return [data]
        lengths = self._gathered(np.array([len(data)], np.int64))[:, 0]
        sent = np.zeros(lengths.max(), np.uint8)
        sent[: len(data)] = np.frombuffer(data, np.uint8)
        pieces = [
            self._gathered(sent[begin : begin + _MESSAGE])
            for begin in range(0, sent.size, _MESSAGE)
        ]
        received = np.concatenate([np.zeros((self.size, 0), np.uint8), *pieces], axis=1)
        return [row[:length].tobytes() for row, length in zip(received, lengths, strict=True)]

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Copy an array of the root to the contiguous arrays of all others, in place."""
        if self.size == 1:
            return
        if not array.flags.c_contiguous:
            raise ValueError("broadcast: the array has gaps, expected a contiguous one")
        memory = array.reshape(-1).view(np.uint8)
        parent, children = self._tree(root)
        pieces = [memory[begin : begin + _PIECE] for begin in range(0, memory.size, _PIECE)]
        what, sends = f"a broadcast of rank {root}", []
        receives = [] if parent is None else [self.comm.Irecv(p, parent) for p in pieces[:2]]
        for i, piece in enumerate(pieces):
            if parent is not None:
                self.wait([receives[i]], what)
                if i + 2 < len(pieces):
                    receives.append(self.comm.Irecv(pieces[i + 2], parent))
            sends += [self.comm.Isend(piece, child) for child in children]
        self.wait(sends, what)

    def _tree(self, root: int) -> tuple[int | None, list[int]]:
        """Return this rank's parent and children in a binomial tree."""
        place, step, children = (self.rank - root) % self.size, 1, []
        while step < self.size and not place & step:
            if place + step < self.size:
                children.append((place + step + root) % self.size)
            step *= 2
        parent = None if place == 0 else (place - step + root) % self.size
        return parent, children[::-1]

    def sum(self, array: Array) -> None:
        """Sum arrays of int64, uint64 or float64 over the ranks, in place: the same bits on all."""
        if self.size == 1:
            return
        if array.dtype.kind == "f":  # a library may add in an order of its own
            total = 0.0
            for values in self._gathered(array.reshape(-1)):
                total = total + values
            array[...] = np.reshape(total, array.shape)
        else:
            array[...] = self._summed(array, "a sum")

    def _summed(self, array: Array, what: str) -> Array:
        sums = np.empty_like(array)
        self.wait([self.comm.Iallreduce(array, sums)], what)
        return sums

    def _gathered(self, values: Array) -> Array:
        """Return the values of all ranks, of the same size on each, as rows."""
        rows = np.empty((self.size, values.size), values.dtype)
        self.wait([self.comm.Iallgather(np.ascontiguousarray(values), rows)])
        return rows


def _vote(call: str, facts: bytes, error: BaseException | None) -> Array:
    """Return four numbers that stand for the call and its facts, their squares, and the errors.

    All are so small that the sums over four billion ranks fit.
    """
    vote = np.empty(13, np.uint64)
    digest = blake2b(call.encode() + b"\0" + facts, digest_size=16).digest()
    numbers = vote[:4] = np.frombuffer(digest, np.uint32)
    squares = numbers.astype(np.uint64) ** 2
    vote[4:8], vote[8:12] = squares >> 32, squares & 0xFFFFFFFF
    vote[12] = error is not None
    return vote


def _poll(requests: Sequence[Request], check: Callable[[float], None]) -> None:
    """Test requests until all have completed, and leave the processor to others meanwhile.

    check: is called with the seconds since a request has last completed.
    """
    pending = [request for request in requests if not request.Test()]
    polls, began = 0, monotonic()
    while pending:
        polls += 1
        if _SPINS < polls <= _YIELDS:
            os.sched_yield()
        elif polls > _YIELDS:
            sleep(min(_LONGEST_SLEEP, _SLEEP * (polls - _YIELDS)))
            check(monotonic() - began)
        still = [request for request in pending if not request.Test()]
        if len(still) < len(pending):
            pending, polls, began = still, 0, monotonic()


def _packed(error: BaseException) -> tuple[bytes | None, str]:
    """Return an error as bytes, None if it cannot be pickled, and as text."""
    text = type(error).__qualname__
    try:
        text = f"{text}: {error}"
        pickled = pickle.dumps(error)
        again = pickle.loads(pickled)
        if type(again) is type(error) and str(again) == str(error) and len(pickled) < _MAX_PICKLED:
            return pickled, text
    except Exception:  # of the error's own code
        pass
    return None, text


def _unpacked(packed: tuple[bytes | None, str]) -> BaseException:
    pickled, text = packed
    if pickled is not None:
        try:
            error: BaseException = pickle.loads(pickled)
            return error
        except Exception:  # this rank cannot import its class
            pass
    return RuntimeError(text)

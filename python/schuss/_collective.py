"""Calls that several processes make together, or one process alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from schuss._arrays import Array
from schuss._interrupts import Deferred

_T = TypeVar("_T")


class Ranks(Protocol):
    """The processes that share an optimizer; see `schuss.mpi`."""

    rank: int
    size: int

    def agree(self, call: str, error: BaseException | None = None, facts: bytes = b"") -> bool:
        """Vote: raise the error of one rank on all, or return whether all have the same facts."""

    def gather(self, data: bytes) -> list[bytes]:
        """Return the data of all ranks."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Copy an array of the root to those of all others."""


class Signals(Deferred):
    """Signals that are deferred, unless a second one arrives while this rank waits for others."""

    is_waiting = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Defer a signal, or call the handlers of those that were deferred."""
        is_second = self.is_waiting and self.is_pending(number)
        super().__call__(number, frame)
        if is_second:
            self.run_handlers()


class Collective(AbstractContextManager["Collective"]):
    """A call that all ranks make together, so that the error of one is raised by all.

    Each rank votes at the same points and at the end. One that fails goes to the end, and votes
    there with its error: the others raise it from their next vote. Signal handlers run before the
    votes, or where `signals` are run: so an error of a handler is an error of this kind too.

    ranks: None for one process.
    """

    def __init__(self, call: str, ranks: Ranks | None = None) -> None:
        self._call = call
        self._ranks = ranks
        self.is_alone = ranks is None
        self.rank, self.size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
        self.signals = Signals()
        self._failed = False

    def __enter__(self) -> Self:
        self.signals.__enter__()
        return self

    def vote(self, facts: bytes = b"") -> bool:
        """Raise the error of a rank that has failed; return whether all have the same facts."""
        self.signals.run_handlers()
        return self._ranks is None or self.all_or_none(self._ranks.agree, self._call, None, facts)

    def gather(self, data: bytes) -> list[bytes]:
        """Vote, and return the data of all ranks."""
        self.vote()
        return [data] if self._ranks is None else self._waiting(self._ranks.gather, data)

    def of_first(self, data: bytes) -> bytes:
        """Vote, and return the data of the first rank; those of the others do not matter."""
        self.vote()
        if self._ranks is None:
            return data
        length = np.array([len(data)], np.int64)
        self.broadcast(length, 0)
        sent = np.frombuffer(data, np.uint8) if self.rank == 0 else np.empty(length[0], np.uint8)
        self.broadcast(sent, 0)
        return sent.tobytes()

    def broadcast(self, array: Array, root: int) -> None:
        """Copy an array of one rank to those of all others; a vote comes before."""
        if self._ranks is not None:
            self._waiting(self._ranks.broadcast, array, root)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Vote, unless all ranks have failed already."""
        try:
            if self._ranks is not None and not self._failed:
                self._waiting(self._ranks.agree, self._call, self._own_error(error))
        finally:
            self.signals.__exit__()

    def _own_error(self, error: BaseException | None) -> BaseException | None:
        """Return the error of this rank, or that of a signal handler."""
        try:
            self.signals.run_handlers()
        except BaseException as raised:
            return raised
        return error

    def all_or_none(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Make a call that fails on all ranks if it fails on one."""
        try:
            return self._waiting(call, *arguments)
        except BaseException:
            self._failed = True
            raise

    def _waiting(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Make a call that waits for other ranks."""
        self.signals.is_waiting = True
        try:
            return call(*arguments)
        finally:
            self.signals.is_waiting = False

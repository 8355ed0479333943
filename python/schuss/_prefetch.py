"""Prefetching: a thread prepares mini-batches while the caller uses the ones before them."""

import atexit
import os
import sys
from _queue import SimpleQueue  # the rest of queue takes long to import
from _thread import start_new_thread
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

_Batch = TypeVar("_Batch")

forks = 0
"""The number of forks between the first process and this one."""


def prefetched(begin: Callable[[], Iterator[_Batch]], size: int) -> Generator[_Batch, None, None]:
    """Yield batches; a thread prepares the next `size` of them while the caller uses the last.

    `begin` returns an iterator over the batches that were not handed out yet. If there is no
    thread, because none can be started or because the program is ending, the caller's thread
    prepares the batches.
    """
    prefetcher = _Prefetcher(begin(), size)
    try:
        prefetcher.start()
        while (chunk := prefetcher.next_chunk()) is not None:
            if not chunk:
                return
            yield from chunk
        yield from begin()
    finally:
        prefetcher.close()


class _Prefetcher(Generic[_Batch]):
    """A thread that prepares the next chunk of batches on request."""

    def __init__(self, batches: Iterator[_Batch], size: int) -> None:
        self._batches, self._size = batches, size
        self._forks = forks
        self._threads: list[int] = []  # at most one
        # Queues in C and a bare thread: Ctrl-C inside the locks of the threading module breaks
        # them.
        self._requests: SimpleQueue[bool] = SimpleQueue()
        self._chunks: SimpleQueue[tuple[list[_Batch], BaseException | None] | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        """Start the thread, if the system and the interpreter can."""
        if sys.is_finalizing():
            return  # the thread would never run
        _prefetchers.add(self)
        self._requests.put(True)
        try:
            # One call, so that a signal handler that raises leaves either no thread or a thread
            # in the list.
            self._threads.extend(map(start_new_thread, [self._run], [()]))
        except RuntimeError:
            if self._threads:  # a signal handler raised it
                raise
        else:
            atexit.register(self._stop)  # the thread must not outlive the interpreter

    def next_chunk(self) -> list[_Batch] | None:
        """Return the next chunk, empty at the end of the epoch, or None if there is no thread."""
        answer = self._chunks.get() if self._threads and not sys.is_finalizing() else None
        if answer is None:
            return None
        chunk, error = answer
        if error is not None:
            raise error
        if chunk:
            self._requests.put(True)
        return chunk

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop()  # first, so that the thread ends even if a signal handler raises here
        _prefetchers.discard(self)
        atexit.unregister(self._stop)

    def release(self) -> None:
        """Wake callers that wait for the thread; they go on without it."""
        self._chunks.put(None)
        for _ in range(2):  # one for `close`, one for the interpreter's exit
            self._ended.put(None)

    def _stop(self) -> None:
        # The thread exists neither in a forked child nor in an interpreter that is shutting down.
        if self._threads and self._forks == forks and not sys.is_finalizing():
            self._requests.put(False)
            self._ended.get()

    def _run(self) -> None:
        try:
            # User code that reads the examples may fork. Then this is the only thread of the child.
            while self._forks == forks and self._requests.get():
                self._chunks.put(self._prepare())
        finally:
            self.release()

    def _prepare(self) -> tuple[list[_Batch], BaseException | None]:
        try:
            return list(islice(self._batches, self._size)), None
        except BaseException as error:  # raised in the thread that uses the batches
            if self._forks != forks:
                raise
            return [], error


_prefetchers: set[_Prefetcher[Any]] = set()


def _after_fork_in_child() -> None:
    global forks
    forks += 1
    # A signal handler may fork while its thread waits for a chunk.
    for prefetcher in _prefetchers:
        prefetcher.release()
    _prefetchers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

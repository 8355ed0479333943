"""A step through state in files: threads read pieces of it ahead, and write them behind."""

import sys
from _queue import SimpleQueue  # the rest of queue takes long to import
from _thread import start_new_thread
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from schuss._arrays import Array
from schuss.mpi._state_pieces import Piece


class StateStream:
    """The states of the parts of one step, which `windows` returns in order.

    It is a context, within which threads read and write. They must not outlive it, and signals
    must wait for its end.
    """

    def __init__(
        self, pieces: Sequence[Piece], ends: Iterable[int], buffers: Iterable[memoryview]
    ) -> None:
        """Read pieces into buffers, and write them. `ends` are those of the parts of the step."""
        places = [place for piece in pieces for place in (piece.begin, piece.end)]
        self.ends = sorted({*ends, *places} - {0})
        """The ends of the parts in which the step must be made: those given, and more."""
        self._begins = [0, *self.ends]
        self._pieces, self._piece_ends = pieces, [piece.end for piece in pieces]
        self._current: tuple[Piece, memoryview, list[Array]] | None = None
        self._error: BaseException | None = None
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        self._read: SimpleQueue[tuple[memoryview, list[Array]] | BaseException] = SimpleQueue()
        self._stepped: SimpleQueue[tuple[Piece, memoryview] | None] = SimpleQueue()
        for buffer in buffers:
            self._free.put(buffer)
        self._reader, self._writer = _Thread(self._read_ahead), _Thread(self._write_behind)

    def __enter__(self) -> Self:
        """Begin to read."""
        if self._pieces:
            self._reader.start()
            self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads and wait for them. Pieces that were not stepped are not written."""
        self._free.put(None)
        self._stepped.put(None)
        self._reader.join()
        self._writer.join()

    def windows(self, part: int) -> list[Array] | None:
        """Return the states in the elements from ``ends[part - 1]`` to ``ends[part]``.

        Call it for each part before it is stepped, and with ``len(ends)`` at the end: then it waits
        until all is written. None where the states are in memory, or the parameter rests.

        Raises
        ------
        OSError
            If the disk fails. The parts before have been stepped.
        """
        begin = self._begins[part]
        piece = self._piece_at(begin)
        if self._current is not None and self._current[0] is not piece:
            self._write_current()
        if part == len(self.ends):
            self._finish()
        if piece is None:
            return None
        if self._current is None:
            self._current = piece, *self._next_read(piece)
        return piece.windows(self._current[2], begin, self._begins[part + 1])

    def _piece_at(self, place: int) -> Piece | None:
        index = bisect_right(self._piece_ends, place)
        at = self._pieces[index : index + 1]
        return at[0] if at and at[0].begin <= place else None

    def _next_read(self, piece: Piece) -> tuple[memoryview, list[Array]]:
        if not self._reader.runs:
            buffer = self._free.get()
            assert buffer is not None
            return buffer, piece.load(buffer)
        read = self._read.get()
        if isinstance(read, BaseException):
            raise read
        return read

    def _write_current(self) -> None:
        if self._current is None:
            return
        piece, buffer, _ = self._current
        self._current = None
        if self._writer.runs:
            self._stepped.put((piece, buffer))
        else:
            piece.store(buffer)
            self._free.put(buffer)

    def _finish(self) -> None:
        self._stepped.put(None)
        self._writer.join()
        if self._error is not None:
            raise self._error

    def _read_ahead(self) -> None:
        try:
            for piece in self._pieces:
                buffer = self._free.get()
                if buffer is None:
                    return
                self._read.put((buffer, piece.load(buffer)))
        except BaseException as error:  # raised in the thread that steps
            self._read.put(error)

    def _write_behind(self) -> None:
        try:
            while (stepped := self._stepped.get()) is not None:
                piece, buffer = stepped
                piece.store(buffer)
                self._free.put(buffer)
        except BaseException as error:
            self._error = error
            self._read.put(error)  # wakes the thread that steps


class _Thread:
    """A bare thread: Ctrl-C inside the locks of the threading module would break them."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._ended: SimpleQueue[None] = SimpleQueue()
        self.runs = False
        """Whether the thread was started and not waited for."""

    def start(self) -> None:
        """Start the thread, if the system and the interpreter can."""
        if sys.is_finalizing():
            return  # the thread would never run
        try:
            start_new_thread(self._run, ())
            self.runs = True
        except RuntimeError:
            pass

    def join(self) -> None:
        """Wait for the end of the thread, if there is one."""
        if self.runs:
            self._ended.get()
            self.runs = False

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.put(None)

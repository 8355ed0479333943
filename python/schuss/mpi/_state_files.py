"""The files in which the state of an optimizer is kept, to leave memory to other things."""

import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from schuss._arrays import Array
from schuss._errors import wrong_type
from schuss.mpi._mapped_file import MappedFile, in_pages
from schuss.mpi._state_pieces import pieces_of
from schuss.mpi._state_stream import StateStream

_SMALL = 1 << 20
"""State arrays of fewer bytes stay in memory: a disk needs about as long for them as for this."""
_BUFFERS = 4
"""One piece is stepped while others are read and written."""
_HUGE = 1 << 21
"""The bytes of a huge page. A disk transfers slowly to and from ordinary pages, whose physical
addresses are scattered (measured: at a third of the speed)."""


class StateFiles:
    """The files of the state of one optimizer in one process.

    The arrays are mapped files, which code that reads or changes state uses as any arrays. Only a
    step streams them through buffers.
    """

    def __init__(self, call: str, folder: object) -> None:
        """Keep files in a folder, the argument `state_in`; TypeError or OSError if that fails."""
        self._call, self._folder = call, _checked_folder(call, folder)
        self._process = os.getpid()
        self._memory = np.empty(0, np.uint8)

    def new_zeros(self, name: str, formats: Sequence[tuple[int, np.dtype[Any]]]) -> list[Array]:
        """Return a new state of all parameters: zeros in a file, small arrays in memory.

        formats: for each parameter, the number of items and their dtype.

        Raises
        ------
        OSError
            If there is no space for them on the disk. No step can find the disk full later.
        """
        offsets, size = [], 0
        for count, dtype in formats:
            offsets.append(size)
            if count * dtype.itemsize >= _SMALL:
                size += in_pages(count * dtype.itemsize)
        file = self._new_file(name, size) if size else None
        return [
            np.zeros(count, dtype)
            if file is None or count * dtype.itemsize < _SMALL
            else file.array(offset, count, dtype)
            for (count, dtype), offset in zip(formats, offsets, strict=True)
        ]

    def check(self, call: str) -> None:
        """Raise RuntimeError in a child process, which has the same files as its parent."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"{call}: the process was forked since the optimizer was made, and shares the "
                "files of its state with its parent, expected only the parent to step it"
            )

    def stream(
        self,
        states: Mapping[str, Sequence[Array]],
        sizes: Sequence[int],
        active: Sequence[bool],
        ends: Iterable[int],
    ) -> StateStream:
        """Return the states of one step, during which no other call may change them.

        Parameters
        ----------
        states : mapping of sequences of arrays
            For each name, those of all parameters.
        sizes : sequence of int
            The number of elements of each parameter.
        active : sequence of bool
            Whether each parameter is stepped. The states of those that rest are not read.
        ends : iterable of int
            Where parts of the step must end, among the elements of all parameters one after
            another. The last is their number.
        """
        of_params = list(zip(*states.values(), strict=True)) or [()] * len(sizes)
        pieces = list(pieces_of(of_params, sizes, active))
        buffers = self._buffers(max((piece.size for piece in pieces), default=0))
        return StateStream(pieces, ends, buffers)

    def _new_file(self, name: str, size: int) -> MappedFile:
        try:
            return MappedFile.new(self._folder, size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self._call}: state_in is {self._folder!r}, expected a folder with space for "
                f"{size:,} bytes of state {name!r} ({error.strerror})",
            ) from None

    def _buffers(self, size: int) -> list[memoryview]:
        """Return buffers of at least this size, the same at each step."""
        size = -(-size // _HUGE) * _HUGE
        if self._memory.size < _BUFFERS * size:
            self._memory = np.empty(0, np.uint8)  # before the next allocation
            self._memory = _huge_pages(_BUFFERS * size)
        return [self._memory[k * size :][:size].data for k in range(_BUFFERS)]


def _checked_folder(call: str, folder: object) -> str:
    if not isinstance(folder, str | os.PathLike):
        raise wrong_type(call, "state_in", folder, "the path of a folder")
    path = os.fsdecode(folder)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{call}: state_in is {path!r}, expected a folder that exists")
    if not os.path.isdir(path):
        raise NotADirectoryError(f"{call}: state_in is {path!r}, expected a folder")
    if not hasattr(os, "preadv"):
        raise NotImplementedError(f"{call}: state_in is {path!r}, expected None on this system")
    return path


def _huge_pages(size: int) -> Array:
    """Return memory in huge pages, where the system has them."""
    space = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        space.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(space, np.uint8)
    first = -memory.ctypes.data % _HUGE
    return memory[first : first + size]

"""Unnamed files that are mapped into memory, and read and written in pieces past the page cache."""

import mmap
import os
import sys
from errno import EINVAL, EIO, EOPNOTSUPP
from io import FileIO
from typing import Any, Self

import numpy as np

from schuss._arrays import Array

PAGE = 4096
"""Direct I/O moves multiples of it, from multiples of it in the file and in memory."""
_ZEROS = 1 << 22


def in_pages(size: int) -> int:
    """Return a number of bytes rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


class MappedFile(mmap.mmap):
    """A file without a name, which the system deletes when no array uses its memory any more.

    `load` and `store` use direct I/O where the file system has it: files that are larger than
    memory would push everything else out of the page cache. The mapped pages stay coherent: Linux
    writes dirty ones before it reads the disk, and drops those that it overwrites there.
    """

    is_direct = False
    """Whether `load` and `store` bypass the page cache."""
    _file: FileIO
    _address: int

    @classmethod
    def new(cls, folder: str, size: int) -> Self:
        """Return a new file of zeros; OSError if there is no space for it."""
        from tempfile import TemporaryFile  # slow to import

        file: Any = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        try:
            _reserve(file.fileno(), size)
            new = cls(file.fileno(), size)
        except BaseException:
            file.close()
            raise
        new._file, new._address = file, np.frombuffer(new, np.uint8).ctypes.data
        new._try_direct()
        return new

    def __del__(self) -> None:
        """Close the file: the map has a descriptor of its own."""
        self._file.close()

    def array(self, offset: int, count: int, dtype: np.dtype[Any]) -> Array:
        """Return an array of the mapped memory, which keeps the file."""
        return np.ndarray((count,), dtype, self, offset)

    def offset_of(self, array: Array) -> int:
        """Return where an array of the mapped memory begins in the file."""
        return array.ctypes.data - self._address

    def load(self, offset: int, into: memoryview) -> None:
        """Read bytes from an offset on. The offset, the length and the address are in pages."""
        rest, start = into, offset
        while rest:
            count = os.preadv(self._file.fileno(), [rest], start)
            if count == 0:
                raise OSError(EIO, "a file of optimizer state has become shorter")
            rest, start = rest[count:], start + count
        self._drop_pages(offset, len(into))

    def store(self, offset: int, data: memoryview) -> None:
        """Write bytes from an offset on. The offset, the length and the address are in pages."""
        _write(self._file.fileno(), data, offset)
        self._drop_pages(offset, len(data))

    def _drop_pages(self, offset: int, size: int) -> None:
        # Without direct I/O, this drops clean pages, and begins to write dirty ones. These are
        # dropped when they are read again.
        if not self.is_direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), offset, size, os.POSIX_FADV_DONTNEED)

    def _try_direct(self) -> None:
        """Use direct I/O if the file system has it and keeps mapped pages coherent with it."""
        if sys.platform != "linux":
            return
        import fcntl

        descriptor = self._file.fileno()
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            self.is_direct = True
            if self._is_coherent():
                return
        except OSError:  # there is no direct I/O, or only of larger pieces
            pass
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        self.is_direct = False

    def _is_coherent(self) -> bool:
        """Return whether direct I/O reads what the map wrote, and the map what it wrote."""
        memory = np.frombuffer(mmap.mmap(-1, PAGE), np.uint8)
        self[0] = 1
        self.load(0, memory.data)
        was_read = bool(memory[0] == 1)
        memory[0] = 0
        self.store(0, memory.data)
        return was_read and self[0] == 0


def _reserve(descriptor: int, size: int) -> None:
    """Allocate the space of a new file, so that no later write finds the disk full."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:  # not every system and file system can
        if isinstance(error, OSError) and error.errno not in (EINVAL, EOPNOTSUPP):
            raise
        zeros = memoryview(bytes(_ZEROS))
        for offset in range(0, size, _ZEROS):
            _write(descriptor, zeros[: size - offset], offset)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwritev(descriptor, [data], offset)
        data, offset = data[count:], offset + count

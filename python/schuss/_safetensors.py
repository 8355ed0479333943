"""Files in the safetensors format: written and read piece by piece, whole or not at all.

The package safetensors reads them too, and is not needed: it writes from a copy of all arrays in
memory, where these go to the disk from where they are.
"""

import errno
import json
import os
import stat
from _thread import start_new_thread
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from io import BufferedWriter, FileIO
from math import prod
from typing import Any, BinaryIO, NamedTuple, NoReturn
from zlib import crc32

import numpy as np

from schuss._arrays import Array

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DTYPES = {
    "bool": "BOOL",
    **{f"int{8 * size}": f"I{8 * size}" for size in (1, 2, 4, 8)},
    **{f"uint{8 * size}": f"U{8 * size}" for size in (1, 2, 4, 8)},
    **{f"float{8 * size}": f"F{8 * size}" for size in (2, 4, 8)},
    "bfloat16": "BF16",
}
_NAMES = {said: name for name, said in _DTYPES.items()}
_SIZES = {said: np.dtype(name).itemsize for said, name in _NAMES.items() if said != "BF16"}
_SIZES["BF16"] = 2

# What is copied, hashed, written or read at once. The digest of a file is that of its header and
# of the CRC-32 of each piece of its tensors, so that several threads can hash; with SHA-256 of the
# pieces, saving took 1.3 to 1.5 times as long as the disk alone.
_PIECE = 1 << 22
_HASHERS = 2

# After how many bytes the system's cache lets go of what is on its way to the disk. A checkpoint is
# seldom read soon, and memory that has to be found for it takes long: three times as long as the
# disk, where a virtual machine has given back what the file before had.
_CACHED = 1 << 27

_LENGTH = 8  # bytes, of the length of the header
_ALIGNMENT = 64  # of the first tensor
_LONGEST_HEADER = 100_000_000  # as the package has it

_DIGEST = "sha256"
_NO_DIGEST = "0" * 64


class Tensor(NamedTuple):
    """Where a file has a tensor, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def dtype_in_file(array: Array) -> str | None:
    """Return the format's name for the array's dtype; None if it has none."""
    dtype = array.dtype
    return _DTYPES.get(dtype.name) if dtype.isnative and not dtype.hasobject else None


# Writing.


def write(
    call: str,
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
) -> None:
    """Write a file in the place of what is there, which stays until all of the new one is on disk.

    Whatever raises or kills, the path names the one or the other.
    """
    # As the package sorts them, so that each lies at a multiple of its item's size.
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    header = _header(tensors, metadata, _NO_DIGEST)
    if len(header) - _LENGTH > _LONGEST_HEADER:  # nobody would read it
        raise ValueError(
            f"{call}: the settings, with extra, take {len(header) - _LENGTH} bytes, expected at "
            f"most {_LONGEST_HEADER}"
        )
    with _replacing(path) as file:
        file.write(header)
        digest = _digest(header, _written(file, tensors.values()))
        file.seek(0)
        file.write(_header(tensors, metadata, digest))


def _header(tensors: Mapping[str, Array], metadata: Mapping[str, str], digest: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {**metadata, _DIGEST: digest}}
    start = 0
    for name, array in tensors.items():
        end = start + array.nbytes
        entries[name] = {
            "dtype": dtype_in_file(array),
            "shape": array.shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH, "little") + text


def _written(file: BinaryIO, arrays: Iterable[Array]) -> Iterator[memoryview]:
    cached = 0
    for array in arrays:
        for piece in _pieces(array):
            file.write(piece)
            cached += len(piece)
            if cached >= _CACHED:
                _let_go(file)
                cached = 0
            yield piece


def _let_go(file: BinaryIO) -> None:
    """Bring what was written to the disk, out of the system's cache."""
    if hasattr(os, "posix_fadvise"):
        file.flush()
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _pieces(array: Array) -> Iterator[memoryview]:
    """Yield the bytes of an array in C order: where they are if they lie so, or copies."""
    array = np.asarray(array)
    if array.flags.c_contiguous:
        data = array.reshape(-1).view(np.uint8).data
        yield from (data[start : start + _PIECE] for start in range(0, array.nbytes, _PIECE))
        return
    step = _PIECE // array.itemsize
    for start in range(0, array.size, step):
        yield array.flat[start : start + step].view(np.uint8).data


def _digest(header: bytes, pieces: Iterable[memoryview]) -> str:
    """Return the digest of a file of this header, none in it, and of these pieces as they come.

    When a piece is asked for, the memory of all but the last _HASHERS is free again.
    """
    # Queues in C and bare threads, as for mini-batches: Ctrl-C breaks Python's own locks.
    from queue import SimpleQueue  # not with the library

    whole = sha256(header)
    lanes: list[tuple[SimpleQueue[memoryview | None], SimpleQueue[bytes]]]
    lanes = [(SimpleQueue(), SimpleQueue()) for _ in range(_HASHERS)]

    def hash_pieces(
        to_hash: "SimpleQueue[memoryview | None]", hashed: "SimpleQueue[bytes]"
    ) -> None:
        while (piece := to_hash.get()) is not None:
            hashed.put(crc32(piece).to_bytes(4, "little"))

    try:
        for lane in lanes:
            start_new_thread(hash_pieces, lane)
        busy: deque[SimpleQueue[bytes]] = deque()  # in the order of their pieces
        for place, piece in enumerate(pieces):
            if len(busy) == _HASHERS:
                whole.update(busy.popleft().get())
            to_hash, hashed = lanes[place % _HASHERS]
            to_hash.put(piece)
            busy.append(hashed)
        for hashed in busy:
            whole.update(hashed.get())
    finally:
        for to_hash, _ in lanes:
            to_hash.put(None)
    return whole.hexdigest()


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Give a new file to write to. It takes the path's place once it is on disk, or is no more."""
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    prefix = f".schuss-{sha256(os.fsencode(name)).hexdigest()[:16]}-"
    _remove_left(folder, prefix)
    file = _begun(folder, prefix)
    try:
        with file:
            with suppress(OSError):  # there is none, or the file system keeps no such modes
                # Who owns it must be able to open it, also to take away what was left of it.
                os.chmod(file.name, stat.S_IMODE(os.stat(path).st_mode) | stat.S_IRUSR)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # as long as it is locked
                os.replace(file.name, path)
        if fcntl is None:
            os.replace(file.name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(file.name)
        raise
    _sync_folder(folder)


# A process that is killed leaves what it has begun behind, and the next one to save there takes it
# away: it is not locked any more. Where there are no such locks (Windows), a file that is open
# cannot be removed.


def _begun(folder: str, prefix: str) -> BufferedWriter:
    """Return a new file, locked as long as its writer lives."""
    while True:
        path = os.path.join(folder, f"{prefix}{os.urandom(8).hex()}.tmp")
        file = open(path, "xb")  # noqa: SIM115, it is for the caller to close
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks removes nothing either
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(path):
            return file
        file.close()  # another has just taken it for left behind


def _remove_left(folder: str, prefix: str) -> None:
    for name in os.listdir(folder):
        if name.startswith(prefix):
            path = os.path.join(folder, name)
            with suppress(OSError), ExitStack() as stack:
                if fcntl is not None:
                    file = stack.enter_context(open(path, "rb"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


def _sync_folder(folder: str) -> None:
    if os.name != "posix":  # others write names at once
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what some file systems say, which do not need it
            raise
    finally:
        os.close(descriptor)


# Reading.


class File:
    """A file open for reading, of which header and sizes are in order."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    def __init__(self, file: FileIO, name: str) -> None:
        self._file, self._name = file, name
        self._length = 0  # of the header
        self._read_header()

    def verify(self) -> None:
        """Raise ValueError if any byte is not as it was written. Reads the whole file once."""
        metadata, tensors = dict(self.metadata), self.tensors
        said = metadata.pop(_DIGEST, None)
        if said is None:
            self.refuse("has no digest, expected one of all its bytes")
        # The header is compared as it stands: what JSON takes for the same is not.
        self._file.seek(0)
        header = self._file.read(_LENGTH + self._length)
        place = header.rfind(said.encode())
        blank = header[:place] + _NO_DIGEST.encode() + header[place + len(said) :]
        if place < 0 or _digest(blank, self._all_pieces(tensors.values())) != said:
            self.refuse("was altered, expected the bytes that its digest is of")

    def read(self, name: str) -> Array:
        """Return a tensor as a new array; its dtype must be one of NumPy itself."""
        tensor = self.tensors[name]
        array = np.empty(tensor.shape, _NAMES[tensor.dtype])
        self.read_into(name, array)
        return array

    def read_into(self, name: str, array: Array) -> None:
        """Fill an array with a tensor of its shape and dtype."""
        array = np.asarray(array)
        self._seek(self.tensors[name])
        if array.flags.c_contiguous:
            self._fill(array.reshape(-1).view(np.uint8).data)
            return
        step = _PIECE // array.itemsize
        buffer = np.empty(min(step, array.size), array.dtype)
        for start in range(0, array.size, step):
            piece = buffer[: array.size - start]
            self._fill(piece.view(np.uint8).data)
            array.flat[start : start + step] = piece

    def differs(self, name: str, array: Array) -> bool:
        """Whether a tensor is another than an array of its shape and dtype, byte for byte."""
        self._seek(self.tensors[name])
        buffer = memoryview(bytearray(_PIECE))
        for piece in _pieces(array):
            self._fill(buffer[: len(piece)])
            if buffer[: len(piece)] != piece:
                return True
        return False

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        self._length = int.from_bytes(self._file.read(_LENGTH), "little")
        if size < _LENGTH or not 2 <= self._length <= min(size - _LENGTH, _LONGEST_HEADER):
            self.refuse("is cut short, or no file of safetensors")
        try:
            entries = json.loads(self._file.read(self._length).decode())
            self.metadata = entries.pop("__metadata__", {})
            if not all(isinstance(value, str) for value in self.metadata.values()):
                raise TypeError
            tensors = sorted(
                ((name, _tensor(entry)) for name, entry in entries.items()),
                key=lambda item: (item[1].start, item[1].nbytes),
            )
            end = 0
            for _, tensor in tensors:
                if tensor.start != end:
                    raise ValueError
                end += tensor.nbytes
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            self.refuse("has a header that is none of safetensors")
        if size != _LENGTH + self._length + end:
            expected = _LENGTH + self._length + end
            how = "is cut short" if size < expected else "is too long"
            self.refuse(f"{how}: it has {size} bytes, expected {expected}")
        self.tensors = dict(tensors)

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError: the file has that problem."""
        raise ValueError(f"{self._name} {problem}") from None

    def _all_pieces(self, tensors: Iterable[Tensor]) -> Iterator[memoryview]:
        # One for each hasher, and one to read into.
        buffers = deque(memoryview(bytearray(_PIECE)) for _ in range(_HASHERS + 1))
        for tensor in tensors:
            self._seek(tensor)
            for start in range(0, tensor.nbytes, _PIECE):
                piece = buffers[0][: tensor.nbytes - start]
                buffers.rotate()
                self._fill(piece)
                yield piece

    def _seek(self, tensor: Tensor) -> None:
        self._file.seek(_LENGTH + self._length + tensor.start)

    def _fill(self, memory: memoryview) -> None:
        done = 0
        while done < len(memory):
            count = self._file.readinto(memory[done:])
            if not count:
                self.refuse("became shorter while it was read")
            done += count


def _tensor(entry: Any) -> Tensor:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, start, end)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError
    tensor = Tensor(dtype, shape, start, prod(shape) * _SIZES[dtype])
    if tensor.nbytes != end - start:
        raise ValueError
    return tensor


@contextmanager
def reading(path: str | os.PathLike[str], call: str) -> Iterator[File]:
    """Open a file; ValueError, now or later, says what is wrong with it."""
    with open(path, "rb", buffering=0) as file:
        yield File(file, f"{call}: {os.fspath(path)!r}")

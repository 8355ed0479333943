"""The safetensors format, written and read in pieces.

The package safetensors reads these files too. It is not used here because it first copies all
arrays in memory; this module writes them from where they are.
"""

import json
import os
import re
from _queue import SimpleQueue  # not queue, whose import is slow
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import FileIO
from itertools import cycle
from math import prod
from typing import Any, NamedTuple, NoReturn
from zlib import crc32

import numpy as np

from schuss import _files
from schuss._arrays import Array, components
from schuss._interrupts import Deferred

_BITS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}
_NAMES = {f"{kind[0].upper()}{n}": f"{kind}{n}" for kind, bits in _BITS.items() for n in bits}
_NAMES["BOOL"] = "bool"
_SIZES = {dtype: np.dtype(name).itemsize for dtype, name in _NAMES.items()} | {"BF16": 2}
# The format has no complex128, and readers before 2025 refuse a file with its complex64. So complex
# arrays are written as their components, along a last axis of 2; the metadata have their names.
_COMPONENTS = {"C64": "F32", "C128": "F64"}
_COMPLEX = "complex"
_NAMES |= {"C64": "complex64", "C128": "complex128"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()} | {"bfloat16": "BF16"}

# The number of bytes that are copied, hashed, written or read at once. The digest of a file covers
# the header and the CRC-32 of each piece, so that several threads can hash. With SHA-256 of the
# pieces, saving took 1.3 to 1.5 times as long as the disk alone.
_PIECE = 1 << 22
_HASHERS = 2

_LENGTH = 8  # bytes of the length of the header
_ALIGNMENT = 64  # of the first tensor
_LONGEST_HEADER = 100_000_000  # that of the package safetensors
_LONGEST_NAME = 1 << 16
_MAX_AXES = 64  # that of NumPy
_MAX_BYTES = (1 << 63) - 1

_DIGEST = "sha256"
_NO_DIGEST = "0" * 64


class Tensor(NamedTuple):
    """The entry of a tensor in a header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def dtype_in_file(array: Array) -> str | None:
    """Return the format's name of the array's dtype, or None if the format does not have it."""
    dtype = array.dtype
    return _DTYPES.get(dtype.name) if dtype.isnative and not dtype.hasobject else None


# Writing.


def write(
    call: str,
    path: str,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str],
) -> None:
    """Write a file that replaces the path atomically."""
    # Large items first, as in the package, so that each tensor is aligned to its item size.
    tensors = dict(sorted(tensors.items(), key=lambda item: -components(item[1]).itemsize))
    complex_names = [name for name, array in tensors.items() if array.dtype.kind == "c"]
    if complex_names:
        metadata = {**metadata, _COMPLEX: json.dumps(complex_names)}
    tensors = {name: components(array) for name, array in tensors.items()}
    header = _header(tensors, metadata, _NO_DIGEST)
    if len(header) - _LENGTH > _LONGEST_HEADER:  # no reader would accept it
        raise ValueError(
            f"{call}: the settings, with extra, take {len(header) - _LENGTH} bytes, expected at "
            f"most {_LONGEST_HEADER}"
        )
    longest = max(map(len, tensors), default=0)
    if longest > _LONGEST_NAME:
        raise ValueError(
            f"{call}: the name of an array has {longest} characters, expected at most "
            f"{_LONGEST_NAME}"
        )
    with Deferred() as signals, _files.replacing(call, path) as file:
        file.write(header)
        digest = _digest(header, _write_pieces(file, tensors.values(), signals))
        file.rewind()
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


def _write_pieces(
    file: _files.NewFile, arrays: Iterable[Array], signals: Deferred
) -> Iterator[memoryview]:
    """Write the arrays, and yield each piece that was written."""
    for array in arrays:
        for piece in _pieces(array):
            signals.run_handlers()
            file.write(piece)
            yield piece


def _pieces(array: Array) -> Iterator[memoryview]:
    """Yield the bytes of an array in C order; only an array in another order is copied."""
    if array.flags.c_contiguous:
        data = array.reshape(-1).view(np.uint8).data
        yield from (data[start : start + _PIECE] for start in range(0, array.nbytes, _PIECE))
        return
    step = _PIECE // array.itemsize
    for start in range(0, array.size, step):
        yield array.flat[start : start + step].view(np.uint8).data


# Hashing. As for mini-batches, queues and threads are those of C: Ctrl-C breaks the locks that
# Python implements itself.
_Lane = tuple[SimpleQueue[memoryview | None], SimpleQueue[int | None]]


def _digest(header: bytes, pieces: Iterable[memoryview]) -> str:
    """Return the digest of a file with this header (without a digest) and these pieces.

    When the next piece is requested, only the last _HASHERS pieces are still in use.
    """
    total, process = sha256(header), os.getpid()
    busy: deque[tuple[memoryview, _Lane | None]] = deque()  # in the order of the pieces

    def finish_first() -> None:
        piece, lane = busy.popleft()
        # The threads do not exist in a child that was forked meanwhile.
        crc = None if lane is None or os.getpid() != process else lane[1].get()
        total.update((crc32(piece) if crc is None else crc).to_bytes(4, "little"))

    with _hashers() as lanes:
        for piece, lane in zip(pieces, cycle(lanes or [None])):
            if len(busy) == _HASHERS:
                finish_first()
            if lane is not None:
                lane[0].put(piece)
            busy.append((piece, lane))
        while busy:
            finish_first()
    return total.hexdigest()


@contextmanager
def _hashers() -> Iterator[list[_Lane]]:
    """Start the threads that hash; fewer or none if the system cannot start them."""
    lanes: list[_Lane] = []
    try:
        with suppress(RuntimeError):
            for _ in range(_HASHERS):
                lane: _Lane = SimpleQueue(), SimpleQueue()
                start_new_thread(_hash_pieces, lane)
                lanes.append(lane)
        yield lanes
    finally:
        for to_hash, _ in lanes:
            to_hash.put(None)


def _hash_pieces(to_hash: SimpleQueue[memoryview | None], hashed: SimpleQueue[int | None]) -> None:
    while (piece := to_hash.get()) is not None:
        crc = None  # out of memory: the caller hashes this piece
        with suppress(MemoryError):
            crc = crc32(piece)
        hashed.put(crc)


# Reading.


@contextmanager
def reading(call: str, path: str) -> Iterator["File"]:
    """Open a file; ValueError, now or when it is read, says what is wrong with it."""
    with Deferred() as signals, _files.opened(call, path) as file:
        yield File(call, path, file, signals)


class File:
    """A file open for reading, with a valid header and the right size."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    def __init__(self, call: str, path: str, file: FileIO, signals: Deferred) -> None:
        self._name, self._file, self._signals = f"{call}: {path!r}", file, signals
        self._bytes: dict[str, Array] = {}  # of the tensors that were read
        size = os.fstat(file.fileno()).st_size
        start = self._bytes_at(0, min(size, _LENGTH))
        length = int.from_bytes(start, "little")
        if size < _LENGTH or not 2 <= length <= min(size - _LENGTH, _LONGEST_HEADER):
            self.refuse("is cut short, or is not a safetensors file")
        self._header = start + self._bytes_at(_LENGTH, length)
        try:
            self.metadata, self.tensors = _parse(self._header[_LENGTH:])
        except (ValueError, RecursionError):
            self.refuse("has an invalid safetensors header")
        expected = len(self._header) + sum(tensor.nbytes for tensor in self.tensors.values())
        if size != expected:
            problem = "is cut short" if size < expected else "is too long"
            self.refuse(f"{problem}: it has {size} bytes, expected {expected}")

    def read_tensors(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Read the file once and verify all of it; keep the tensors that are wanted.

        Other processes can write to the file meanwhile: what is kept is what was verified.
        """
        digest = self.metadata.get(_DIGEST, "")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            self.refuse("has no digest, expected one of all its bytes")
        # The bytes of the header are compared: different bytes can be equal as JSON.
        i = self._header.rfind(digest.encode())
        blank = self._header[:i] + _NO_DIGEST.encode() + self._header[i + len(digest) :]
        if i < 0 or _digest(blank, self._all_pieces(wanted)) != digest:
            self.refuse("was altered, expected bytes that match its digest")

    def read(self, name: str) -> Array:
        """Return a tensor of a dtype of NumPy as an array of its own."""
        tensor = self.tensors[name]
        array: Array = self._bytes[name].view(_NAMES[tensor.dtype]).reshape(tensor.shape)
        return array

    def read_into(self, name: str, array: Array) -> None:
        """Fill an array with a tensor of the same shape and dtype."""
        target, values = self._as_bits(name, array)
        target[...] = values

    def differs(self, name: str, array: Array) -> bool:
        """Return whether a tensor and an array of the same shape and dtype differ in any bit."""
        return not np.array_equal(*self._as_bits(name, array))

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError with a problem of the file."""
        raise ValueError(f"{self._name} {problem}") from None

    def _as_bits(self, name: str, array: Array) -> tuple[Array, Array]:
        array = components(array)
        bits = np.dtype(f"u{array.itemsize}")
        return array.view(bits), self._bytes[name].view(bits).reshape(array.shape)

    def _all_pieces(self, wanted: Callable[[str], bool]) -> Iterator[memoryview]:
        unwanted = (tensor.nbytes for name, tensor in self.tensors.items() if not wanted(name))
        longest = min(max(unwanted, default=0), _PIECE)
        # One buffer for each hasher, and one to read into.
        buffers = deque(memoryview(bytearray(longest)) for _ in range(_HASHERS + 1))
        for name, tensor in self.tensors.items():
            keep = wanted(name)
            if keep:
                memory = self._bytes[name] = np.empty(tensor.nbytes, np.uint8)
            for start in range(0, tensor.nbytes, _PIECE):
                self._signals.run_handlers()
                end = min(start + _PIECE, tensor.nbytes)
                piece = memory[start:end].data if keep else buffers[0][: end - start]
                buffers.rotate()
                self._fill(len(self._header) + tensor.start + start, piece)
                yield piece

    def _bytes_at(self, start: int, count: int) -> bytes:
        data = bytearray(count)
        self._fill(start, memoryview(data))
        return bytes(data)

    def _fill(self, start: int, memory: memoryview) -> None:
        while memory:
            count = _read_at(self._file, start, memory)
            if not count:
                self.refuse("became shorter while it was read")
            start, memory = start + count, memory[count:]


def _read_at(file: FileIO, start: int, memory: memoryview) -> int:
    if hasattr(os, "preadv"):  # leaves the file position, which a forked process shares
        return os.preadv(file.fileno(), [memory], start)
    file.seek(start)
    return file.readinto(memory)


def _parse(text: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a header in file order, or raise ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        _require(len(values) == len(pairs))
        return values

    def size(digits: str) -> int:
        _require(len(digits) <= len(str(_MAX_BYTES)))  # the conversion of long ones is slow
        return int(digits)

    def refuse(text: str) -> NoReturn:
        raise ValueError

    entries = json.loads(
        text.decode(),
        object_pairs_hook=unique,
        parse_int=size,
        parse_float=refuse,
        parse_constant=refuse,
    )
    _require(isinstance(entries, dict))
    metadata = entries.pop("__metadata__", {})
    _require(isinstance(metadata, dict))
    _require(all(isinstance(value, str) for value in metadata.values()))
    _require(max(map(len, entries), default=0) <= _LONGEST_NAME)
    tensors = sorted(
        ((name, _tensor(entry)) for name, entry in entries.items()),
        key=lambda item: (item[1].start, item[1].nbytes),
    )
    end = 0
    for _, tensor in tensors:
        _require(tensor.start == end)
        end += tensor.nbytes
    return metadata, dict(tensors) | _complex_tensors(metadata, dict(tensors))


def _complex_tensors(
    metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors that are the components of complex arrays, as complex tensors."""
    names = json.loads(metadata.get(_COMPLEX, "[]"))
    _require(isinstance(names, list) and {*map(type, names)} <= {str})
    _require(len(set(names)) == len(names) and tensors.keys() >= set(names))
    of_components = {part: dtype for dtype, part in _COMPONENTS.items()}
    result = {}
    for name in names:
        tensor = tensors[name]
        _require(tensor.dtype in of_components and tensor.shape[-1:] == (2,))
        dtype, shape = of_components[tensor.dtype], tensor.shape[:-1]
        result[name] = tensor._replace(dtype=dtype, shape=shape)
    return result


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _tensor(entry: Any) -> Tensor:
    _require(isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"})
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _require(isinstance(dtype, str) and dtype in _SIZES)
    _require(isinstance(shape, list) and len(shape) <= _MAX_AXES)
    _require(isinstance(offsets, list) and len(offsets) == 2)
    numbers = [*shape, *offsets]
    _require({*map(type, numbers)} == {int} and min(numbers) >= 0 and max(numbers) <= _MAX_BYTES)
    # NumPy limits the product of the other axes even if an array has no elements.
    _require(prod(filter(None, shape)) * _SIZES[dtype] <= _MAX_BYTES)
    tensor = Tensor(dtype, tuple(shape), offsets[0], prod(shape) * _SIZES[dtype])
    _require(tensor.nbytes == offsets[1] - offsets[0])
    return tensor

"""The safetensors format, written and read in pieces.

The package safetensors reads these files too. It is not used here because it first copies all
arrays in memory; this module writes them from where they are.
"""

import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import FileIO
from math import prod
from typing import Any, NamedTuple, NoReturn

import numpy as np

from schuss import _core, _files
from schuss._arrays import Array, components
from schuss._digest import HASHERS, Block, digest_of
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

# The most bytes that are copied, hashed, written or read at once. The digest of a file covers the
# CRC-32 of each piece of a tensor.
_PIECE = 1 << 22

_LENGTH = 8  # bytes of the length of the header
_ALIGNMENT = 64  # of the first tensor
_LONGEST_HEADER = 100_000_000  # that of the package safetensors
_LONGEST_NAME = 1 << 16
_MAX_AXES = 64  # that of NumPy
_MAX_BYTES = (1 << 63) - 1

_ENTRY = {"dtype", "shape", "data_offsets"}
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
    return _name_in_file(array.dtype)


@lru_cache(64)  # NumPy computes the name of a dtype at each access
def _name_in_file(dtype: np.dtype[Any]) -> str | None:
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
    header = _header(tensors, metadata)
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
        digest = digest_of(header, _written(file, _blocks(tensors.values()), signals))
        file.rewind()
        file.write(header.replace(_NO_DIGEST.encode(), digest.encode(), 1))


def _header(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file; its first value is a blank digest."""
    entries: dict[str, Any] = {"__metadata__": {_DIGEST: _NO_DIGEST, **metadata}}
    start = 0
    for name, array in tensors.items():
        end = start + array.nbytes
        entries[name] = {
            "dtype": dtype_in_file(array),
            "shape": array.shape,
            "data_offsets": (start, end),
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH, "little") + text


def _written(file: _files.NewFile, blocks: Iterable[Block], signals: Deferred) -> Iterator[Block]:
    """Write blocks, and yield each one that was written."""
    for block in blocks:
        signals.run_handlers()
        file.write(block.memory)
        yield block


def _is_small(nbytes: int) -> bool:
    """Return whether a tensor shares a block with its neighbours, as a call for each is slow."""
    return nbytes < _PIECE // 64


def _blocks(arrays: Iterable[Array]) -> Iterator[Block]:
    """Yield the bytes of arrays in C order; copy those that are small or in another order."""
    small: list[Array] = []
    total = 0
    for array in arrays:
        if small and (not _is_small(array.nbytes) or total + array.nbytes > _PIECE):
            yield _joined(small)
            small, total = [], 0
        if _is_small(array.nbytes):
            small.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
            total += array.nbytes
        else:
            yield from _blocks_of_large(array)
    if small:
        yield _joined(small)


def _joined(arrays: list[Any]) -> Block:
    return Block(memoryview(b"".join(arrays)), [array.nbytes for array in arrays if array.nbytes])


def _blocks_of_large(array: Array) -> Iterator[Block]:
    if array.flags.c_contiguous:
        data = array.reshape(-1).view(np.uint8).data
        pieces = (data[start : start + _PIECE] for start in range(0, array.nbytes, _PIECE))
    else:
        step = _PIECE // array.itemsize
        pieces = (
            array.flat[start : start + step].view(np.uint8).data
            for start in range(0, array.size, step)
        )
    yield from (Block(piece, [piece.nbytes]) for piece in pieces)


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
        if i < 0 or digest_of(blank, self._all_blocks(wanted)) != digest:
            self.refuse("was altered, expected bytes that match its digest")

    def read(self, name: str) -> Array:
        """Return a tensor of a dtype of NumPy as an array of its own."""
        tensor, memory = self.tensors[name], self._bytes[name]
        if memory.base is not None:  # that of a block
            memory = memory.copy()
        array: Array = memory.view(_NAMES[tensor.dtype]).reshape(tensor.shape)
        return array

    def read_into(self, arrays: Mapping[str, Array]) -> None:
        """Fill arrays with the tensors of these names, which have the same shapes and dtypes."""
        dense = {name: array for name, array in arrays.items() if array.flags.c_contiguous}
        _core.copy_bytes(list(dense.values()), [self._bytes[name] for name in dense])
        for name in arrays.keys() - dense.keys():
            target, values = self._as_bits(name, arrays[name])
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

    def _all_blocks(self, wanted: Callable[[str], bool]) -> Iterator[Block]:
        """Read all tensors, and yield each block that was read."""
        unwanted = (tensor.nbytes for name, tensor in self.tensors.items() if not wanted(name))
        longest = _PIECE if any(unwanted) else 0
        # One buffer for each hasher, and one to read into.
        buffers = deque(np.empty(longest, np.uint8) for _ in range(HASHERS + 1))
        start = len(self._header)
        for names, keep in self._neighbours(wanted):
            sizes = [self.tensors[name].nbytes for name in names]
            total, end = sum(sizes), 0
            memory = np.empty(total, np.uint8) if keep else None
            if memory is not None:
                for name, size in zip(names, sizes, strict=True):
                    self._bytes[name] = memory if len(names) == 1 else memory[end : end + size]
                    end += size
            for first in range(0, total, _PIECE):
                self._signals.run_handlers()
                count = min(_PIECE, total - first)
                piece = buffers[0][:count] if memory is None else memory[first : first + count]
                buffers.rotate()
                self._fill(start + first, piece.data)
                yield Block(piece.data, [count] if len(names) == 1 else [*filter(None, sizes)])
            start += total

    def _neighbours(self, wanted: Callable[[str], bool]) -> Iterator[tuple[list[str], bool]]:
        """Yield the names of the tensors: small ones that follow each other together."""
        names: list[str] = []
        total, kept = 0, False
        for name, tensor in self.tensors.items():
            keep, is_small = wanted(name), _is_small(tensor.nbytes)
            if names and not (is_small and keep == kept and total + tensor.nbytes <= _PIECE):
                yield names, kept
                names, total = [], 0
            names.append(name)
            total, kept = total + tensor.nbytes, keep
            if not is_small:
                total = _PIECE  # nothing joins it
        if names:
            yield names, kept

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

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Tensor:
        values = dict(pairs)
        _require(len(values) == len(pairs))
        # Converted at once: many live containers make the garbage collector slow.
        return _tensor(values) if isinstance(values.get("shape"), list) else values

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
    _require({*map(type, entries.values())} <= {Tensor})
    tensors = sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes))
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


def _tensor(entry: dict[str, Any]) -> Tensor:
    _require(entry.keys() == _ENTRY)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _require(isinstance(dtype, str) and dtype in _SIZES)
    _require(len(shape) <= _MAX_AXES)
    _require(isinstance(offsets, list) and len(offsets) == 2)
    numbers = [*shape, *offsets]
    _require({*map(type, numbers)} == {int} and min(numbers) >= 0 and max(numbers) <= _MAX_BYTES)
    # NumPy limits the product of the other axes even if an array has no elements.
    _require(prod(filter(None, shape)) * _SIZES[dtype] <= _MAX_BYTES)
    tensor = Tensor(dtype, tuple(shape), offsets[0], prod(shape) * _SIZES[dtype])
    _require(tensor.nbytes == offsets[1] - offsets[0])
    return tensor

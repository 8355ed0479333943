"""The safetensors format: headers, and the pieces whose checksums a digest covers.

The package safetensors reads these files too. It is not used here because it first copies all
arrays in memory; schuss writes them from where they are.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple, NoReturn

import numpy as np

from schuss._arrays import Array
from schuss._digest import CHECKSUM, Checksums

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
PIECE = 1 << 22

LENGTH = 8  # bytes of the length of the header
_ALIGNMENT = 64  # of the first tensor
LONGEST_HEADER = 100_000_000  # that of the package safetensors
_LONGEST_NAME = 1 << 16
_MAX_AXES = 64  # that of NumPy
_MAX_BYTES = (1 << 63) - 1

_ENTRY = {"dtype", "shape", "data_offsets"}
DIGEST = "sha256"
NO_DIGEST = "0" * 64


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


def numpy_dtype(tensor: Tensor) -> np.dtype[Any]:
    """Return NumPy's dtype for a tensor; uint16 for bfloat16, which NumPy does not have."""
    return np.dtype(_NAMES.get(tensor.dtype, "uint16"))


def is_small(nbytes: int) -> bool:
    """Return whether a tensor shares a block with its neighbours, as a call for each is slow."""
    return nbytes < PIECE // 64


def one_after_another(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Return the entries of tensors of these dtypes and shapes that follow each other."""
    sizes = [prod(shape) * _SIZES[dtype] for dtype, shape in tensors.values()]
    starts = accumulate(sizes[:-1], initial=0)
    return {
        name: Tensor(*each, start, nbytes)
        for (name, each), start, nbytes in zip(tensors.items(), starts, sizes, strict=False)
    }


def header_of(
    call: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    complex_names: list[str],
) -> bytes:
    """Return the header of a file; its first value is a blank digest.

    complex_names: the tensors that are the components of complex arrays.
    """
    if complex_names:
        metadata = {**metadata, _COMPLEX: json.dumps(complex_names)}
    entries: dict[str, Any] = {"__metadata__": {DIGEST: NO_DIGEST, **metadata}}
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (tensor.start, tensor.start + tensor.nbytes),
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH + len(text)) % _ALIGNMENT)
    if len(text) > LONGEST_HEADER:  # no reader would accept it
        raise ValueError(
            f"{call}: the settings, with extra, take {len(text)} bytes, expected at most "
            f"{LONGEST_HEADER}"
        )
    longest = max(map(len, tensors), default=0)
    if longest > _LONGEST_NAME:
        raise ValueError(
            f"{call}: the name of an array has {longest} characters, expected at most "
            f"{_LONGEST_NAME}"
        )
    return len(text).to_bytes(LENGTH, "little") + text


def pieces_of(start: int, sizes: Iterable[int]) -> Checksums:
    """Return the pieces, with blank checksums, of tensors that follow each other from `start` on.

    sizes: of the tensors, in bytes.
    """
    nbytes = np.fromiter(sizes, np.int64)
    counts = -(-nbytes // PIECE)
    within = (np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)) * PIECE
    pieces = np.zeros(len(within), CHECKSUM)
    pieces["start"] = start + np.repeat(nbytes.cumsum() - nbytes, counts) + within
    pieces["size"] = np.minimum(np.repeat(nbytes, counts) - within, PIECE)
    return pieces


def parse(text: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
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

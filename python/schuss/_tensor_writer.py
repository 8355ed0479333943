"""Files of tensors, written from where they are: by one process, or by several, each its parts.

A file has the same bytes, however many processes write it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from schuss import _core, _files, _safetensors
from schuss._arrays import Array, Order, components
from schuss._collective import Collective
from schuss._digest import Block, Checksums, checksums_of, digest_of, joined
from schuss._safetensors import Tensor


class Part(NamedTuple):
    """Elements of a tensor that this process writes.

    They are counted in C order, in which a file has them.
    """

    values: Array
    """An array of which each process writes elements, in any memory layout."""
    shape: tuple[int, ...]
    """That of the whole tensor."""
    first: int
    """The element of the tensor with which `values` begin."""
    begin: int
    """The elements of the tensor that are written."""
    end: int

    @classmethod
    def whole(cls, array: Array) -> Self:
        """Return the part of a process that writes all elements of an array."""
        return cls(_core.held(array), array.shape, 0, 0, array.size)

    def in_file(self) -> Self:
        """Return the part as a file has it, where complex numbers are pairs."""
        if self.values.dtype.kind != "c":
            return self
        values = components(self.values)
        return type(self)(values, (*self.shape, 2), 2 * self.first, 2 * self.begin, 2 * self.end)


class Scattered(NamedTuple):
    """Elements that this process has of a tensor, which lie in its memory in another order.

    The ranks exchange them, so that each writes elements that follow each other in the file.
    """

    values: Array
    """One axis, of elements in the order of memory."""
    whole: tuple[int, ...]
    """The shape of the whole tensor."""
    order: Order
    bounds: list[int]
    """Rank r has the elements from `bounds[r]` to `bounds[r + 1]`, in the order of memory."""
    own_file: tuple[int, int] | None = None
    """The elements that this rank writes, in C order, if it has a file of its own for them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor in the file."""
        return self.whole if self.own_file is None else (self.own_file[1] - self.own_file[0],)

    def shares(self) -> list[tuple[int, int]]:
        """Return the elements that each rank writes, in C order."""
        size, ranks = prod(self.whole), len(self.bounds) - 1
        return [(size * rank // ranks, size * (rank + 1) // ranks) for rank in range(ranks)]


AnyPart: TypeAlias = Part | Scattered


def write(
    call: str,
    path: str,
    parts: Mapping[str, AnyPart],
    metadata: Mapping[str, str],
    together: Collective,
) -> None:
    """Write a file that replaces the path atomically.

    parts: those of this process; the first rank has a part of each tensor, which may be empty. The
    metadata are those of the first rank.
    """
    parts = _in_order(parts)
    with ExitStack() as stack:
        head = b""
        if together.rank == 0:
            header, tensors = _header(call, parts, metadata)
            file = stack.enter_context(_files.replacing(call, path))
            head = os.fsencode(file.path) + b"\0" + header
        head = together.of_first(head)
        if together.rank > 0:
            name, _, header = head.partition(b"\0")
            tensors = _safetensors.parse(header[_safetensors.LENGTH :])[1]
            file = stack.enter_context(_files.shared(call, os.fsdecode(name)))
        checksums = _write_parts(file, len(header), tensors, parts, together)
        if together.size > 1:
            file.sync()
            sent = together.gather(checksums.tobytes())
            checksums = np.concatenate([np.frombuffer(each, checksums.dtype) for each in sent])
        if together.rank == 0:
            file.write_at(0, _finished(call, header, tensors, checksums, together)[0])


def write_own(
    call: str,
    file: _files.NewFile,
    parts: Mapping[str, AnyPart],
    metadata: Mapping[str, str],
    together: Collective,
) -> str:
    """Write the parts of this process to a file of its own, and return the file's digest."""
    parts = _in_order(parts)
    header, tensors = _header(call, parts, metadata)
    checksums = _write_parts(file, len(header), tensors, parts, together)
    header, digest = _finished(call, header, tensors, checksums, together)
    file.write_at(0, header)
    file.sync()
    return digest


def header_of_all(call: str, parts: Mapping[str, AnyPart], metadata: Mapping[str, str]) -> bytes:
    """Return the header, without a digest, that one file of all tensors would have."""
    return _header(call, _in_order(parts), metadata)[0]


def _header(
    call: str, parts: Mapping[str, AnyPart], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Tensor]]:
    """Return the header of a file without its digest, and the entries of the tensors in it."""
    complex_names, in_file = [], {}
    for name, part in parts.items():
        values, shape = part.values, part.shape
        if values.dtype.kind == "c":
            complex_names.append(name)
            values, shape = components(values), (*shape, 2)
        in_file[name] = _safetensors.dtype_in_file(values) or "", shape
    tensors = _safetensors.one_after_another(in_file)
    return _safetensors.header_of(call, tensors, metadata, complex_names), tensors


def _finished(
    call: str,
    header: bytes,
    tensors: Mapping[str, Tensor],
    checksums: Checksums,
    together: Collective,
) -> tuple[bytes, str]:
    """Return a header with its digest, and the digest; checksums: of all parts of the file."""
    if not together.is_alone:  # one process writes whole pieces, in the order of the file
        sizes = (tensor.nbytes for tensor in tensors.values())
        whole = joined(checksums, _safetensors.pieces_of(len(header), sizes))
        if whole is None:  # the parameters differ between the ranks
            raise RuntimeError(f"{call}: the ranks have other parameters, expected the same on all")
        checksums = whole
    digest = digest_of(header, checksums)
    return header.replace(_safetensors.NO_DIGEST.encode(), digest.encode(), 1), digest


def _in_order(parts: Mapping[str, AnyPart]) -> dict[str, AnyPart]:
    # Large items first, as in the package, so that each tensor is aligned to its item size.
    return dict(sorted(parts.items(), key=lambda item: -_itemsize(item[1].values)))


def _itemsize(values: Array) -> int:
    """Return the bytes of an item in the file, where complex numbers are pairs."""
    return values.itemsize // 2 if values.dtype.kind == "c" else values.itemsize


def _write_parts(
    file: _files.NewFile,
    start: int,
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, AnyPart],
    together: Collective,
) -> Checksums:
    """Write the parts of this process, and return their checksums.

    start: where the first tensor starts.
    """

    def written(blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            together.signals.run_handlers()
            file.write_at(block.start, block.memory)
            yield block

    def placed(*, scattered: bool) -> Iterator[tuple[int, Part]]:
        for name, part in parts.items():
            at = start + tensors[name].start
            if isinstance(part, Part) and not scattered:
                yield at, part.in_file()
            elif isinstance(part, Scattered) and scattered:
                for each in _collected(part, together):
                    yield at, each.in_file()

    # What the ranks exchange comes last: an error before it ends the call of all.
    checksums = checksums_of(written(_blocks(placed(scattered=False))))
    together.vote()
    return np.append(checksums, checksums_of(written(_blocks(placed(scattered=True)))))


def _blocks(placed: Iterable[tuple[int, Part]]) -> Iterator[Block]:
    """Yield the bytes of parts; copy those that are small, or whose memory has another order.

    placed: where the tensor starts in the file, and the part of it.
    """
    small: list[Any] = []
    begin = end = 0
    for start, (values, _, first, *bounds) in placed:
        itemsize = values.itemsize
        low, high = bounds[0] * itemsize, bounds[1] * itemsize
        at, nbytes = start + low, high - low
        # Checksums are those of pieces, so a part that lies in two of them is cut.
        in_one_piece = low // _safetensors.PIECE == (high - 1) // _safetensors.PIECE
        is_small = not nbytes or (in_one_piece and _safetensors.is_small(nbytes))
        if small and (not is_small or at != end or end - begin + nbytes > _safetensors.PIECE):
            yield _joined(begin, small)
            small = []
        if not is_small:
            yield from _blocks_of_large(start, values, first, *bounds)
        elif nbytes:
            begin, end = begin if small else at, at + nbytes
            small.append(_elements(values, bounds[0] - first, bounds[1] - first))
    if small:
        yield _joined(begin, small)


def _joined(start: int, arrays: list[Any]) -> Block:
    return Block(start, memoryview(b"".join(arrays)), [array.nbytes for array in arrays])


def _blocks_of_large(
    start: int, values: Array, first: int, begin: int, end: int
) -> Iterator[Block]:
    """Yield elements of a tensor: pieces of it, and parts of pieces at both ends."""
    step, itemsize = _safetensors.PIECE // values.itemsize, values.itemsize
    edges = [begin, *range((begin // step + 1) * step, end, step), end]
    for low, high in pairwise(edges):
        piece = _elements(values, low - first, high - first)
        memory = piece.reshape(-1).view(np.uint8).data
        yield Block(start + low * itemsize, memory, [memory.nbytes])


def _elements(values: Array, begin: int, end: int) -> Array:
    """Return elements of an array in C order, without a copy if they lie so in memory."""
    if not values.flags.c_contiguous:
        flat: Array = values.flat[begin:end]
        return flat
    if (begin, end) == (0, values.size):
        return values
    return values.reshape(-1)[begin:end]


# Elements that the ranks exchange.


def _collected(scattered: Scattered, together: Collective) -> Iterator[Part]:
    """Yield the elements that this rank writes, part by part; all ranks call it.

    A round collects about a piece from all ranks.
    """
    values, rank, shares = scattered.values, together.rank, scattered.shares()
    origin = 0 if scattered.own_file is None else scattered.own_file[0]
    longest = max(end - begin for begin, end in shares)
    step = max(_safetensors.PIECE // values.itemsize // together.size, 1)
    for first in range(0, longest, step):
        ranges = [
            (min(begin + first, end), min(begin + first + step, end)) for begin, end in shares
        ]
        places = [_places(scattered.whole, scattered.order, *each) for each in ranges]
        of_all = np.concatenate(places)
        owner = np.searchsorted(scattered.bounds[1:-1], of_all, "right")
        own = values[of_all[owner == rank] - scattered.bounds[rank]]
        received = together.gather(own.tobytes())
        begin = sum(map(len, places[:rank]))
        part = np.empty(len(places[rank]), values.dtype)
        for source, data in enumerate(received):
            is_from = owner == source
            mine = is_from[begin : begin + len(part)]
            skipped = np.count_nonzero(is_from[:begin])
            part[mine] = np.frombuffer(data, values.dtype)[skipped:][: np.count_nonzero(mine)]
        if len(part):
            low, high = (each - origin for each in ranges[rank])
            yield Part(part, scattered.shape, low, low, high)


def _places(shape: tuple[int, ...], order: Order, begin: int, end: int) -> Any:
    """Return where elements from begin to end, in C order, lie in memory of that order."""
    strides, first, stride = [0] * len(shape), 0, 1
    for axis in reversed(order):
        size = shape[~axis if axis < 0 else axis]
        strides[axis if axis >= 0 else ~axis] = -stride if axis < 0 else stride
        first += (size - 1) * stride if axis < 0 else 0
        stride *= size
    places = np.full(end - begin, first)
    indices = np.arange(begin, end)
    for axis in range(len(shape) - 1, -1, -1):
        indices, within = np.divmod(indices, shape[axis])
        places += within * strides[axis]
    return places

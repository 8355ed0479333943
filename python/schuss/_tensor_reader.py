"""Files of tensors, read in pieces and verified: by one process, or by several together."""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from io import FileIO
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from schuss import _core, _safetensors
from schuss._arrays import Array, components
from schuss._collective import Collective
from schuss._digest import HASHERS, Block, checksums_of, digest_of, joined
from schuss._safetensors import DIGEST, LENGTH, LONGEST_HEADER, NO_DIGEST, Tensor


class Wanted(NamedTuple):
    """What this process keeps of a tensor."""

    begin: int = 0
    """The first element, in C order."""
    end: int | None = None
    """None: to the last one."""
    take: Callable[[Array], Array] | None = None
    """What makes the array that is kept of the elements from begin to end; None keeps these."""
    by_all: bool = False
    """Whether all ranks keep the same: then each reads a share, and sends it to the others."""


WHOLE = Wanted()
WantedOf: TypeAlias = Callable[[str, Tensor], Wanted | None]
"""Returns what is kept of a tensor of some name; None for nothing."""
_NOTHING: Array = np.empty(0, np.uint8)


class Segment(NamedTuple):
    """Elements of a tensor that follow each other in a file."""

    tensor: str
    start: int
    """Where they start in the file."""
    nbytes: int
    first: int
    """Where they start in the tensor, in bytes."""


class Volume:
    """A file open for reading, with a valid header and the right size."""

    def __init__(self, call: str, path: str, file: FileIO) -> None:
        self._name, self._file = f"{call}: {path!r}", file
        size = os.fstat(file.fileno()).st_size
        start = self._bytes_at(0, min(size, LENGTH))
        length = int.from_bytes(start, "little")
        if size < LENGTH or not 2 <= length <= min(size - LENGTH, LONGEST_HEADER):
            self.refuse("is cut short, or is not a safetensors file")
        self.header = start + self._bytes_at(LENGTH, length)
        try:
            self.metadata, self.tensors = _safetensors.parse(self.header[LENGTH:])
        except (ValueError, RecursionError):
            self.refuse("has an invalid safetensors header")
        expected = len(self.header) + sum(tensor.nbytes for tensor in self.tensors.values())
        if size != expected:
            problem = "is cut short" if size < expected else "is too long"
            self.refuse(f"{problem}: it has {size} bytes, expected {expected}")

    @property
    def digest(self) -> str:
        """The digest that the header has; ValueError if it has none."""
        digest = self.metadata.get(DIGEST, "")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            self.refuse("has no digest, expected one of all its bytes")
        return digest

    def without_digest(self) -> bytes:
        """Return the header with a blank digest."""
        # The bytes of the header are compared: different bytes can be equal as JSON.
        digest = self.digest.encode()
        i = self.header.rfind(digest)
        return self.header[:i] + NO_DIGEST.encode() + self.header[i + len(digest) :]

    def segments(self) -> list[Segment]:
        """Return where the tensors of a file that has all of them are."""
        start = len(self.header)
        return [
            Segment(name, start + tensor.start, tensor.nbytes, 0)
            for name, tensor in self.tensors.items()
        ]

    def fill(self, start: int, memory: memoryview) -> None:
        """Read bytes from a position on."""
        while memory:
            count = _read_at(self._file, start, memory)
            if not count:
                self.refuse("became shorter while it was read")
            start, memory = start + count, memory[count:]

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError with a problem of the file."""
        raise ValueError(f"{self._name} {problem}") from None

    def _bytes_at(self, start: int, count: int) -> bytes:
        data = bytearray(count)
        self.fill(start, memoryview(data))
        return bytes(data)


def _read_at(file: FileIO, start: int, memory: memoryview) -> int:
    if hasattr(os, "preadv"):  # leaves the file position, which a forked process shares
        return os.preadv(file.fileno(), [memory], start)
    file.seek(start)
    return file.readinto(memory)


class File:
    """Tensors in one or several files.

    name: that of the file, with which messages begin. volumes: the files, and what they have.
    """

    def __init__(
        self,
        name: str,
        volumes: list[tuple[Volume, list[Segment]]],
        metadata: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        together: Collective,
    ) -> None:
        self._name, self._volumes, self.metadata, self.tensors = name, volumes, metadata, tensors
        self._together = together
        self._bytes: dict[str, Array] = {}  # what is kept of the tensors that were read

    def check_digests(self) -> None:
        """Raise ValueError if a header has no digest, or the ranks read different files."""
        digests = [volume.digest for volume, _ in self._volumes]
        if not self._together.vote(sha256("".join(digests).encode()).digest()):
            self.refuse("differs among the ranks, expected the same file on all")

    def read_tensors(self, wanted: WantedOf = lambda name, tensor: WHOLE) -> None:
        """Read the files once and verify all of them; keep what is wanted of the tensors.

        Other processes can write to the files meanwhile: what is kept is what was verified.
        """
        reader = _Reader(self.tensors, wanted, self._together)
        found = [checksums_of(reader.blocks(*each)) for each in self._volumes]
        self._together.vote()
        reader.exchange()
        for (volume, segments), checksums in zip(self._volumes, found, strict=True):
            if self._together.size > 1:
                sent = self._together.gather(checksums.tobytes())
                every = np.concatenate([np.frombuffer(each, checksums.dtype) for each in sent])
                sizes = (segment.nbytes for segment in segments)
                whole = joined(every, _safetensors.pieces_of(len(volume.header), sizes))
            else:
                whole = checksums
            if whole is None or digest_of(volume.without_digest(), whole) != volume.digest:
                volume.refuse("was altered, expected bytes that match its digest")
        self._bytes = reader.kept

    def read(self, name: str) -> Array:
        """Return a tensor of a dtype of NumPy as an array of its own."""
        tensor, memory = self.tensors[name], self._memory(name)
        if memory.base is not None:  # that of a block
            memory = memory.copy()
        array: Array = memory.view(_safetensors.numpy_dtype(tensor)).reshape(tensor.shape)
        return array

    def values(self, name: str) -> Array:
        """Return what is kept of a tensor, on one axis."""
        values: Array = self._memory(name).view(_safetensors.numpy_dtype(self.tensors[name]))
        return values

    def read_into(self, arrays: Mapping[str, Array]) -> None:
        """Fill arrays with the tensors of these names, which have the same shapes and dtypes."""
        dense = {name: array for name, array in arrays.items() if array.flags.c_contiguous}
        _core.copy_bytes(list(dense.values()), [self._memory(name) for name in dense])
        for name in arrays.keys() - dense.keys():
            target, values = self._as_bits(name, arrays[name])
            target[...] = values

    def differs(self, name: str, array: Array) -> bool:
        """Return whether a tensor and an array of the same shape and dtype differ in any bit."""
        return not np.array_equal(*self._as_bits(name, array))

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError with a problem of the file."""
        raise ValueError(f"{self._name} {problem}") from None

    def _memory(self, name: str) -> Array:
        """Return the bytes that are kept of a tensor."""
        return self._bytes.get(name, _NOTHING)

    def _as_bits(self, name: str, array: Array) -> tuple[Array, Array]:
        array = components(array)
        bits = np.dtype(f"u{array.itemsize}")
        return array.view(bits), self._memory(name).view(bits).reshape(array.shape)


class _Reader:
    """Reads what a process keeps of tensors, and its share of the rest."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        wanted: WantedOf,
        together: Collective,
    ) -> None:
        self._tensors, self._together = tensors, together
        self._wanted = {name: wanted(name, tensor) for name, tensor in tensors.items()}
        self.kept: dict[str, Array] = {}
        """The bytes of what is kept of each tensor."""
        self._left = {name: tensor.nbytes for name, tensor in tensors.items()}  # bytes to read
        # What all ranks keep, the rank that reads it, and the segments that share its memory.
        self._shared: list[tuple[Array, int, list[Segment]]] = []
        longest = max((tensor.nbytes for tensor in tensors.values()), default=0)
        # One buffer for each hasher, and one to read into; their pages are used if they are needed.
        self._buffers = deque(
            np.empty(min(longest, _safetensors.PIECE), np.uint8) for _ in range(HASHERS + 1)
        )

    def blocks(self, volume: Volume, segments: list[Segment]) -> Iterator[Block]:
        """Read a file, and yield each block that was read."""
        for group in self._groups(segments):
            if len(group) == 1 and not _safetensors.is_small(group[0].nbytes):
                yield from self._large(volume, group[0])
            else:
                yield from self._small(volume, group)
            for segment in group:
                self._finish(segment)

    def exchange(self) -> None:
        """Send what each rank has read for all."""
        for memory, root, group in self._shared:
            self._together.broadcast(memory, root)
            self._keep_all(group, memory)

    def _groups(self, segments: list[Segment]) -> Iterator[list[Segment]]:
        """Yield small segments that follow each other and are read alike, and each large one."""
        group: list[Segment] = []
        total, alike = 0, None
        for segment in [segment for segment in segments if segment.nbytes]:
            is_small, kind = _safetensors.is_small(segment.nbytes), self._kind(segment)
            if group and not (
                is_small and kind == alike and total + segment.nbytes <= _safetensors.PIECE
            ):
                yield group
                group, total = [], 0
            group.append(segment)
            total, alike = total + segment.nbytes, kind
            if not is_small:
                total = _safetensors.PIECE  # nothing joins it
        if group:
            yield group

    def _kind(self, segment: Segment) -> str | int:
        """Return who keeps bytes of a tensor: "all", "this" or "others"; or else who reads them."""
        wanted = self._wanted[segment.tensor]
        if wanted is None:
            return self._reader_of(segment.start)
        if wanted.by_all and self._together.size > 1:
            return "all"
        low, high = self._range_of(segment.tensor)
        is_kept = low < segment.first + segment.nbytes and segment.first < high
        return "this" if is_kept else "others"

    def _reads(self, kind: str | int, start: int) -> bool:
        """Return whether this rank reads bytes of a kind."""
        if kind == "all":
            kind = self._reader_of(start)
        return kind in ("this", self._together.rank)

    def _reader_of(self, start: int) -> int:
        """Return the rank that reads what nobody, or everybody, keeps."""
        return start // _safetensors.PIECE % self._together.size

    def _small(self, volume: Volume, group: list[Segment]) -> Iterator[Block]:
        first, sizes = group[0], [segment.nbytes for segment in group]
        self._together.signals.run_handlers()
        kind = self._kind(first)
        reads = self._reads(kind, first.start)
        if not reads and kind != "all":
            return
        memory: Array = np.empty(sum(sizes), np.uint8)
        if reads:
            volume.fill(first.start, memory.data)
            yield Block(first.start, memory.data, sizes)
        if kind == "all":
            self._shared.append((memory, self._reader_of(first.start), group))
        else:
            self._keep_all(group, memory)

    def _keep_all(self, group: list[Segment], memory: Array) -> None:
        end = 0
        for segment in group:
            self._keep(segment, 0, memory[end : end + segment.nbytes], copies=False)
            end += segment.nbytes

    def _large(self, volume: Volume, segment: Segment) -> Iterator[Block]:
        low, high = self._range_of(segment.tensor)
        for begin in range(0, segment.nbytes, _safetensors.PIECE):
            self._together.signals.run_handlers()
            count = min(_safetensors.PIECE, segment.nbytes - begin)
            start, first = segment.start + begin, segment.first + begin
            kind = self._kind(Segment(segment.tensor, start, count, first))
            memory = None
            if low <= first and first + count <= high:
                memory = self._memory_of(segment.tensor)[first - low : first - low + count]
                if kind == "all":
                    self._shared.append((memory, self._reader_of(start), []))
            if not self._reads(kind, start):
                continue
            target = self._buffers[0][:count] if memory is None else memory
            self._buffers.rotate()
            volume.fill(start, target.data)
            if memory is None:
                self._keep(segment, begin, target, copies=True)
            yield Block(start, target.data, [count])

    def _range_of(self, tensor: str) -> tuple[int, int]:
        """Return the bytes of a tensor that are kept: where they start and end."""
        wanted, nbytes = self._wanted[tensor], self._tensors[tensor].nbytes
        if wanted is None:
            return 0, 0
        if wanted.end is None:
            return 0, nbytes
        itemsize = _safetensors.numpy_dtype(self._tensors[tensor]).itemsize
        return wanted.begin * itemsize, wanted.end * itemsize

    def _memory_of(self, tensor: str) -> Array:
        """Return the memory for what is kept of a tensor."""
        if tensor not in self.kept:
            low, high = self._range_of(tensor)
            self.kept[tensor] = np.empty(high - low, np.uint8)
        return self.kept[tensor]

    def _keep(self, segment: Segment, begin: int, memory: Array, *, copies: bool) -> None:
        """Keep what is wanted of bytes that were read, from `begin` of a segment on.

        copies: whether the memory is reused.
        """
        low, high = self._range_of(segment.tensor)
        first = segment.first + begin
        begin, end = max(low, first), min(high, first + memory.size)
        if begin >= end:
            return
        part = memory[begin - first : end - first]
        if part.size == high - low and not copies:
            self.kept[segment.tensor] = part
        else:
            self._memory_of(segment.tensor)[begin - low : end - low] = part

    def _finish(self, segment: Segment) -> None:
        """Let `take` reduce a tensor as soon as all of it was read."""
        name = segment.tensor
        self._left[name] -= segment.nbytes
        wanted = self._wanted[name]
        if self._left[name] == 0 and wanted is not None and wanted.take is not None:
            tensor = self._tensors[name]
            array: Any = self.kept[name].view(_safetensors.numpy_dtype(tensor))
            self.kept[name] = wanted.take(array.reshape(tensor.shape)).view(np.uint8)

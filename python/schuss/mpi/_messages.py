"""Which ranges of the parameters one message carries, and where they lie in a buffer."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from schuss import _core
from schuss._arrays import Array
from schuss.mpi._cut import Range

GRADS_TAG, PARAMS_TAG, STATISTICS_TAG = 1, 2, 3
"""Messages of different kinds never meet."""
LINE = 64
"""Bytes to which messages are aligned in a buffer."""


class Format(NamedTuple):
    """The dtype of a parameter's values on the wire, and the one in which they are used."""

    wire: np.dtype[Any]
    used: np.dtype[Any]


class Message(NamedTuple):
    """Ranges in one format, which one message carries one after another."""

    ranges: tuple[Range, ...]
    format: Format
    begin: int
    """Where the message begins in the buffer of a bucket, in bytes."""
    end: int
    large: bool
    """Whether it is one range of a large array. Others are copied to a buffer first."""

    @property
    def items(self) -> int:
        """The number of values."""
        return (self.end - self.begin) // self.format.wire.itemsize

    def of(self, buffer: Array) -> Array:
        """Return the values of this message in a buffer of bytes."""
        return buffer[self.begin : self.end].view(self.format.wire)

    def split(self, values: Array) -> list[Array]:
        """Return the part of each range among the values of the message."""
        parts, end = [], 0
        for _, first, last in self.ranges:
            begin, end = end, end + last - first
            parts.append(values[begin:end])
        return parts


def messages(
    ranges: Sequence[Range], formats: Sequence[Format | None], large: Collection[int] = ()
) -> list[Message]:
    """Divide ranges into messages.

    formats: of each parameter; ranges of those with None are left out.
    large: the parameters whose ranges are sent by themselves.
    """
    groups: list[tuple[Format, list[Range]]] = []
    for r in ranges:
        format = formats[r.param]
        if format is None:
            continue
        alone = not groups or r.param in large or groups[-1][1][-1].param in large
        if alone or groups[-1][0] != format:
            groups.append((format, []))
        groups[-1][1].append(r)
    divided, begin = [], 0
    for format, group in groups:
        end = begin + sum(r.end - r.begin for r in group) * format.wire.itemsize
        divided.append(Message(tuple(group), format, begin, end, group[0].param in large))
        begin = -(-end // LINE) * LINE
    return divided


Plan: TypeAlias = list[list[list[Message]]]
"""The messages of each bucket with the values of each rank's part."""


def buffer_bytes(messages: Sequence[Message]) -> int:
    """Return the size of a buffer for the messages."""
    return messages[-1].end if messages else 0


def copy_arrays(targets: Sequence[Array], sources: Sequence[Array]) -> None:
    """Copy contiguous arrays to others of the same sizes."""
    if len(targets) == 1:
        np.copyto(targets[0], sources[0])
    elif targets:
        _core.copy_bytes(list(targets), list(sources))


def component(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the components of complex numbers; that of other numbers as it is."""
    return dtype.type(0).real.dtype if dtype.kind == "c" else dtype


def components(array: Array) -> Array:
    """Return a view of the components of contiguous numbers, one after another."""
    return array.view(component(array.dtype))


class Memory:
    """One array of each rank and slot, allocated when it is first used."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[int, ...], Array] = {}

    def __call__(self, size: int, *key: int) -> Array:
        """Return the array of a key, with at least this number of bytes."""
        array = self._arrays.get(key)
        if array is None or array.size < size:
            space = np.zeros(size + LINE, np.uint8)
            first = -space.ctypes.data % LINE
            array = self._arrays[key] = space[first : first + size]
        return array

"""What may stand where an array is expected, for type checkers."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt


class SupportsDLPack(Protocol):
    """An object that shows its memory by the DLPack protocol."""

    def __dlpack__(self) -> object:
        """Return a capsule with the memory."""


class SupportsBuffer(Protocol):
    """An object that shows its memory by the buffer protocol."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return a view of the memory."""


Array: TypeAlias = npt.NDArray[Any]
ArrayLike: TypeAlias = Array | SupportsDLPack | SupportsBuffer
ArrayTree: TypeAlias = ArrayLike | Sequence["ArrayTree"] | Mapping[Any, "ArrayTree"]
"""One array, or sequences and mappings of them, nested as the user likes."""

"""What may stand where an array is expected, and arrays made to go with others."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds


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


def as_any_array(call: str, name: str, value: Any) -> Array:
    """Return what NumPy makes of it, subclasses as they are, or raise TypeError or ValueError."""
    try:
        array: Array = np.asanyarray(value)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{call}: {name} is no array ({error}), expected one") from None
    if array.ndim == 0 and array.dtype.kind in "OUS" and not isinstance(value, np.ndarray):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected an array")
    return array


# A large array's states begin at other places of a 4 KB page than the array itself, 17 cache lines
# apart: loads and stores at equal places of a page hold each other up (measured: 7 % of a step).
_PAGE, _LINE, _STAGGER, _LARGE = 4096, 64, 17 * 64, 1 << 16


def zeros_along(param: Array, place: int = 1) -> Array:
    """Return zeros laid out in memory as the parameter is, so that a step runs straight on."""
    like = np.empty_like(param, subok=False)  # its pages are never touched
    if like.nbytes < _LARGE:
        zeros: Array = np.zeros_like(like)
    else:
        shape, dtype, strides, size = like.shape, like.dtype, like.strides, like.nbytes
        del like
        space = np.zeros(size + _PAGE, np.uint8)
        start = byte_bounds(param)[0] // _LINE * _LINE + _STAGGER * place
        zeros = np.ndarray(shape, dtype, space[(start - space.ctypes.data) % _PAGE :], 0, strides)
    backwards: Any = (*(slice(None, None, -1 if s < 0 else 1) for s in param.strides), ...)
    along: Array = zeros[backwards]
    return along

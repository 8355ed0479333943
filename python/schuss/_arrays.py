"""Array arguments: their types, and the arrays that are allocated for them."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds
from numpy.lib.stride_tricks import as_strided

from schuss import _core


class SupportsDLPack(Protocol):
    """An object that exports its memory by the DLPack protocol."""

    def __dlpack__(self) -> object:
        """Return a capsule of the memory."""


class SupportsBuffer(Protocol):
    """An object that exports its memory by the buffer protocol."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return a view of the memory."""


class Dataclass(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Attrs(Protocol):
    """An instance of a class of attrs."""

    __attrs_attrs__: ClassVar[Any]


Array: TypeAlias = npt.NDArray[Any]
ArrayLike: TypeAlias = Array | SupportsDLPack | SupportsBuffer
_Fields: TypeAlias = Dataclass | Attrs
ArrayTree: TypeAlias = (
    ArrayLike | _Fields | Sequence["ArrayTree | None"] | Mapping[Any, "ArrayTree | None"]
)
"""One array, or sequences, mappings and fields of them, nested as the user likes."""
GradTree: TypeAlias = (
    ArrayLike
    | _core.Rows
    | float
    | _Fields
    | Sequence["GradTree"]
    | Mapping[Any, "GradTree"]
    | None
)
"""Gradients of an `ArrayTree`: None where there is none, numbers for arrays without axes."""


def _has_masks(values: Any) -> bool:
    """Return whether lists and tuples contain a masked array, whose mask NumPy would drop."""
    if isinstance(values, list | tuple):
        return any(map(_has_masks, values))
    return isinstance(values, np.ma.MaskedArray)


def as_any_array(call: str, name: str, value: Any) -> Array:
    """Convert a value to an array, keeping subclasses, or raise TypeError or ValueError."""
    if isinstance(value, list | tuple) and "numpy.ma" in sys.modules and _has_masks(value):
        raise TypeError(
            f"{call}: {name} is a {type(value).__name__} of masked arrays, expected arrays without "
            "masks, or one masked array (np.ma.stack)"
        )
    try:
        array: Array = np.asanyarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{call}: {name} is not an array ({error}), expected one") from None
    if array.ndim == 0 and array.dtype.kind in "OUS" and not isinstance(value, np.ndarray):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected an array")
    return array


def arrays_of(call: str, name: str, tree: ArrayTree, *, written: bool = False) -> list[Array]:
    """Return the arrays of a structure, or raise TypeError or ValueError.

    written: whether they will be written to. The structure must then return the same arrays again.
    """
    return _core.Tree(tree, call, name, written).arrays


def check_holds(call: str, params: ArrayTree, stepped: list[Array]) -> None:
    """Raise ValueError unless the arrays that an optimizer updates are among the parameters."""
    given = {layout_of(array) for array in arrays_of(call, "params", params)}
    if not given.issuperset(map(layout_of, stepped)):
        raise ValueError(f"{call}: optimizer.params are other arrays, expected those of params")


def layout_of(array: Array) -> tuple[Any, ...]:
    """Return the address of an array and its memory layout."""
    return array.__array_interface__["data"], array.shape, array.strides


def computed_dtype(array: Array) -> np.dtype[Any]:
    """Return the dtype in which updates of the array are computed."""
    dtype: np.dtype[Any] = array.dtype
    if dtype.itemsize == 2 and dtype.name in ("float16", "bfloat16"):
        dtype = np.dtype(np.float32)
    return dtype


def components(array: Array) -> Array:
    """Return a view of the real and imaginary parts of an array along a new last axis of 2.

    A real array is returned as it is.
    """
    if array.dtype.kind != "c":
        return array
    parts: Array = array.real
    return as_strided(parts, (*array.shape, 2), (*array.strides, parts.itemsize))


def parse_dtype(call: str, name: str, value: Any, among: tuple[str, ...]) -> np.dtype[Any]:
    """Return a dtype that is one of these, or raise TypeError or ValueError.

    Raises ImportError for bfloat16 if ml_dtypes, which defines it for NumPy, is not installed.
    """
    try:
        dtype_name = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        was = type(value).__name__
        raise TypeError(f"{call}: {name} is a {was}, expected a dtype or its name") from None
    if dtype_name not in among:
        raise ValueError(
            f"{call}: {name} is {dtype_name!r}, expected {' or '.join(map(repr, among))}"
        )
    return _core.bfloat16_dtype(call, name) if dtype_name == "bfloat16" else np.dtype(dtype_name)


# The states of a large array begin at other offsets in a 4 KB page than the array itself, 17 cache
# lines apart: loads and stores at equal offsets in a page delay each other (measured: 7 % of a
# step).
_PAGE, _LINE, _STAGGER, _LARGE = 4096, 64, 17 * 64, 1 << 16
_SMALL = _LARGE // np.dtype(np.complex128).itemsize  # elements, of any dtype


def zeros_like_strided(param: Array, slot: int = 1, dtype: npt.DTypeLike | None = None) -> Array:
    """Return zeros with the memory layout of a parameter, so that a step reads both in order.

    Arrays of different slots begin at different offsets in a page.
    """
    if param.flags.c_contiguous and param.size < _SMALL:
        return np.zeros(param.shape, param.dtype if dtype is None else dtype)
    like = np.empty_like(param, dtype, subok=False)  # its pages are never touched
    if like.nbytes < _LARGE:
        zeros: Array = np.zeros_like(like)
    else:
        shape, dtype, strides, size = like.shape, like.dtype, like.strides, like.nbytes
        del like  # before the next allocation
        zeros = np.ndarray(shape, dtype, zero_bytes(param, slot, size), 0, strides)
    backwards: Any = (*(slice(None, None, -1 if s < 0 else 1) for s in param.strides), ...)
    along: Array = zeros[backwards]
    return along


def zero_bytes(param: Array, slot: int, size: int) -> npt.NDArray[np.uint8]:
    """Return memory for a large array of a parameter, at the offset in a page of its slot."""
    space = np.zeros(size + _PAGE, np.uint8)
    start = byte_bounds(param)[0] // _LINE * _LINE + _STAGGER * slot
    first = (start - space.ctypes.data) % _PAGE
    return space[first : first + size]


Order: TypeAlias = list[int]
"""The axes of an array from the slowest to the fastest; ``~axis`` for one that runs backwards."""


def memory_order(array: Array) -> Order:
    """Return the order in which the elements of an array lie in memory."""
    strides = [
        stride if size > 1 else 0 for size, stride in zip(array.shape, array.strides, strict=True)
    ]
    axes = sorted(range(array.ndim), key=lambda axis: -abs(strides[axis]))
    return [~axis if strides[axis] < 0 else axis for axis in axes]


def in_order(array: Array, order: Order) -> Array:
    """Return a view of an array whose C order is that order."""
    backwards = {~axis for axis in order if axis < 0}
    directions: Any = (
        *(slice(None, None, -1 if axis in backwards else 1) for axis in range(array.ndim)),
        ...,
    )
    along: Array = array[directions]
    return along.transpose([~axis if axis < 0 else axis for axis in order])

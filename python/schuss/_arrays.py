"""What may stand where an array is expected, and arrays made to go with others."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds

from schuss import _core


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


def names_of_leaves(tree: Any, name: str = "") -> Iterator[str]:
    """Yield the name of each leaf in a structure of dicts, lists and tuples: "layers/0/W"."""
    if not isinstance(tree, dict | list | tuple):
        yield name
        return
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from names_of_leaves(child, f"{name}/{key}" if name else str(key))


def _has_masks(values: Any) -> bool:
    """Return whether lists and tuples hold a masked array, whose mask NumPy would drop."""
    if isinstance(values, list | tuple):
        return any(map(_has_masks, values))
    return isinstance(values, np.ma.MaskedArray)


def as_any_array(call: str, name: str, value: Any) -> Array:
    """Return what NumPy makes of it, subclasses as they are, or raise TypeError or ValueError."""
    if isinstance(value, list | tuple) and "numpy.ma" in sys.modules and _has_masks(value):
        raise TypeError(
            f"{call}: {name} is a {type(value).__name__} of masked arrays, expected arrays without "
            "masks, or one masked array (np.ma.stack)"
        )
    try:
        array: Array = np.asanyarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{call}: {name} is no array ({error}), expected one") from None
    if array.ndim == 0 and array.dtype.kind in "OUS" and not isinstance(value, np.ndarray):
        raise TypeError(f"{call}: {name} is a {type(value).__name__}, expected an array")
    return array


def arrays_of(call: str, name: str, tree: ArrayTree, *, written: bool = False) -> list[Array]:
    """Return the arrays of a structure, or raise TypeError or ValueError.

    written: whether they will be written to, so that the structure has to keep them.
    """
    return _core.Tree(tree, call, name, kept=written).arrays


def check_holds(call: str, params: ArrayTree, stepped: list[Array]) -> None:
    """Raise ValueError unless these arrays, which an optimizer steps, are among the parameters."""
    given = {_place(array) for array in arrays_of(call, "params", params)}
    if not given.issuperset(map(_place, stepped)):
        raise ValueError(f"{call}: optimizer.params are other arrays, expected those of params")


def _place(array: Array) -> tuple[Any, ...]:
    """Return where an array lies in memory, and how."""
    return array.__array_interface__["data"], array.shape, array.strides


def computed_dtype(array: Array) -> np.dtype[Any]:
    """Return the dtype that updates of the array are computed in."""
    dtype: np.dtype[Any] = array.dtype
    if dtype.itemsize == 2 and dtype.name in ("float16", "bfloat16"):
        dtype = np.dtype(np.float32)
    return dtype


def dtype_among(call: str, name: str, value: Any, among: tuple[str, ...]) -> np.dtype[Any]:
    """Return the dtype that is meant, one of these, or raise TypeError or ValueError.

    Raises ImportError for bfloat16, if the package that brings it to NumPy is not installed.
    """
    try:
        said = value if isinstance(value, str) else np.dtype(value).name
    except TypeError:
        was = type(value).__name__
        raise TypeError(f"{call}: {name} is a {was}, expected a dtype or its name") from None
    if said not in among:
        raise ValueError(f"{call}: {name} is {said!r}, expected {' or '.join(map(repr, among))}")
    if said != "bfloat16":
        return np.dtype(said)
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(
            f"{call}: {name} is 'bfloat16', which NumPy has from ml_dtypes: "
            "pip install 'schuss[bfloat16]'"
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


# A large array's states begin at other places of a 4 KB page than the array itself, 17 cache lines
# apart: loads and stores at equal places of a page hold each other up (measured: 7 % of a step).
_PAGE, _LINE, _STAGGER, _LARGE = 4096, 64, 17 * 64, 1 << 16


def zeros_along(param: Array, place: int = 1, dtype: npt.DTypeLike | None = None) -> Array:
    """Return zeros laid out in memory as the parameter is, so that a step runs straight on."""
    like = np.empty_like(param, dtype, subok=False)  # its pages are never touched
    if like.nbytes < _LARGE:
        zeros: Array = np.zeros_like(like)
    else:
        shape, dtype, strides, size = like.shape, like.dtype, like.strides, like.nbytes
        del like  # never two at once
        space = np.zeros(size + _PAGE, np.uint8)
        start = byte_bounds(param)[0] // _LINE * _LINE + _STAGGER * place
        zeros = np.ndarray(shape, dtype, space[(start - space.ctypes.data) % _PAGE :], 0, strides)
    backwards: Any = (*(slice(None, None, -1 if s < 0 else 1) for s in param.strides), ...)
    along: Array = zeros[backwards]
    return along

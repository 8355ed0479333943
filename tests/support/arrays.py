"""Arrays of every kind and layout, and what "the same bits" means."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]


def dtype_of(name: Any) -> np.dtype[Any]:
    """Return a dtype by its name; skip the test if it is bfloat16, and ml_dtypes is missing."""
    if name == "bfloat16":
        name = pytest.importorskip("ml_dtypes").bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays have the same dtype, shape and bits; any NaN equals any NaN."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.dtype.kind == "c":
        return same_bits(a.real, b.real) and same_bits(a.imag, b.imag)
    integer = np.dtype(f"u{a.itemsize}")
    a, b = a.copy(order="C"), b.copy(order="C")
    return bool(np.all((a.view(integer) == b.view(integer)) | (np.isnan(a) & np.isnan(b))))


def equal(some: Sequence[Array], others: Sequence[Array]) -> bool:
    """Whether two sequences of arrays are equal bit for bit."""
    return all(same_bits(a, b) for a, b in zip(some, others, strict=True))


def bits(values: Sequence[Array]) -> list[bytes]:
    return [value.tobytes() for value in values]


def numbers(rng: np.random.Generator, shape: Any, dtype: Any, *, special: bool = True) -> Array:
    """Return normal random numbers, a fifth of them replaced by NaN, infinities, subnormals ..."""
    if np.dtype(dtype).kind == "c":
        values = np.empty(shape, dtype)
        for part in (values.real, values.imag):
            part[...] = numbers(rng, shape, part.dtype, special=special)
        return values
    values = rng.standard_normal(shape)
    if special:
        info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.finfo(np.float32)
        subnormal = [info.smallest_subnormal, -info.tiny / 3]
        edges = [0.0, -0.0, info.tiny, -info.tiny, info.max, -info.max]
        specials = np.array([*subnormal, *edges, np.inf, -np.inf, np.nan, 1e-30, 1e-15, 1e15])
        chosen = rng.random(shape) < 0.2
        values = np.where(chosen, rng.choice(specials, shape), values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(values).astype(dtype)


# Shapes around the edges of blocks, tiles and vector registers.
SHAPES: list[tuple[int, ...]] = [
    *((), (0, 3), (1,), (17,), (4095,), (4096,), (4097,)),
    *((3, 5000), (70, 33), (9, 20, 31)),
]


def random_arrays(
    rng: np.random.Generator, dtype: Any = np.float32, *, special: bool = False
) -> list[Array]:
    """Return an array of random numbers in each of `SHAPES`."""
    return [numbers(rng, shape, dtype, special=special) for shape in SHAPES]


def empty_like_layout(layout: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return a writeable array of zeros in a memory layout."""
    itemsize = np.dtype(dtype).itemsize
    if layout == "c":
        return np.zeros(shape, dtype)
    if layout == "fortran":
        return np.zeros(shape, dtype, order="F")
    if layout == "rolled axes":
        axes = (*range(1, len(shape)), 0)
        return np.zeros([shape[i] for i in axes], dtype).transpose(np.argsort(axes))
    if layout == "sliced":
        return np.zeros([2 * n + 1 for n in shape], dtype)[(slice(1, None, 2),) * len(shape)]
    if layout == "columns of more":
        return np.zeros((*shape[:-1], shape[-1] + 3), dtype)[..., 2:-1]
    if layout == "reversed":
        return np.zeros(shape, dtype)[(slice(None, None, -1),) * len(shape)]
    if layout == "half reversed":
        return np.zeros([2 * n for n in shape], dtype, order="F")[
            tuple(slice(None, None, 2 - 4 * (i % 2)) for i in range(len(shape)))
        ]
    if layout == "unaligned":
        size = int(np.prod(shape)) * itemsize
        unaligned: Array = np.zeros(size + 1, np.uint8)[1:].view(dtype).reshape(shape)
        return unaligned
    if layout == "packed fields":
        fields: Array = np.zeros(shape, np.dtype([("flag", "u1"), ("value", dtype)]))["value"]
        return fields
    raise ValueError(layout)


LAYOUTS = ["c", "fortran", "rolled axes", "sliced", "columns of more"]
LAYOUTS += ["reversed", "half reversed", "unaligned", "packed fields"]


def laid_out(values: Array, layout: str) -> Array:
    """Return a copy of the values in a memory layout."""
    array = empty_like_layout(layout, values.shape, values.dtype)
    array[...] = values
    return array


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested mappings and sequences, in their order."""
    if isinstance(tree, Mapping):
        return [leaf for key in tree for leaf in leaves(tree[key])]
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]


def contents(tree: Any) -> list[bytes]:
    """Return the bytes of each array of a structure."""
    return bits(leaves(tree))


def copy_in_order(array: Array) -> Array:
    """Return a copy whose elements lie in memory in the same order, but without gaps."""
    backwards: Any = (*(slice(None, None, -1 if n < 0 else 1) for n in array.strides), ...)
    copied: Array = np.array(array, order="K", subok=False)[backwards]
    copied[...] = array
    return copied

"""State in 8 bits: blocks of a parameter's elements, in the order in which they lie in memory."""

from math import prod
from typing import Any

import numpy as np

from schuss._arrays import Array, Order, in_order, memory_order, zero_bytes
from schuss.reference._square_code import BLOCK, block_dtype, blocks_of, decode, encode

_SIGNED, _UNSIGNED = block_dtype(False), block_dtype(True)


def has_blocks(array: Any) -> bool:
    """Return whether an object is an array of blocks."""
    return isinstance(array, np.ndarray) and array.dtype in (_SIGNED, _UNSIGNED)


def new_blocks(param: Array, slot: int, dtype: np.dtype[Any]) -> Array:
    """Return blocks of zeros for the elements of a parameter."""
    blocks: Array = zero_bytes(param, slot, blocks_of(param.size) * dtype.itemsize).view(dtype)
    return blocks


def start_blocks(blocks: Array, size: int, initial: float) -> None:
    """Set that many elements, all that are in blocks of zeros, to a value."""
    nonnegative, value = blocks.dtype == _UNSIGNED, np.full(BLOCK, initial, np.float32)
    blocks[:] = encode(value, nonnegative)
    blocks[-1:] = encode(value[: (size - 1) % BLOCK + 1], nonnegative)


def values_of(state: Array, param: Array) -> Array:
    """Return a state as users see it: a view, or the values of blocks, which are read-only."""
    if not has_blocks(state):
        return state[...]
    values = decoded(state, param.shape, memory_order(param))
    values.flags.writeable = False
    return values


def decoded(blocks: Array, shape: tuple[int, ...], order: Order) -> Array:
    """Return the values of blocks of elements that lay in memory in that order."""
    axes = [~axis if axis < 0 else axis for axis in order]
    values = decode(blocks, prod(shape)).reshape([shape[axis] for axis in axes])
    back = [axes.index(axis) for axis in range(len(axes))]
    return in_order(values, [~i if order[i] < 0 else i for i in back])


def encoded(values: Array, order: Order, *, nonnegative: bool) -> Array:
    """Return blocks for values, of elements in that order, rounded to nearest."""
    return encode(in_order(values, order).reshape(-1), nonnegative)


def as_bytes(array: Array) -> Array:
    """Return blocks as rows of bytes, as files have them; another array as it is."""
    return array.view(np.uint8).reshape(len(array), array.itemsize) if has_blocks(array) else array


def of_bytes(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return what `as_bytes` was given: blocks, or the array itself."""
    blocks: Array = array if array.dtype == dtype else array.view(dtype).reshape(-1)
    return blocks


def shape_in_bytes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the bytes of the blocks of a parameter of some shape."""
    return blocks_of(prod(shape)), _SIGNED.itemsize

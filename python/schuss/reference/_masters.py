"""Masters: the bits that bfloat16 parameters lack of float32 values."""

from typing import Any

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array
from schuss.reference._random import random_bits

MASTERS: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.int16), "float24": np.dtype(np.int8)}
"""The dtype of a master, for each format of the values."""


def join(high: Array, low: Array) -> npt.NDArray[np.float32]:
    """Return the float32 values of bfloat16 parameters and their master.

    A parameter that was set to 0 between steps is 0: bits below those of a 0 are dropped.

    Parameters
    ----------
    high : array of bfloat16
        The parameters.
    low : array of int16 or int8
        The master, in the shape of `high`: all 16 bits that they lack, or the first 8 of them.

    Returns
    -------
    array of float32
        In the shape of `high`.
    """
    lower = low.astype(np.int32) << 16 - 8 * low.itemsize
    upper = np.ascontiguousarray(high).view(np.uint16).astype(np.uint32) << 16
    lower = np.where((upper << 1 == 0) & (lower < 0), np.int32(0), lower)
    return (upper + lower.view(np.uint32)).view(np.float32).reshape(high.shape)


def split(
    values: npt.NDArray[np.float32], low: np.dtype[Any], stream: int, first: int = 0
) -> tuple[Array, Array]:
    """Return values as bfloat16 parameters, rounded to nearest, and their master.

    The master is the distance from the parameter, in units of the last bit. If it has only 8 bits,
    the values are first rounded at random to 24 bits: up or down with probabilities by the
    distance. That of infinities and NaN is 0.

    Parameters
    ----------
    values : array of float32
        Of any shape.
    low : dtype
        int16 for all bits that the parameters lack, or int8 for the first 8 of them.
    stream : int
        The key of the random bits, from `random_stream`.
    first : int
        The index of the first element, in C order, among the elements of all parameters.

    Returns
    -------
    array of bfloat16, array of dtype `low`
        In the shape of `values`.

    References
    ----------
    Zamirai et al., "Revisiting bfloat16 training", 2020, for weights whose lower bits are kept.
    """
    import ml_dtypes

    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    is_finite, quiet = np.isfinite(values), np.isnan(values) * np.uint32(0x400000)
    if low.itemsize == 1:
        random = random_bits(values.size, stream, first).reshape(values.shape) >> 24
        bits = np.where(is_finite, (bits + random) & 0xFFFFFF00, bits)
    rounded = np.where(is_finite, bits + 0x8000, bits | quiet) >> 16
    lower = np.where(is_finite, bits - (rounded << 16), 0).view(np.int32)
    high: Array = rounded.astype(np.uint16).view(ml_dtypes.bfloat16)
    return high, (lower >> 16 - 8 * low.itemsize).astype(low)

"""The 8-bit code of state: blocks of elements, each with a scale and the roots of its elements."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array
from schuss._core import subnormals_are_zero
from schuss.reference._random import random_bits

BLOCK = 128
"""Elements of a block."""
FEWEST = 4096
"""Parameters with fewer elements keep state in float32, as in bitsandbytes and torchao."""

_Scales: TypeAlias = Array  # float32, one for each block
_Rows: TypeAlias = Array  # float32, a row for each block
_AT_ONCE = 1 << 13  # blocks, which bounds the memory of temporary arrays
_LARGEST = np.float32(float.fromhex("0x1.ffffd6p127"))  # scale, of which no code is infinite
_SAMPLE = 8  # elements of a block that tell most scales apart


def block_dtype(nonnegative: bool) -> np.dtype[Any]:
    """Return the dtype of a block of 128 elements: a scale and codes of one byte.

    The codes are int8, or uint8 where no element is negative.
    """
    codes = np.uint8 if nonnegative else np.int8
    return np.dtype([("scale", "<f4"), ("codes", codes, (BLOCK,))])


def blocks_of(n: int) -> int:
    """Return the number of blocks of n elements."""
    return -(-n // BLOCK)


def decode(blocks: Array, n: int) -> npt.NDArray[np.float32]:
    """Return the elements of blocks of the 8-bit code.

    An element is its code times the code's magnitude, times the scale over the square of the
    largest code.

    Parameters
    ----------
    blocks : array of shape (ceil(n / 128),)
        Structures of a ``scale`` in float32 and of 128 ``codes`` in int8 or uint8.
    n : int
        The number of elements.

    Returns
    -------
    array of float32, shape (n,)
        The elements, in the order in which those of the parameter lie in memory. All of a block are
        NaN if its scale is.

    Raises
    ------
    ValueError
        If there are fewer or more blocks than n elements need.

    References
    ----------
    Dettmers et al., "8-bit optimizers via block-wise quantization", 2022, for blocks with a scale.

    Examples
    --------
    >>> import numpy as np
    >>> from schuss.reference import decode, encode
    >>> blocks = encode(np.array([4.0, -2.0, 0.0], np.float32), nonnegative=False)
    >>> blocks["scale"], blocks["codes"][0, :3]
    (array([4.], dtype=float32), array([127, -90,   0], dtype=int8))
    >>> decode(blocks, 3).round(3)
    array([ 4.   , -2.009,  0.   ], dtype=float32)
    """
    if len(blocks) != blocks_of(n):
        raise ValueError(f"decode: got {len(blocks)} blocks, expected {blocks_of(n)} for {n=}")
    values = np.empty((len(blocks), BLOCK), np.float32)
    for part in _parts(len(blocks)):
        codes = blocks["codes"][part]
        values[part] = _decoded(codes.astype(np.float32), blocks["scale"][part], _most(codes.dtype))
    return values.reshape(-1)[:n]


def encode(
    values: npt.NDArray[np.float32],
    nonnegative: bool,
    stream: int | None = None,
    first: int = 0,
    is_second: bool = False,
) -> Array:
    """Return blocks of the 8-bit code for values.

    At random, a code is one of the two whose values are next to the element, and its value is the
    element on average. But an element above 0 of nonnegative values never becomes 0. To nearest,
    the codes of values that were decoded have the same values again.

    Parameters
    ----------
    values : array of float32, shape (n,)
        The elements, in the order in which those of the parameter lie in memory. A NaN or an
        infinity makes its whole block NaN.
    nonnegative : bool
        Whether no element is negative, so that the codes need no sign.
    stream : int, optional
        The key of the random bits, from `random_stream`. By default the codes are to nearest.
    first : int
        The index of the first element among the elements of all parameters.
    is_second : bool
        Whether the halves of the random bits are exchanged, for the second state of a rule, which
        has the stream of the first one.

    Returns
    -------
    array of shape (ceil(n / 128),)
        Structures of a ``scale`` in float32 and of 128 ``codes`` in uint8 if `nonnegative`,
        otherwise in int8. The codes of the last one that are past n are 0.

    Raises
    ------
    ValueError
        If the values are not float32, or have more than one axis.

    References
    ----------
    Li, Chen & Zhu, "Memory efficient optimizers with 4-bit states", 2023, for second moments
    without zeros; Gupta et al., "Deep learning with limited numerical precision", 2015, section 3,
    for rounding at random.

    Examples
    --------
    2 is between the values of 89 and 90, which are 1.96 and 2.01 where 4 is the largest:

    >>> import numpy as np
    >>> from schuss.reference import encode, random_stream
    >>> values = np.array([4.0, 2.0, 0.0], np.float32)
    >>> blocks = encode(values, nonnegative=False, stream=random_stream(0, 1, 0))
    >>> blocks["codes"][0, 1] in (89, 90)
    True
    """
    if values.dtype != np.float32 or values.ndim != 1:
        raise ValueError(
            f"encode: values are {values.dtype} in shape {values.shape}, expected float32 in one "
            "axis, as in values.ravel().astype(np.float32)"
        )
    blocks = np.zeros(blocks_of(values.size), block_dtype(nonnegative))
    for part in _parts(len(blocks)):
        start, count = part.start * BLOCK, (part.stop - part.start) * BLOCK
        given = values[start : start + count]
        rows: Array = np.zeros((part.stop - part.start, BLOCK), np.float32)
        with subnormals_are_zero(), np.errstate(all="ignore"):
            rows.reshape(-1)[: given.size] = given * np.float32(1)  # subnormals become zero
            random = None if stream is None else _random(rows, stream, first + start, is_second)
            blocks[part] = _encoded(rows, blocks.dtype, random)
    return blocks


def _parts(blocks: int) -> list[slice]:
    return [slice(i, min(i + _AT_ONCE, blocks)) for i in range(0, blocks, _AT_ONCE)]


def _most(codes: np.dtype[Any]) -> int:
    """Return the largest code."""
    return int(np.iinfo(codes).max)


def _square(most: int) -> np.float32:
    """Return the square of the largest code, less what the roundings of an element can add."""
    return np.float32(65024.9375 if most == 255 else 16128.984375)


def _random(rows: _Rows, stream: int, first: int, is_second: bool) -> _Rows:
    """Return numbers from -0.5 to 0.5.

    All of a block belong to the 2**32 indices to which its first index belongs.
    """
    bits: Array = random_bits(rows.size, stream, first, run=BLOCK).reshape(rows.shape)
    if is_second:
        bits = bits << 16 | bits >> 16
    return bits.view(np.int32).astype(np.float32) * np.float32(2.0**-32)


def _encoded(rows: _Rows, dtype: np.dtype[Any], random: _Rows | None) -> Array:
    blocks = np.zeros(len(rows), dtype)
    codes_dtype = blocks["codes"].dtype
    most = _most(codes_dtype)
    scale = np.abs(rows).max(axis=1)
    is_finite = np.isfinite(scale)
    rows = np.where(is_finite[:, None], rows, np.float32(0))
    scale = np.where(is_finite, scale, np.float32(0))
    if random is None:
        scale, codes = _exact(rows, scale, most)
    else:
        rows, scale = np.clip(rows, -_LARGEST, _LARGEST), np.minimum(scale, _LARGEST)
        codes = _codes(rows, scale, most, random)
    blocks["scale"] = np.where(is_finite, scale, np.float32(np.nan))
    blocks["codes"] = codes.astype(codes_dtype)
    return blocks


def _lift(scale: _Scales) -> _Scales:
    """Return the power of two that keeps the numbers of tiny blocks normal."""
    return np.where(scale < np.float32(2.0**-64), np.float32(2.0**64), np.float32(1))


def _decoded(codes: _Rows, scale: _Scales, most: int) -> _Rows:
    with subnormals_are_zero(), np.errstate(all="ignore"):
        lift = _lift(scale)
        unit = scale * lift / _square(most)
        values: _Rows = codes * np.abs(codes) * unit[:, None] * (1 / lift)[:, None]
        return values


def _codes(rows: _Rows, scale: _Scales, most: int, random: _Rows | None = None) -> _Rows:
    """Return the codes of elements: at random, or to nearest without random numbers.

    The random root is ``floor(sqrt(x - u*(1-u)) + u)``, with ``u = random + 0.5``. It is k or k+1,
    where k is that of x, and k+1 where ``x > k**2 + u*(2*k + 1)``. So the mean of its square is x.
    """
    lift = _lift(scale)
    inverse = _square(most) / np.where(scale > 0, scale * lift, np.float32(1))
    x = np.abs(rows) * lift[:, None] * inverse[:, None]
    if random is not None:
        x = np.maximum(x + (random * random - np.float32(0.25)), np.float32(0))
    root: _Rows = np.sqrt(x) if random is None else np.sqrt(x) + random
    root = np.rint(root)
    if most == np.iinfo(np.int8).max:
        return np.copysign(root, rows)
    return np.where(rows > 0, np.maximum(root, np.float32(1)), root)


def _exact(rows: _Rows, scale: _Scales, most: int) -> tuple[_Scales, _Rows]:
    """Return scales and codes to nearest, with exactly the values of the rows where there are such.

    In a decoded block, the largest element is the value of the largest code or of the next one, and
    the scale is that which gives this value, to rounding.
    """
    guesses = []
    for code in (most, most - 1):
        near = (scale.astype(np.float64) * (float(_square(most)) / code**2)).astype(np.float32)
        guesses += [near, *(np.nextafter(near, np.float32(towards)) for towards in (0, np.inf))]
    scale = np.minimum(scale, _LARGEST)
    codes = _codes(rows, scale, most)
    left = np.arange(len(rows))
    for guess in guesses:
        sample = rows[left, :_SAMPLE], guess[left]
        likely = left[_is_exact(*sample, _codes(*sample, most), most)]
        trial = rows[likely], guess[likely]
        found = _codes(*trial, most)
        is_exact = _is_exact(*trial, found, most)
        exact = likely[is_exact]
        scale[exact], codes[exact] = guess[exact], found[is_exact]
        left = np.setdiff1d(left, exact, assume_unique=True)
    return scale, codes


def _is_exact(rows: _Rows, scale: _Scales, codes: _Rows, most: int) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = (_decoded(codes, scale, most) == rows).all(axis=1)
    return same

"""Random rounding: the bits of each element from the seed, the step and its index."""

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array


def random_stream(seed: int, step: int, state: int) -> int:
    """Return the key of the random bits that round one state of the rule in one step.

    Parameters
    ----------
    seed : int
        The optimizer's seed.
    step : int
        The number of the step, t, counted from 1.
    state : int
        The index of the state among the states of the rule, from 0.

    Returns
    -------
    int
        64 bits, each of which depends on all arguments.

    References
    ----------
    Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014, figure 17, for the
    mixing of 64 bits.

    Examples
    --------
    >>> from schuss.reference import random_stream
    >>> random_stream(0, 1, 0) == random_stream(0, 1, 1)
    False
    """
    return _mix(_mix(_mix(seed) ^ step) ^ state)


def rounded_at_random(values: npt.NDArray[np.float32], stream: int, first: int = 0) -> Array:
    """Return values in bfloat16, rounded up or down with probability by the distance.

    The random bits of an element depend on its index, counted in C order from `first`.

    Parameters
    ----------
    values : array of float32
        Of any shape.
    stream : int
        The key of the random bits, from `random_stream`.
    first : int
        The index of the first element among the elements of all parameters.

    Returns
    -------
    array of bfloat16
        In the shape of `values`.

    Raises
    ------
    ImportError
        If the package ml_dtypes is not installed.

    References
    ----------
    Gupta et al., "Deep learning with limited numerical precision", 2015, section 3.

    Examples
    --------
    Values that bfloat16 can represent stay. 1.001953125 is a quarter of the way from 1 to the next
    one, 1.0078125:

    >>> import numpy as np
    >>> from schuss.reference import random_stream, rounded_at_random
    >>> values = np.array([1.0, -2.0, 1.001953125], np.float32)
    >>> rounded = rounded_at_random(values, random_stream(0, 1, 0)).astype(np.float32)
    >>> rounded[:2], rounded[2] in (1.0, 1.0078125)
    (array([ 1., -2.], dtype=float32), True)
    """
    import ml_dtypes

    random = random_bits(values.size, stream, first).reshape(values.shape) >> 16
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    rounded = np.where(np.isnan(values), bits | 0x400000, bits + random) >> 16
    return rounded.astype(np.uint16).view(ml_dtypes.bfloat16)


def random_bits(count: int, stream: int, first: int = 0, *, run: int = 1) -> npt.NDArray[np.uint32]:
    """Return 32 random bits for each index from `first` on.

    Each run of indices has the key to which its first index belongs.
    """
    offsets = np.arange(count, dtype=np.uint64)
    indices = first + offsets
    upper = indices - offsets % run >> 32
    low = indices.astype(np.uint32)
    random: npt.NDArray[np.uint32] = np.zeros(count, np.uint32)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**32
        for high in np.unique(upper):
            key = _mix(stream ^ int(high))
            x: Array = low * np.uint32(0x7FEB352D) + np.uint32(key & 0xFFFFFFFF)
            x = (x ^ (x >> 13) ^ np.uint32(key >> 32)) * np.uint32(0xD35A2D97)
            random = np.where(upper == high, x, random)
    return random


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)

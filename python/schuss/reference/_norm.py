"""The norm of the gradients, the factor that clips it, and the norms of parameters."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array, components, in_order, memory_order
from schuss._core import subnormals_are_zero
from schuss.reference._numbers import Wide, wide, widen


def grad_norm(params: Sequence[Array], grads: Sequence[Array], *, scale: float = 1.0) -> float:
    """Return the norm of all gradients together, as `clip_norm` uses it.

    The squares are added in double precision, in a fixed order. The elements of all gradients are
    taken in the order in which the parameters' elements lie in memory, the real and imaginary parts
    of complex numbers one after the other, and cut into blocks of 4,096. Each block has 16 sums:
    sum i adds every sixteenth element, from element i on. The 16 sums are added by halves, and the
    sums of the blocks by pairs of neighbours. If the total leaves the range of double although all
    gradients are finite, the elements are first multiplied by a power of two.

    Parameters
    ----------
    params, grads : sequence of arrays
        The parameters, whose memory order counts, and gradients of the same shapes.
    scale : float
        The gradients are multiplied by this.

    Returns
    -------
    float
        The norm: 0 without elements, infinite if it is too large for a float.

    Raises
    ------
    ValueError
        If the numbers of gradients and of parameters differ.

    References
    ----------
    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from schuss.reference import grad_norm
    >>> grad_norm([np.zeros(2), np.zeros(1)], [np.array([2.0, 3.0]), np.array([6.0])], scale=2.0)
    14.0
    """
    return abs((wide(scale) * wide_norm(params, grads)).value())


def wide_norm(params: Sequence[Array], grads: Sequence[Array]) -> Wide:
    """Return the norm of the gradients, which may be too large or too small for a float."""
    values = [
        in_memory_order(widen(components(grad)), components(param)).ravel()
        for param, grad in zip(params, grads, strict=True)
    ]
    with subnormals_are_zero(), np.errstate(all="ignore"):
        elements = np.concatenate([np.empty(0), *(each.astype(np.float64) for each in values)])
    total = _sum_of_squares(elements)
    power = 0
    if not 2.0**-900 <= total < math.inf and np.isfinite(elements).all():
        power = 600 if total < 1 else -600
        with subnormals_are_zero(), np.errstate(all="ignore"):
            elements = elements * 2.0**power
        total = _sum_of_squares(elements)
    return wide(math.sqrt(total), -power)


def _sum_of_squares(elements: npt.NDArray[np.float64]) -> float:
    with subnormals_are_zero(), np.errstate(all="ignore"):
        blocks = -(-len(elements) // 4096)
        padded = np.zeros(blocks * 4096)
        padded[: len(elements)] = elements
        block_sums = sums_of_squares(padded.reshape(blocks, 4096))
        while len(block_sums) > 1:
            odd = block_sums[len(block_sums) // 2 * 2 :]
            block_sums = np.concatenate([block_sums[:-1:2] + block_sums[1::2], odd])
    return float(block_sums[0]) if len(block_sums) else 0.0


def sums_of_squares(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sum of the squares of each row, from 16 sums that every sixteenth is added to."""
    count, width = rows.shape
    sixteens = -(-width // 16)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        padded = np.zeros((count, sixteens * 16))
        padded[:, :width] = rows
        sums = np.zeros((count, 16))
        for sixteen in padded.reshape(count, sixteens, 16).swapaxes(0, 1):
            sums = sums + sixteen * sixteen
        while sums.shape[1] > 1:
            half = sums.shape[1] // 2
            sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def update_norms(before: Sequence[Array], after: Sequence[Array | None]) -> tuple[float, float]:
    """Return the norms of the update and of the parameters, as `track_norms` has them.

    The numbers and their differences are taken in double precision; real and imaginary parts are
    numbers of their own. Each square is rounded to double precision, with an exponent of any size.
    The squares are added exactly, and all but the leading bits of the sum, 53 or more, are dropped
    before the root is taken. So the norms do not depend on the order of the elements.

    Parameters
    ----------
    before, after : sequence of arrays
        All parameters before a step and after it, each pair with one shape. None for a parameter
        that the step did not move.

    Returns
    -------
    float, float
        The norm of ``after - before`` for the parameters that moved, and the norm of `before` for
        all. Each is 0 without elements, and NaN with a NaN.

    Raises
    ------
    ValueError
        If the numbers or the shapes of the arrays differ.

    References
    ----------
    Neal, "Fast exact summation using small and large superaccumulators", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from schuss.reference import update_norms
    >>> update_norms([np.array([3.0, 4.0])], [np.array([3.0, 2.0])])
    (2.0, 5.0)
    """
    with subnormals_are_zero(), np.errstate(all="ignore"):
        old = [_in_double(array) for array in before]
        new = [None if array is None else _in_double(array) for array in after]
        changes = [b - a for a, b in zip(old, new, strict=True) if b is not None]
    return _exact_norm(changes), _exact_norm(old)


def _in_double(array: Array) -> npt.NDArray[np.float64]:
    return widen(components(array)).astype(np.float64)


def _exact_norm(arrays: Sequence[npt.NDArray[np.float64]]) -> float:
    """Return the norm of all elements; subnormals count as zero."""
    elements = np.concatenate([np.empty(0), *(array.ravel() for array in arrays)])
    elements = elements[~(np.abs(elements) < np.finfo(np.float64).tiny)]
    if not np.isfinite(elements).all():
        return float(np.abs(elements).max())  # NaN if there is one
    digits, exponents = np.frexp(elements)
    squares = (digits * digits * 2.0**54).astype(np.int64)  # integers
    total = last = 0  # in units of 4**(last - 54 / 2)
    for exponent in map(int, np.unique(exponents)):
        total = (total >> 2 * (exponent - last)) if total else 0
        total, last = total + sum(squares[exponents == exponent].tolist()), exponent
    while total >= 2**64:
        total, last = total >> 2, last + 1
    return wide(math.sqrt(total), last - 27).value()


def in_memory_order(array: Array, param: Array) -> Array:
    """Return a view of the array whose C order is the order of the parameter's elements in memory.

    The array has the parameter's shape.
    """
    return in_order(array, memory_order(param))


def clip_factor(norm: float, clip_norm: float) -> float:
    """Return the factor that clips gradients of this norm.

    Parameters
    ----------
    norm : float
        The norm of the gradients, at least 0.
    clip_norm : float
        The largest norm allowed, at least 0.

    Returns
    -------
    float
        ``clip_norm / (norm + 1e-6)``, at most 1.

    References
    ----------
    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1; the 1e-6 is PyTorch's.

    Examples
    --------
    >>> from schuss.reference import clip_factor
    >>> round(clip_factor(5.0, 1.0), 6), clip_factor(0.5, 1.0)
    (0.2, 1.0)
    """
    return wide_clip_factor(wide(norm), clip_norm).value()


def wide_clip_factor(norm: Wide, clip_norm: float) -> Wide:
    """Return the factor for a norm that may be too large or too small for a float."""
    denominator = norm.value() + 1e-6
    overflows = math.isinf(denominator) and math.isfinite(norm.digits)
    factor = wide(clip_norm) / (norm if overflows else wide(denominator))
    return wide(1.0) if factor.value() >= 1 else factor

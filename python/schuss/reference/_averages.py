"""Exponential averages: of arrays, and of series along an axis."""

import math

import numpy as np
import numpy.typing as npt

from schuss._arrays import components
from schuss._core import subnormals_are_zero
from schuss.reference._numbers import Float, cast


def average(average: npt.NDArray[Float], values: npt.NDArray[Float], *, beta: float) -> None:
    """Update an average of arrays with new values; see `schuss.ExponentialAverage`."""
    v, x = components(average), components(values)
    # beta and 1-beta, rounded separately, do not add up to 1. An average over many values is
    # therefore v + gain*(x - v), with two products, since x - v may overflow.
    gain = 1 - float(beta)
    keep, gain, loss = cast(v, *((1.0, gain, gain) if gain < 0.5 else (beta, gain, 0.0)))
    with subnormals_are_zero(), np.errstate(all="ignore"):
        v[...] = keep * v + (gain * x - loss * v)


def ewma(
    values: npt.NDArray[Float], beta: float, *, bias_correction: bool = True, axis: int = -1
) -> npt.NDArray[Float]:
    """Average series along an axis; see `schuss.ewma`."""
    x = np.moveaxis(values, axis, 0)
    out = np.empty_like(values)
    averages = components(np.moveaxis(out, axis, 0))
    x = components(x)
    v = np.zeros(x.shape[1:], x.dtype)
    (gain,) = cast(v, 1 - float(beta))
    for t in range(1, len(x) + 1):
        average(v, x[t - 1], beta=beta)
        (weight,) = cast(v, weight_of(float(gain), t) if bias_correction else 1.0)
        with subnormals_are_zero(), np.errstate(all="ignore"):
            averages[t - 1] = v / weight
    return out


def weight_of(gain: float, t: int) -> float:
    """Return the sum of the weights of t values, ``1 - (1-gain)**t``, exact for a small gain too.

    The values since the last multiple of 1,024 and those before are computed separately, so that a
    kernel needs few exponentials for many t.
    """
    later = (t - 1) % 1024 + 1
    weight = _one_minus_power(gain, later)
    return weight + (1 - weight) * _one_minus_power(gain, t - later)


def _one_minus_power(gain: float, t: int) -> float:
    return -math.expm1(t * math.log1p(-gain)) if gain < 1 else float(t > 0)

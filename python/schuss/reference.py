"""The NumPy twin: the same functions as `schuss.kernels`, written as formulas.

So are `average` and `ewma`, the twins of `schuss.ExponentialAverage` and `schuss.ewma`. These are
what the kernels are, bit for bit: each operation on arrays rounds on its own, in the order written
here. What depends on hyperparameters alone is computed in double precision and rounded once to the
arrays' dtype. Subnormal numbers count as zero, as they do in the kernels. The one freedom is what
IEEE 754 leaves open: a NaN's sign and payload.

They are slow, allocate, and do not check their arrays: for reading, and for testing.
"""

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from schuss._core import subnormals_are_zero

__all__ = ["adam", "average", "ewma", "momentum", "rmsprop", "sgd"]

_Float = TypeVar("_Float", np.float32, np.float64)


def sgd(
    param: npt.NDArray[_Float],
    grad: npt.NDArray[_Float],
    *,
    lr: float,
    weight_decay: float = 0.0,
) -> None:
    """Take one step of gradient descent; see `schuss.kernels.sgd`."""
    p, g = param, grad
    lr, weight_decay = _floats(lr, weight_decay)
    decays = weight_decay != 0
    lr, weight_decay = _cast(p, lr, weight_decay)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        p[...] = p - lr * g


def momentum(
    param: npt.NDArray[_Float],
    grad: npt.NDArray[_Float],
    velocity: npt.NDArray[_Float],
    *,
    lr: float,
    beta: float = 0.9,
    dampening: float | None = None,
    nesterov: bool = False,
    step: int | None = None,
    weight_decay: float = 0.0,
) -> None:
    """Take one step of momentum; see `schuss.kernels.momentum`."""
    p, g, v = param, grad, velocity
    lr, beta, weight_decay = _floats(lr, beta, weight_decay)
    gain = 1 - (beta if dampening is None else float(dampening))
    rate = lr * (1 if step is None else 1 / (1 - beta ** int(step)))
    decays = weight_decay != 0
    beta, gain, rate, weight_decay = _cast(p, beta, gain, rate, weight_decay)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        v[...] = beta * v + gain * g
        d = gain * g + beta * v if nesterov else v
        p[...] = p - rate * d


def rmsprop(
    param: npt.NDArray[_Float],
    grad: npt.NDArray[_Float],
    square_average: npt.NDArray[_Float],
    *,
    lr: float,
    beta: float = 0.9,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mean: npt.NDArray[_Float] | None = None,
    buffer: npt.NDArray[_Float] | None = None,
    momentum: float = 0.0,
) -> None:
    """Take one step of RMSprop; see `schuss.kernels.rmsprop`."""
    p, g, s, a, b = param, grad, square_average, mean, buffer
    beta, weight_decay = _floats(beta, weight_decay)
    decays = weight_decay != 0
    rest, beta, lr, eps, eps_root = _cast(p, 1 - beta, beta, lr, eps, eps_root)
    weight_decay, momentum = _cast(p, weight_decay, momentum)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        s[...] = beta * s + rest * (g * g)
        variance: npt.NDArray[_Float] = s
        if a is not None:
            a[...] = beta * a + rest * g
            variance = np.maximum(s - a * a, 0)
        if b is not None:
            b[...] = momentum * b + g / (np.sqrt(variance + eps_root) + eps)
            p[...] = p - lr * b
        else:
            p[...] = p - lr * g / (np.sqrt(variance + eps_root) + eps)


def adam(
    param: npt.NDArray[_Float],
    grad: npt.NDArray[_Float],
    m: npt.NDArray[_Float],
    v: npt.NDArray[_Float],
    *,
    step: int | None,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    v_max: npt.NDArray[_Float] | None = None,
) -> None:
    """Take one step of Adam; see `schuss.kernels.adam`."""
    p, g = param, grad
    lr, beta1, beta2, weight_decay = _floats(lr, beta1, beta2, weight_decay)
    rate = lr if step is None else lr / (1 - beta1 ** int(step))
    correction = 1 if step is None else 1 / (1 - beta2 ** int(step))
    decays = weight_decay != 0
    weight_decay, keep = _cast(p, weight_decay, 1 - lr * weight_decay)
    rest1, beta1, rest2, beta2 = _cast(p, 1 - beta1, beta1, 1 - beta2, beta2)
    rate, correction, eps, eps_root = _cast(p, rate, correction, eps, eps_root)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decoupled:
            p[...] = p * keep
        elif decays:
            g = g + weight_decay * p
        m[...] = beta1 * m + rest1 * g
        v[...] = beta2 * v + rest2 * (g * g)
        v_hat = v
        if v_max is not None:
            # numpy.maximum, but for the sign of zero, which that leaves to chance.
            v_max[...] = np.where((v_max >= v) | np.isnan(v_max), v_max, v)
            v_hat = v_max
        p[...] = p - rate * m / (np.sqrt(v_hat * correction + eps_root) + eps)


def average(average: npt.NDArray[_Float], values: npt.NDArray[_Float], *, beta: float) -> None:
    """Take values into an average of arrays; see `schuss.ExponentialAverage`."""
    v, x = average, values
    beta, gain = _cast(v, beta, 1 - float(beta))
    with subnormals_are_zero(), np.errstate(all="ignore"):
        v[...] = beta * v + gain * x


def ewma(
    values: npt.NDArray[_Float], beta: float, *, bias_correction: bool = True, axis: int = -1
) -> npt.NDArray[_Float]:
    """Average series along an axis; see `schuss.ewma`."""
    x = np.moveaxis(values, axis, 0)
    out = np.empty_like(values)
    averages = np.moveaxis(out, axis, 0)
    v = np.zeros(x.shape[1:], x.dtype)
    for t in range(1, len(x) + 1):
        average(v, x[t - 1], beta=beta)
        (weight,) = _cast(v, weight_of(beta, t) if bias_correction else 1.0)
        with subnormals_are_zero(), np.errstate(all="ignore"):
            averages[t - 1] = v / weight
    return out


def weight_of(beta: float, t: int) -> float:
    """Return the sum of the weights of t values, ``1 - beta**t``, exact for beta close to 1 too.

    Of the values since the last multiple of 1,024, and of those before: a kernel can make many of
    these with few exponentials.
    """
    later = (t - 1) % 1024 + 1
    weight = _one_minus_power(beta, later)
    return weight + (1 - weight) * _one_minus_power(beta, t - later)


def _one_minus_power(beta: float, t: int) -> float:
    return -math.expm1(t * math.log(beta)) if beta > 0 else float(t > 0)


def _floats(*values: float) -> list[float]:
    # A NumPy scalar would compute with its own precision.
    return [float(value) for value in values]


def _cast(param: npt.NDArray[_Float], *values: float) -> Any:
    # Outside the subnormal mode, which would take some of them for zero.
    with np.errstate(all="ignore"):
        return [param.dtype.type(float(value)) for value in values]

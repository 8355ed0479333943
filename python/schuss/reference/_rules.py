"""The update rules: a function each."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from schuss._core import subnormals_are_zero
from schuss._hyperparameters import Bounds
from schuss.reference._norm import sums_of_squares
from schuss.reference._numbers import (
    Float,
    cast,
    floats,
    magnitude,
    rate_of,
    scale_and_clip,
    square,
)
from schuss.reference._widened import widened

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "lion",
    "momentum",
    "nadam",
    "radam",
    "rmsprop",
    "rowwise_adagrad",
    "sgd",
]


@widened
def sgd(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    *,
    lr: float,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of gradient descent; see `schuss.kernels.sgd`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    lr, weight_decay = floats(lr, weight_decay)
    decays = weight_decay != 0
    (weight_decay,) = cast(p, weight_decay)
    rate, fine = rate_of(p, lr)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        p[...] = p - rate * g * fine


@widened
def momentum(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    velocity: npt.NDArray[Float],
    *,
    lr: float,
    beta: float = 0.9,
    dampening: float | None = None,
    nesterov: bool = False,
    lr_in_velocity: bool = False,
    step: int | None = None,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of momentum; see `schuss.kernels.momentum`."""
    p, v = param, velocity
    g = scale_and_clip(param, grad, scale, clip_value)
    lr, beta, weight_decay = floats(lr, beta, weight_decay)
    gain = 1 - (beta if dampening is None else float(dampening))
    correction = 1 if step is None else 1 / (1 - beta ** int(step))
    gain, rate = (gain * lr, correction) if lr_in_velocity else (gain, lr * correction)
    decays = weight_decay != 0
    beta, weight_decay = cast(p, beta, weight_decay)
    (rate, fine), (gain, fine_gain) = rate_of(p, rate), rate_of(p, gain)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        term = gain * g * fine_gain
        v[...] = beta * v + term
        d = term + beta * v if nesterov else v
        p[...] = p - rate * d * fine


@widened
def rmsprop(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    square_average: npt.NDArray[Float],
    *,
    lr: float,
    beta: float = 0.9,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mean: npt.NDArray[Float] | None = None,
    buffer: npt.NDArray[Float] | None = None,
    momentum: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of RMSprop; see `schuss.kernels.rmsprop`."""
    p, s, a, b = param, square_average, mean, buffer
    g = scale_and_clip(param, grad, scale, clip_value)
    beta, weight_decay = floats(beta, weight_decay)
    decays = weight_decay != 0
    rest, beta, eps, eps_root = cast(p, 1 - beta, beta, eps, eps_root)
    rate, fine = rate_of(p, float(lr))
    weight_decay, momentum = cast(p, weight_decay, momentum)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        s[...] = beta * s + rest * square(g, s)
        variance: npt.NDArray[Float] = s
        if a is not None:
            a[...] = beta * a + rest * g
            variance = np.maximum(s - square(a, s), 0)
        if b is not None:
            b[...] = momentum * b + g / (np.sqrt(variance + eps_root) + eps)
            p[...] = p - rate * b * fine
        else:
            p[...] = p - rate * g / (np.sqrt(variance + eps_root) + eps) * fine


@widened
def adam(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    m: npt.NDArray[Float],
    v: npt.NDArray[Float],
    *,
    step: int | None,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    eps_hat: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    v_max: npt.NDArray[Float] | None = None,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Adam; see `schuss.kernels.adam`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    lr, beta1, beta2, weight_decay = floats(lr, beta1, beta2, weight_decay)
    bias1, bias2 = (1 if step is None else 1 - beta ** int(step) for beta in (beta1, beta2))
    rate, correction = lr / bias1, 1 / bias2
    eps = float(eps) + float(eps_hat) / math.sqrt(bias2)
    decays = weight_decay != 0
    weight_decay, keep = cast(p, weight_decay, 1 - lr * weight_decay)
    rest1, beta1, rest2, beta2 = cast(p, 1 - beta1, beta1, 1 - beta2, beta2)
    correction, eps, eps_root = cast(p, correction, eps, eps_root)
    rate, fine = rate_of(p, rate)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decoupled:
            p[...] = p * keep
        elif decays:
            g = g + weight_decay * p
        m[...] = beta1 * m + rest1 * g
        v[...] = beta2 * v + rest2 * square(g, v)
        v_hat = v
        if v_max is not None:
            v_max[...] = maximum(v_max, v)
            v_hat = v_max
        p[...] = p - rate * m / (np.sqrt(v_hat * correction + eps_root) + eps) * fine


@widened
def adagrad(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    square_sum: npt.NDArray[Float],
    *,
    step: int,
    lr: float = 0.01,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Adagrad; see `schuss.kernels.adagrad`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    s = square_sum
    lr, lr_decay, weight_decay = floats(lr, lr_decay, weight_decay)
    decays = weight_decay != 0
    (weight_decay,) = cast(p, weight_decay)
    rate, fine = rate_of(p, lr / (1 + (int(step) - 1) * lr_decay))
    (eps,) = cast(p, eps)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        s[...] = s + square(g, s)
        p[...] = p - rate * g / (np.sqrt(s) + eps) * fine


@widened
def rowwise_adagrad(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    square_sum: npt.NDArray[Float],
    *,
    step: int,
    lr: float = 0.01,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of row-wise Adagrad; see `schuss.kernels.rowwise_adagrad`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    s = square_sum
    lr, lr_decay, weight_decay = floats(lr, lr_decay, weight_decay)
    decays = weight_decay != 0
    (weight_decay,) = cast(p, weight_decay)
    rate, fine = rate_of(p, lr / (1 + (int(step) - 1) * lr_decay))
    (eps,) = cast(p, eps)
    row = max(p.size // max(s.size, 1), 1)  # the elements of a row
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        if p.size > 0:
            squares = sums_of_squares(g.reshape(s.size, row).astype(np.float64))
            s[...] = s + (squares / row).astype(p.dtype).reshape(s.shape)
        root = np.reshape(np.sqrt(s) + eps, s.shape + (1,) * (p.ndim - s.ndim))
        p[...] = p - rate * g / root * fine


@widened
def adadelta(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    square_average: npt.NDArray[Float],
    delta_average: npt.NDArray[Float],
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Adadelta; see `schuss.kernels.adadelta`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    s, d = square_average, delta_average
    rho, weight_decay = floats(rho, weight_decay)
    decays = weight_decay != 0
    (weight_decay,) = cast(p, weight_decay)
    rest, rho, eps = cast(p, 1 - rho, rho, eps)
    rate, fine = rate_of(p, float(lr))
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        s[...] = rho * s + rest * square(g, s)
        delta = np.sqrt((d + eps) / (s + eps)) * g
        d[...] = rho * d + rest * square(delta, d)
        p[...] = p - rate * delta * fine


@widened
def adamax(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    m: npt.NDArray[Float],
    u: npt.NDArray[Float],
    *,
    step: int,
    lr: float = 0.002,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Adamax; see `schuss.kernels.adamax`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    lr, beta1, weight_decay = floats(lr, beta1, weight_decay)
    decays = weight_decay != 0
    (weight_decay,) = cast(p, weight_decay)
    rate, fine = rate_of(p, lr / (1 - beta1 ** int(step)))
    rest, beta1, beta2, eps = cast(p, 1 - beta1, beta1, beta2, eps)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        m[...] = beta1 * m + rest * g
        u[...] = maximum(beta2 * u, magnitude(g, u) + eps)
        p[...] = p - rate * m / u * fine


@widened
def nadam(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    m: npt.NDArray[Float],
    v: npt.NDArray[Float],
    *,
    step: int,
    lr: float = 0.002,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_hat: float = 0.0,
    momentum_decay: float = 0.004,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of NAdam; see `schuss.kernels.nadam`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    lr, beta1, beta2, weight_decay = floats(lr, beta1, beta2, weight_decay)
    bias2 = 1 - beta2 ** int(step)
    eps = float(eps) + float(eps_hat) / math.sqrt(bias2)
    gain, gain_m = _nadam_weights(beta1, float(momentum_decay), int(step))
    decays = weight_decay != 0
    weight_decay, keep = cast(p, weight_decay, 1 - lr * weight_decay)
    rest1, beta1, rest2, beta2 = cast(p, 1 - beta1, beta1, 1 - beta2, beta2)
    gain, gain_m, correction, eps = cast(p, gain, gain_m, 1 / bias2, eps)
    rate, fine = rate_of(p, lr)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decoupled:
            p[...] = p * keep
        elif decays:
            g = g + weight_decay * p
        m[...] = beta1 * m + rest1 * g
        v[...] = beta2 * v + rest2 * square(g, v)
        p[...] = p - rate * (gain * g + gain_m * m) / (np.sqrt(v * correction) + eps) * fine


def _nadam_weights(beta1: float, decay: float, t: int) -> tuple[float, float]:
    """Return the weights of the gradient and of `m` in step t.

    The product of the momenta is not formed to its end where 1 minus it rounds to 1, or where all
    later ones are `beta1`.
    """
    negligible = 2**-54

    def momentum(t: int) -> float:
        weight: float = beta1 * (1 - 0.5 * 0.96 ** (t * decay))
        return weight

    product, i = 1.0 if beta1**t >= negligible else 0.0, 1
    while i <= t and product >= negligible:
        mu = momentum(i)
        if mu == beta1:
            product *= mu ** (t - i + 1)
            break
        product, i = product * mu, i + 1
    later = momentum(t + 1)
    return (1 - momentum(t)) / (1 - product), later / (1 - product * later)


@widened
def radam(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    m: npt.NDArray[Float],
    v: npt.NDArray[Float],
    *,
    step: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of RAdam; see `schuss.kernels.radam`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    t = int(step)
    lr, beta1, beta2, weight_decay = floats(lr, beta1, beta2, weight_decay)
    bias1, bias2 = 1 - beta1**t, 1 - beta2**t
    most = 2 / (1 - beta2) - 1
    length = most - 2 * t * beta2**t / bias2
    rate, adapts = lr / bias1, length > 5
    if adapts:
        ratio = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
        rate *= math.sqrt(ratio) * math.sqrt(bias2)
    decays = weight_decay != 0
    weight_decay, keep = cast(p, weight_decay, 1 - lr * weight_decay)
    rest1, beta1, rest2, beta2 = cast(p, 1 - beta1, beta1, 1 - beta2, beta2)
    (eps,) = cast(p, eps)
    rate, fine = rate_of(p, rate)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decoupled:
            p[...] = p * keep
        elif decays:
            g = g + weight_decay * p
        m[...] = beta1 * m + rest1 * g
        v[...] = beta2 * v + rest2 * square(g, v)
        p[...] = p - (rate * m / (np.sqrt(v) + eps) if adapts else rate * m) * fine


@widened
def lion(
    param: npt.NDArray[Float],
    grad: npt.NDArray[Float],
    m: npt.NDArray[Float],
    *,
    lr: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Take one step of Lion; see `schuss.kernels.lion`."""
    p = param
    g = scale_and_clip(param, grad, scale, clip_value)
    lr, beta1, beta2, weight_decay = floats(lr, beta1, beta2, weight_decay)
    (keep,) = cast(p, 1 - lr * weight_decay)
    rest1, beta1, rest2, beta2 = cast(p, 1 - beta1, beta1, 1 - beta2, beta2)
    rate, fine = rate_of(p, lr)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        p[...] = p * keep
        c = beta1 * m + rest1 * g
        direction = np.where(c > 0, 1, np.where(c < 0, -1, c)).astype(p.dtype)  # NaN stays NaN
        p[...] = p - rate * direction * fine
        m[...] = beta2 * m + rest2 * g


def maximum(x: npt.NDArray[Float], y: Any) -> npt.NDArray[Float]:
    """Return numpy.maximum, which however does not define the sign of zero."""
    return np.where((x >= y) | np.isnan(x), x, y)

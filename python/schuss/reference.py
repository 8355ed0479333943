"""The NumPy twin: the same functions as `schuss.kernels`, written as formulas.

So are `average` and `ewma`, the twins of `schuss.ExponentialAverage` and `schuss.ewma`, and `step`,
that of an optimizer's step with all its options. These are what the kernels are, bit for bit: each
operation on arrays rounds on its own, in the order written here. What depends on hyperparameters
alone is computed in double precision and rounded once to the arrays' dtype. Subnormal numbers count
as zero, as they do in the kernels; but products of factors, and rates, have any exponent. Momentum,
RMSprop and Adam weigh by beta and 1-beta, each of them rounded, as in their papers and in PyTorch;
averages of parameters and of series, whose weights must add up to 1, do not. The one freedom is
what IEEE 754 leaves open: a NaN's sign and payload.

They are slow, allocate, and do not check their arrays: for reading, and for testing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array, computed_dtype
from schuss._core import subnormals_are_zero

__all__ = [
    "adam",
    "average",
    "clip_factor",
    "ewma",
    "grad_norm",
    "momentum",
    "random_stream",
    "rmsprop",
    "rounded_at_random",
    "sgd",
    "step",
]

_Float = TypeVar("_Float", np.float32, np.float64)
_Rule = TypeVar("_Rule", bound=Callable[..., None])


def _in_float32(rule: _Rule) -> _Rule:
    """Let the rule compute in float32 with a parameter and a gradient of float16 or bfloat16."""

    @wraps(rule)
    def step(param: Array, grad: Array, *states: Array, **options: Any) -> None:
        values = _computed(param)
        rule(values, _computed(grad), *states, **options)
        _round_to(param, values)

    return step  # type: ignore[return-value]  # with the same arguments


@_in_float32
def sgd(
    param: npt.NDArray[_Float],
    grad: npt.NDArray[_Float],
    *,
    lr: float,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    clip_value: float | None = None,
) -> None:
    """Take one step of gradient descent; see `schuss.kernels.sgd`."""
    p = param
    g = _treated(param, grad, scale, clip_value)
    lr, weight_decay = _floats(lr, weight_decay)
    decays = weight_decay != 0
    (weight_decay,) = _cast(p, weight_decay)
    rate, fine = _rate(p, lr)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        p[...] = p - rate * g * fine


@_in_float32
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
    scale: float = 1.0,
    clip_value: float | None = None,
) -> None:
    """Take one step of momentum; see `schuss.kernels.momentum`."""
    p, v = param, velocity
    g = _treated(param, grad, scale, clip_value)
    lr, beta, weight_decay = _floats(lr, beta, weight_decay)
    gain = 1 - (beta if dampening is None else float(dampening))
    rate = lr * (1 if step is None else 1 / (1 - beta ** int(step)))
    decays = weight_decay != 0
    beta, gain, weight_decay = _cast(p, beta, gain, weight_decay)
    rate, fine = _rate(p, rate)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        v[...] = beta * v + gain * g
        d = gain * g + beta * v if nesterov else v
        p[...] = p - rate * d * fine


@_in_float32
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
    scale: float = 1.0,
    clip_value: float | None = None,
) -> None:
    """Take one step of RMSprop; see `schuss.kernels.rmsprop`."""
    p, s, a, b = param, square_average, mean, buffer
    g = _treated(param, grad, scale, clip_value)
    beta, weight_decay = _floats(beta, weight_decay)
    decays = weight_decay != 0
    rest, beta, eps, eps_root = _cast(p, 1 - beta, beta, eps, eps_root)
    rate, fine = _rate(p, float(lr))
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
            p[...] = p - rate * b * fine
        else:
            p[...] = p - rate * g / (np.sqrt(variance + eps_root) + eps) * fine


@_in_float32
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
    scale: float = 1.0,
    clip_value: float | None = None,
) -> None:
    """Take one step of Adam; see `schuss.kernels.adam`."""
    p = param
    g = _treated(param, grad, scale, clip_value)
    lr, beta1, beta2, weight_decay = _floats(lr, beta1, beta2, weight_decay)
    rate = lr if step is None else lr / (1 - beta1 ** int(step))
    correction = 1 if step is None else 1 / (1 - beta2 ** int(step))
    decays = weight_decay != 0
    weight_decay, keep = _cast(p, weight_decay, 1 - lr * weight_decay)
    rest1, beta1, rest2, beta2 = _cast(p, 1 - beta1, beta1, 1 - beta2, beta2)
    correction, eps, eps_root = _cast(p, correction, eps, eps_root)
    rate, fine = _rate(p, rate)
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
        p[...] = p - rate * m / (np.sqrt(v_hat * correction + eps_root) + eps) * fine


def step(
    rules: Sequence[Callable[..., None]],
    params: Sequence[Array],
    grads: Sequence[Array],
    states: Sequence[Sequence[Array]],
    *,
    step: int,
    scale: float = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    nonfinite: str = "propagate",
    clear_grads: bool = False,
    averages: Sequence[Array] | None = None,
    beta: float = 0.0,
    copies: Sequence[Array] | None = None,
    seed: int = 0,
) -> tuple[float, bool, bool]:
    """Take a whole step, as an optimizer of `schuss.optimizers` does with these options.

    Parameters
    ----------
    rules : sequence of callables
        For each parameter one of the functions above, with its hyperparameters.
    params, grads : sequence of arrays
        Of the shapes of the parameters, in float32, float64, float16 or bfloat16.
    states : sequence of sequences of arrays
        For each parameter those of its rule, in its shape.
    step : int
        t, from 1.
    scale, clip_norm, clip_value, nonfinite, clear_grads, seed
        As an optimizer has them.
    averages, copies : sequence of arrays, optional
        In the shapes of the parameters.
    beta : float
        The weight of the past in the averages, 0 in the first step unless they begin with zero.

    Returns
    -------
    float, bool, bool
        The norm of the gradients, whether they were clipped, and whether the step was skipped.

    Raises
    ------
    FloatingPointError
        If a gradient has a NaN or an infinity, and `nonfinite` is "raise".

    References
    ----------
    Those of `schuss.optimizers.Optimizer`.

    Examples
    --------
    >>> from functools import partial
    >>> import numpy as np
    >>> w, grad = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    >>> step([partial(sgd, lr=0.5)], [w], [grad], [[]], step=1)
    (5.0, False, False)
    >>> w
    array([-0.5,  0. ])
    """
    norm = _wide(scale) * _norm(params, grads)
    norm = _Wide(abs(norm.digits), norm.exponent)
    bad = [i for i, grad in enumerate(grads) if not np.isfinite(_computed(grad)).all()]
    if bad and nonfinite == "raise":
        raise FloatingPointError(f"grads[{bad[0]}] has a NaN or an infinity")
    skipped = bool(bad) and nonfinite == "skip"
    factor = _wide(1.0) if clip_norm is None else _clip_factor(norm, clip_norm)
    first = 0  # elements before the parameter
    for i, (rule, p) in enumerate(zip(rules, params, strict=True)):
        if not skipped:
            param, grad = _computed(p), _computed(grads[i])
            own = [_computed(state) for state in states[i]]
            scaled = _scaled(param, grad, _wide(scale) * factor)
            rule(param, scaled, *own, clip_value=clip_value)
            _round_to(p, param)
            for number, (state, values) in enumerate(zip(states[i], own, strict=True)):
                if state.dtype == values.dtype:
                    _round_to(state, values)
                    continue
                stream = random_stream(seed, step, number)
                in_memory_order(state, p)[...] = rounded_at_random(
                    in_memory_order(values, p), stream, first
                )
            if averages is not None and beta == 0:
                averages[i][...] = _computed(p)
            elif averages is not None:
                average(averages[i], _computed(p), beta=beta)
            if copies is not None:
                _round_to(copies[i], _computed(p))
        if clear_grads:
            grads[i][...] = 0
        first += p.size
    return norm.value(), factor.value() != 1, skipped


def grad_norm(params: Sequence[Array], grads: Sequence[Array], *, scale: float = 1.0) -> float:
    """Return the norm of all gradients together, as `clip_norm` sees it.

    The squares are added up in double, in a fixed order: of 4,096 elements at a time, in the order
    in which the parameters' lie in memory and whatever array they belong to, those 16 apart; then
    halves of these 16 sums; then the sums of two blocks that follow each other, of two such pairs,
    and so on. Where the sum leaves the range of double on the way, while no gradient is infinite
    or NaN, the elements are first multiplied by a power of two.

    Parameters
    ----------
    params, grads : sequence of arrays
        The gradients, and the parameters of the same shapes, whose order in memory counts.
    scale : float
        What the gradients are multiplied by.

    Returns
    -------
    float
        The norm; 0 of no elements, infinite if no float is so large.

    Raises
    ------
    ValueError
        If there are not as many gradients as parameters.

    References
    ----------
    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> grad_norm([np.zeros(2), np.zeros(1)], [np.array([2.0, 3.0]), np.array([6.0])], scale=2.0)
    14.0
    """
    return abs((_wide(scale) * _norm(params, grads)).value())


def _norm(params: Sequence[Array], grads: Sequence[Array]) -> "_Wide":
    values = [
        in_memory_order(_computed(grad), param).ravel()
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
    return _wide(math.sqrt(total), -power)


def _sum_of_squares(elements: npt.NDArray[np.float64]) -> float:
    with subnormals_are_zero(), np.errstate(all="ignore"):
        blocks = -(-len(elements) // 4096)
        padded = np.zeros(blocks * 4096)
        padded[: len(elements)] = elements
        sums = np.zeros((blocks, 16))
        for sixteen in padded.reshape(blocks, 256, 16).swapaxes(0, 1):
            sums = sums + sixteen * sixteen
        while sums.shape[1] > 1:
            half = sums.shape[1] // 2
            sums = sums[:, :half] + sums[:, half:]
        of_blocks = sums[:, 0]
        while len(of_blocks) > 1:
            odd = of_blocks[len(of_blocks) // 2 * 2 :]
            of_blocks = np.concatenate([of_blocks[:-1:2] + of_blocks[1::2], odd])
    return float(of_blocks[0]) if len(of_blocks) else 0.0


def in_memory_order(array: Array, param: Array) -> Array:
    """Return a view in which the elements come in the order that they have in the parameter."""
    turns: Any = (*(slice(None, None, -1 if n < 0 else 1) for n in param.strides), ...)
    turned: Array = array[turns]
    axes = np.argsort([-abs(stride) for stride in param.strides], kind="stable")
    return turned.transpose(axes.astype(int))


def random_stream(seed: int, step: int, state: int) -> int:
    """Return the key of the random bits that a state of the rule is rounded with in a step.

    Parameters
    ----------
    seed : int
        That of the optimizer.
    step : int
        t, from 1.
    state : int
        The place of the state among those of the rule, from 0.

    Returns
    -------
    int
        64 bits, all of which depend on each argument.

    References
    ----------
    Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014, figure 17, for the
    mixing of 64 bits.

    Examples
    --------
    >>> random_stream(0, 1, 0) == random_stream(0, 1, 1)
    False
    """
    return _mixed(_mixed(_mixed(seed) ^ step) ^ state)


def rounded_at_random(values: npt.NDArray[np.float32], stream: int, first: int = 0) -> Array:
    """Return values in bfloat16, rounded up or down with odds by the distance.

    The bits of an element come from its place, counted in C order from `first`.

    Parameters
    ----------
    values : array of float32
        Of any shape.
    stream : int
        The key of the random bits, of `random_stream`.
    first : int
        The place of the first element among all of the optimizer.

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
    What bfloat16 can hold stays; 1.001953125 is a quarter of the way from 1 to the next, 1.0078125:

    >>> import numpy as np
    >>> values = np.array([1.0, -2.0, 1.001953125], np.float32)
    >>> rounded = rounded_at_random(values, random_stream(0, 1, 0)).astype(np.float32)
    >>> rounded[:2], rounded[2] in (1.0, 1.0078125)
    (array([ 1., -2.], dtype=float32), True)
    """
    import ml_dtypes

    places = np.arange(first, first + values.size, dtype=np.uint64).reshape(values.shape)
    low = places.astype(np.uint32)
    random: Array = np.zeros(values.shape, np.uint32)
    with np.errstate(over="ignore"):  # it is meant to
        for high in np.unique(places >> 32):
            key = _mixed(stream ^ int(high))
            x: Array = low * np.uint32(0x7FEB352D) + np.uint32(key & 0xFFFFFFFF)
            x = (x ^ (x >> 13) ^ np.uint32(key >> 32)) * np.uint32(0xD35A2D97)
            random = np.where(places >> 32 == high, x >> 16, random)
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    rounded = np.where(np.isnan(values), bits | 0x400000, bits + random) >> 16
    return rounded.astype(np.uint16).view(ml_dtypes.bfloat16)


def _mixed(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def _computed(array: Array) -> Array:
    return array.astype(computed_dtype(array), copy=False)


def _round_to(array: Array, values: Array) -> None:
    if array is not values:
        with np.errstate(all="ignore"):
            array[...] = values.astype(array.dtype)


def clip_factor(norm: float, clip_norm: float) -> float:
    """Return what gradients of this norm are multiplied by, so that it is at most `clip_norm`.

    Parameters
    ----------
    norm, clip_norm : float
        The norm, and the largest that is wanted; at least 0.

    Returns
    -------
    float
        ``clip_norm / (norm + 1e-6)``, or 1 if that is more.

    References
    ----------
    Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1; the 1e-6 is PyTorch's.

    Examples
    --------
    >>> round(clip_factor(5.0, 1.0), 6), clip_factor(0.5, 1.0)
    (0.2, 1.0)
    """
    return _clip_factor(_wide(norm), clip_norm).value()


def _clip_factor(norm: "_Wide", clip_norm: float) -> "_Wide":
    denominator = norm.value() + 1e-6
    overflows = math.isinf(denominator) and math.isfinite(norm.digits)
    factor = _wide(clip_norm) / (norm if overflows else _wide(denominator))
    return _wide(1.0) if factor.value() >= 1 else factor


def average(average: npt.NDArray[_Float], values: npt.NDArray[_Float], *, beta: float) -> None:
    """Take values into an average of arrays; see `schuss.ExponentialAverage`."""
    v, x = average, values
    # beta and 1-beta are rounded each and do not add up to 1: a long average moves by a part of the
    # distance, v + gain*(x - v), in two products, as the distance may overflow.
    gain = 1 - float(beta)
    keep, gain, loss = _cast(v, *((1.0, gain, gain) if gain < 0.5 else (beta, gain, 0.0)))
    with subnormals_are_zero(), np.errstate(all="ignore"):
        v[...] = keep * v + (gain * x - loss * v)


def ewma(
    values: npt.NDArray[_Float], beta: float, *, bias_correction: bool = True, axis: int = -1
) -> npt.NDArray[_Float]:
    """Average series along an axis; see `schuss.ewma`."""
    x = np.moveaxis(values, axis, 0)
    out = np.empty_like(values)
    averages = np.moveaxis(out, axis, 0)
    v = np.zeros(x.shape[1:], x.dtype)
    (gain,) = _cast(v, 1 - float(beta))
    for t in range(1, len(x) + 1):
        average(v, x[t - 1], beta=beta)
        (weight,) = _cast(v, weight_of(float(gain), t) if bias_correction else 1.0)
        with subnormals_are_zero(), np.errstate(all="ignore"):
            averages[t - 1] = v / weight
    return out


def weight_of(gain: float, t: int) -> float:
    """Return the sum of the weights of t values, ``1 - (1-gain)**t``, exact for a small gain too.

    Of the values since the last multiple of 1,024, and of those before: a kernel can make many of
    these with few exponentials.
    """
    later = (t - 1) % 1024 + 1
    weight = _one_minus_power(gain, later)
    return weight + (1 - weight) * _one_minus_power(gain, t - later)


def _one_minus_power(gain: float, t: int) -> float:
    return -math.expm1(t * math.log1p(-gain)) if gain < 1 else float(t > 0)


def _treated(
    p: npt.NDArray[_Float], g: npt.NDArray[_Float], scale: float, clip_value: float | None
) -> npt.NDArray[_Float]:
    (limit,) = _cast(p, math.inf if clip_value is None else clip_value)
    g = _scaled(p, g, _wide(scale))
    with subnormals_are_zero(), np.errstate(all="ignore"):
        g = np.where(g > limit, limit, g)  # numpy.clip leaves the sign of zero to chance
        return np.where(g < -limit, -limit, g)


def _scaled(p: npt.NDArray[_Float], g: npt.NDArray[_Float], scale: "_Wide") -> Any:
    power, rest = scale.factors(np.finfo(p.dtype))
    with subnormals_are_zero(), np.errstate(all="ignore"):
        return g * power * power * rest


def _rate(p: npt.NDArray[_Float], rate: float) -> Any:
    # With a factor of 1, unless it would be subnormal.
    info: np.finfo[Any] = np.finfo(p.dtype)
    (held,) = _cast(p, rate)
    if held >= info.tiny or rate == 0:
        return held, p.dtype.type(1)
    return *_cast(p, math.ldexp(rate, -int(info.minexp))), info.tiny


def _wide(value: float, power: int = 0) -> "_Wide":
    digits, exponent = math.frexp(value)
    return _Wide(digits, exponent + power if math.isfinite(digits) else 0)


@dataclass(frozen=True)
class _Wide:
    """A number with a float's digits, and any exponent: ``digits * 2**exponent``."""

    digits: float  # in [0.5, 1) by magnitude; or zero, infinite or NaN
    exponent: int

    def __mul__(self, other: "_Wide") -> "_Wide":
        return _wide(self.digits * other.digits, self.exponent + other.exponent)

    def __truediv__(self, other: "_Wide") -> "_Wide":
        return _wide(self.digits / other.digits, self.exponent - other.exponent)

    def value(self) -> float:
        try:
            return math.ldexp(self.digits, self.exponent)
        except OverflowError:
            return math.copysign(math.inf, self.digits)

    def factors(self, info: "np.finfo[Any]") -> tuple[Any, Any]:
        """Return power and rest, so that ``x * power * power * rest`` is rounded once.

        Ordinarily they are 1 and the number itself. Where the dtype takes that for zero or for
        infinite, the exponent is in the power.
        """
        with np.errstate(all="ignore"):
            whole = info.dtype.type(self.value())
        special = self.digits == 0 or not math.isfinite(self.digits)
        if special or info.tiny <= abs(whole) <= info.max:
            return info.dtype.type(1), whole
        digits, exponent = self.digits, self.exponent
        # With less or more, no product is anything but zero or infinite.
        least, most = info.minexp + 1 - info.maxexp, 2 * info.maxexp - 1
        if not least <= exponent <= most:
            digits, exponent = math.copysign(0.5, digits), min(max(exponent, least), most)
        shift = -(exponent & 1) if exponent < 0 else 2 - (exponent & 1)
        power = 2.0 ** ((exponent - shift) // 2)
        return info.dtype.type(power), info.dtype.type(math.ldexp(digits, shift))


def _floats(*values: float) -> list[float]:
    # A NumPy scalar would compute with its own precision.
    return [float(value) for value in values]


def _cast(param: npt.NDArray[_Float], *values: float) -> Any:
    # Outside the subnormal mode, which would take some of them for zero.
    with np.errstate(all="ignore"):
        return [param.dtype.type(float(value)) for value in values]

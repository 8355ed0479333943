"""The update rules: a function each, and what an optimizer needs to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array
from schuss._core import subnormals_are_zero
from schuss._hyperparameters import Bounds
from schuss.reference._numbers import (
    Float,
    cast,
    floats,
    put_between,
    rate_of,
    round_into,
    scale_and_clip,
    widen,
    widen_grad,
)

__all__ = ["adam", "momentum", "rmsprop", "sgd"]

Rule = TypeVar("Rule", bound=Callable[..., None])


def widened(rule: Rule) -> Rule:
    """Let the rule compute in float32 where the parameter is float16 or bfloat16.

    The gradient may have another dtype than the parameter.
    """

    @wraps(rule)
    def step(param: Array, grad: Array, *states: Array, **options: Any) -> None:
        values = widen(param)
        rule(values, widen_grad(grad, values), *states, **options)
        round_into(param, values)

    return step  # type: ignore[return-value]  # it has the same signature


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
    put_between(p, bounds)


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
    rate = lr * (1 if step is None else 1 / (1 - beta ** int(step)))
    decays = weight_decay != 0
    beta, gain, weight_decay = cast(p, beta, gain, weight_decay)
    rate, fine = rate_of(p, rate)
    with subnormals_are_zero(), np.errstate(all="ignore"):
        if decays:
            g = g + weight_decay * p
        v[...] = beta * v + gain * g
        d = gain * g + beta * v if nesterov else v
        p[...] = p - rate * d * fine
    put_between(p, bounds)


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
        s[...] = beta * s + rest * (g * g)
        variance: npt.NDArray[Float] = s
        if a is not None:
            a[...] = beta * a + rest * g
            variance = np.maximum(s - a * a, 0)
        if b is not None:
            b[...] = momentum * b + g / (np.sqrt(variance + eps_root) + eps)
            p[...] = p - rate * b * fine
        else:
            p[...] = p - rate * g / (np.sqrt(variance + eps_root) + eps) * fine
    put_between(p, bounds)


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
    rate = lr if step is None else lr / (1 - beta1 ** int(step))
    correction = 1 if step is None else 1 / (1 - beta2 ** int(step))
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
        v[...] = beta2 * v + rest2 * (g * g)
        v_hat = v
        if v_max is not None:
            # numpy.maximum, which however does not define the sign of zero.
            v_max[...] = np.where((v_max >= v) | np.isnan(v_max), v_max, v)
            v_hat = v_max
        p[...] = p - rate * m / (np.sqrt(v_hat * correction + eps_root) + eps) * fine
    put_between(p, bounds)


@dataclass(frozen=True)
class Kind:
    """A kind of optimizer: its rule, its states, and defaults that are not the rule's."""

    rule: Callable[..., None]
    states: tuple[str, ...] = ()
    optional_states: Mapping[str, str] = field(default_factory=dict)
    """Further states, each with the hyperparameter that adds it unless it is 0 or False."""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def states_with(self, hyperparameters: Mapping[str, Any]) -> list[str]:
        """Return the names of the states that these hyperparameters need."""
        optional = (name for name, by in self.optional_states.items() if hyperparameters[by])
        return [*self.states, *optional]


KINDS = {
    "sgd": Kind(sgd),
    "momentum": Kind(momentum, ("velocity",)),
    "rmsprop": Kind(rmsprop, ("square_average",), {"mean": "centered", "buffer": "momentum"}),
    "adam": Kind(adam, ("m", "v"), {"v_max": "amsgrad"}),
    "adamw": Kind(
        partial(adam, decoupled=True), ("m", "v"), {"v_max": "amsgrad"}, {"weight_decay": 0.01}
    ),
}

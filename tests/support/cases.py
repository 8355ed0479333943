"""The rules with their options, as `schuss.kernels` and `schuss.reference` take them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from schuss import _core
from support.arrays import Array


@dataclass(frozen=True)
class Case:
    """A rule as `schuss.kernels` and `schuss.reference` both take it."""

    rule: str
    states: tuple[str, ...] = ()
    optional_states: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    counts_steps: bool = False

    @property
    def all_states(self) -> tuple[str, ...]:
        return self.states + self.optional_states

    def step(self, module: ModuleType, t: int, param: Array, grad: Array, *states: Array) -> None:
        named = dict(zip(self.all_states, states, strict=True))
        keywords = {name: named[name] for name in self.optional_states} | self.options
        if self.counts_steps:
            keywords["step"] = t
        if self.rule == "average":
            rule = getattr(module, "average", _fused_average)
        else:
            rule = getattr(module, self.rule)
            keywords = {"lr": 0.03} | keywords
        rule(param, grad, *(named[name] for name in self.states), **keywords)

    def __str__(self) -> str:
        details = [*self.optional_states, *(f"{k}={v}" for k, v in self.options.items())]
        return "-".join([self.rule, *details, *["step"] * self.counts_steps])


def _fused_average(average: Array, values: Array, *, beta: float) -> None:
    """The rule of `schuss.ExponentialAverage`, which `schuss.kernels` does not have."""
    formula = _core.Formula("average", per_step=beta)
    _core.update("average", formula, 1, 1.0, np.inf, average, values)


def _momentum(*, counts_steps: bool = False, **options: Any) -> Case:
    return Case("momentum", ("velocity",), (), options, counts_steps)


def _rmsprop(*optional: str, **options: Any) -> Case:
    return Case("rmsprop", ("square_average",), optional, options)


def _adam(*optional: str, **options: Any) -> Case:
    return Case("adam", ("m", "v"), optional, options, "step" not in options)


def _moments(rule: str, **options: Any) -> Case:
    return Case(rule, ("m", "u" if rule == "adamax" else "v"), (), options, counts_steps=True)


SECOND_MOMENTS = frozenset({"square_average", "square_sum", "delta_average", "u", "v", "v_max"})


CASES = [
    Case("sgd"),
    Case("sgd", options={"weight_decay": 0.1}),
    _momentum(),
    _momentum(dampening=0.0),
    _momentum(dampening=0.3, beta=0.5),
    _momentum(nesterov=True),
    _momentum(nesterov=True, dampening=0.0),
    _momentum(counts_steps=True),
    _momentum(counts_steps=True, nesterov=True, weight_decay=0.1),
    _momentum(counts_steps=True, nesterov=True, lr_in_velocity=True),
    _rmsprop(),
    _rmsprop(eps=0.0, eps_root=1e-8),
    _rmsprop(weight_decay=0.1),
    _rmsprop("mean"),
    _rmsprop("buffer", momentum=0.9),
    _rmsprop("mean", "buffer", momentum=0.9, weight_decay=0.1),
    _adam(),
    _adam(step=None),
    _adam(eps=0.0, eps_root=1e-8, beta1=0.5),
    _adam(eps=1e-4, eps_hat=1e-3),
    _adam(weight_decay=0.1),
    _adam(weight_decay=0.1, decoupled=True),
    _adam("v_max"),
    _adam("v_max", weight_decay=0.1, decoupled=True),
    Case("adagrad", ("square_sum",), (), {"weight_decay": 0.1}, counts_steps=True),
    Case("adagrad", ("square_sum",), (), {"lr_decay": 0.5, "eps": 0.1}, counts_steps=True),
    Case("adadelta", ("square_average", "delta_average"), options={"weight_decay": 0.1}),
    Case("adadelta", ("square_average", "delta_average"), options={"rho": 0.5, "eps": 1e-3}),
    _moments("adamax", weight_decay=0.1),
    _moments("adamax", beta1=0.5, beta2=0.5, eps=1e-3),
    _moments("nadam", eps=0.0, eps_hat=1e-3, weight_decay=0.1),
    _moments("nadam", beta1=0.5, momentum_decay=0.5, weight_decay=0.1, decoupled=True),
    _moments("radam", weight_decay=0.1),
    _moments("radam", beta2=0.5),
    _moments("radam", beta2=0.9, weight_decay=0.1, decoupled=True),
    Case("lion", ("m",)),
    Case("lion", ("m",), options={"beta1": 0.5, "weight_decay": 0.1}),
    Case("sgd", options={"scale": 0.3, "clip_value": 0.5}),
    _momentum(scale=-1.7, clip_value=0.0, weight_decay=0.1),
    _rmsprop("mean", scale=1e-3, clip_value=1e-4),
    _adam(scale=2.0**-16, clip_value=1e-5, weight_decay=0.1, decoupled=True),
    Case("sgd", options={"scale": -1.0, "bounds": (-0.3, None)}),
    _adam(weight_decay=0.1, bounds=(-0.5, 0.25)),
    Case("average", options={"beta": 0.98}),
    Case("average", options={"beta": 0.0}),
]


def run(
    case: Case,
    module: ModuleType,
    param: Array,
    gradients: list[Array],
    make_state: Callable[[Array], Array] = np.zeros_like,
    *,
    moduli: bool = False,
) -> Iterator[Array]:
    """Make a step with each gradient; yield the parameter and the states.

    moduli: whether the second moments of a complex parameter are real.
    """
    states = [
        make_state(param.real if moduli and name in SECOND_MOMENTS else param)
        for name in case.all_states
    ]
    for t, gradient in enumerate(gradients, start=1):
        case.step(module, t, param, gradient, *states)
    yield param
    yield from states

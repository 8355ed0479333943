"""numexpr: NumPy's expressions, evaluated in blocks on threads."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.contenders import in_place_whole
from benchmarks.harness import Array, Contender, Problem, Step
from benchmarks.peers.packages import installed


def _evaluate(
    expressions: Mapping[str, str], arrays: Mapping[str, Array], values: Mapping[str, float]
) -> None:
    """Evaluate each expression into the array of its name."""
    import numexpr

    # Python's floats would make the expressions double.
    numbers = {name: arrays["p"].dtype.type(value) for name, value in values.items()}
    names: dict[str, Any] = {**arrays, **numbers}
    for name, expression in expressions.items():
        numexpr.evaluate(expression, names, {}, out=arrays[name])


def _named(problem: Problem, *states: str) -> Sequence[Mapping[str, Array]]:
    """Return the arrays of each parameter: p, g and its states, by their names."""
    given = zip(problem.params, problem.grads, problem.states, strict=True)
    return [dict(zip(("p", "g", *states), (p, g, *of), strict=True)) for p, g, of in given]


def numexpr_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    expressions = {
        "m": "beta1 * m + rest1 * g",
        "v": "beta2 * v + rest2 * (g * g)",
        "p": "p - rate * m / (sqrt(v * correction) + eps)",
    }
    given = _named(problem, "m", "v")
    fixed = {"beta1": beta1, "rest1": 1 - beta1, "beta2": beta2, "rest2": 1 - beta2, "eps": eps}
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        corrections = {"rate": lr / (1 - beta1**t), "correction": 1 / (1 - beta2**t)}
        for arrays in given:
            _evaluate(expressions, arrays, fixed | corrections)

    return step


def numexpr_momentum(problem: Problem, *, lr: float, beta: float) -> Step:
    expressions = {"v": "beta * v + rest * g", "p": "p - lr * v"}
    given, values = _named(problem, "v"), {"lr": lr, "beta": beta, "rest": 1 - beta}

    def step() -> None:
        for arrays in given:
            _evaluate(expressions, arrays, values)

    return step


def numexpr_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    expressions = {
        "s": "beta * s + rest * (g * g)",
        "p": "p - lr * g / (sqrt(s) + eps)",
    }
    given, values = _named(problem, "s"), {"lr": lr, "beta": beta, "rest": 1 - beta, "eps": eps}

    def step() -> None:
        for arrays in given:
            _evaluate(expressions, arrays, values)

    return step


NUMEXPR = Contender(
    "numexpr",
    {"Adam": numexpr_adam, "momentum": numexpr_momentum, "RMSprop": numexpr_rmsprop},
    present=partial(installed, "numexpr"),
)
NUMEXPR_WHOLE = replace(NUMEXPR, steps={"Adam": partial(in_place_whole, adam=numexpr_adam)})
"""With NumPy's operations for the rest."""

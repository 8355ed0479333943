"""Who takes part. A new contender is its step for each rule it knows, and a line in CONTENDERS."""

from collections.abc import Sequence
from functools import partial

import numpy as np

import schuss
from benchmarks.harness import Array, Contender, Problem, Rule, Run, Step

ADAM = Rule(
    "Adam",
    schuss.Adam,
    schuss.reference.adam,
    states=2,
    hyperparameters={"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    counts_steps=True,
)
MOMENTUM = Rule(
    "momentum",
    schuss.Momentum,
    schuss.reference.momentum,
    states=1,
    hyperparameters={"lr": 0.01, "beta": 0.9},
)
RMSPROP = Rule(
    "RMSprop",
    schuss.RMSprop,
    schuss.reference.rmsprop,
    states=1,
    hyperparameters={"lr": 0.001, "beta": 0.9, "eps": 1e-8},
)
RULES = (ADAM, MOMENTUM, RMSPROP)


def fused(problem: Problem, **hyperparameters: float) -> Step:
    params, grads = (
        arrays[0] if len(arrays) == 1 else list(arrays)
        for arrays in (problem.params, problem.grads)
    )
    return partial(problem.rule.optimizer(params, **hyperparameters).step, grads)


def textbook_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    ms, vs = map(list, zip(*problem.states, strict=True))
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        for i, (p, g) in enumerate(zip(problem.params, problem.grads, strict=True)):
            ms[i] = beta1 * ms[i] + (1 - beta1) * g
            vs[i] = beta2 * vs[i] + (1 - beta2) * g**2
            m_hat = ms[i] / (1 - beta1**t)
            v_hat = vs[i] / (1 - beta2**t)
            p -= lr * m_hat / (np.sqrt(v_hat) + eps)

    return step


def textbook_momentum(problem: Problem, *, lr: float, beta: float) -> Step:
    vs = [v for (v,) in problem.states]

    def step() -> None:
        for i, (p, g) in enumerate(zip(problem.params, problem.grads, strict=True)):
            vs[i] = beta * vs[i] + (1 - beta) * g
            p -= lr * vs[i]

    return step


def textbook_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    ss = [s for (s,) in problem.states]

    def step() -> None:
        for i, (p, g) in enumerate(zip(problem.params, problem.grads, strict=True)):
            ss[i] = beta * ss[i] + (1 - beta) * g**2
            p -= lr * g / (np.sqrt(ss[i]) + eps)

    return step


def _with_scratch(problem: Problem) -> list[tuple[Array, ...]]:
    """Return for each parameter (param, grad, scratch, *states); equal shapes share scratch."""
    scratch = {p.shape: np.empty_like(p) for p in problem.params}
    arrays = zip(problem.params, problem.grads, problem.states, strict=True)
    return [(p, g, scratch[p.shape], *states) for p, g, states in arrays]


def in_place_adam(problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float) -> Step:
    arrays = _with_scratch(problem)
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        rate = lr / (1 - beta1**t)
        correction = 1 / (1 - beta2**t)
        for p, g, a, m, v in arrays:
            np.multiply(g, 1 - beta1, out=a)
            np.multiply(m, beta1, out=m)
            np.add(m, a, out=m)
            np.multiply(g, g, out=a)
            np.multiply(a, 1 - beta2, out=a)
            np.multiply(v, beta2, out=v)
            np.add(v, a, out=v)
            np.multiply(v, correction, out=a)
            np.sqrt(a, out=a)
            np.add(a, eps, out=a)
            np.divide(m, a, out=a)
            np.multiply(a, rate, out=a)
            np.subtract(p, a, out=p)

    return step


def in_place_momentum(problem: Problem, *, lr: float, beta: float) -> Step:
    arrays = _with_scratch(problem)

    def step() -> None:
        for p, g, a, v in arrays:
            np.multiply(g, 1 - beta, out=a)
            np.multiply(v, beta, out=v)
            np.add(v, a, out=v)
            np.multiply(v, lr, out=a)
            np.subtract(p, a, out=p)

    return step


def in_place_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float) -> Step:
    arrays = _with_scratch(problem)

    def step() -> None:
        for p, g, a, s in arrays:
            np.multiply(g, g, out=a)
            np.multiply(a, 1 - beta, out=a)
            np.multiply(s, beta, out=s)
            np.add(s, a, out=s)
            np.sqrt(s, out=a)
            np.add(a, eps, out=a)
            np.divide(g, a, out=a)
            np.multiply(a, lr, out=a)
            np.subtract(p, a, out=p)

    return step


SCHUSS = Contender("schuss", {rule.name: fused for rule in RULES}, exact=True)
TEXTBOOK = Contender(
    "NumPy textbook",
    {"Adam": textbook_adam, "momentum": textbook_momentum, "RMSprop": textbook_rmsprop},
)
IN_PLACE = Contender(
    "NumPy in place",
    {"Adam": in_place_adam, "momentum": in_place_momentum, "RMSprop": in_place_rmsprop},
)
CONTENDERS = (SCHUSS, IN_PLACE, TEXTBOOK)


def limit(problem: Problem) -> Run:
    """Return additions over the problem's own arrays; if they are many or strided, over copies."""

    def dense(arrays: Sequence[Array]) -> list[Array]:
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=None)
        return [np.ascontiguousarray(whole)]

    flat = problem
    if any(len(a) > 1 or not a[0].flags.c_contiguous for a in (problem.params, problem.grads)):
        flat = Problem(problem.rule, dense(problem.params), dense(problem.grads))
    arrays = (*flat.params, *flat.grads, *flat.states[0])
    return lambda repeats: schuss._core.additions(repeats, 1, *arrays)


YARDSTICKS = {"limit": limit}

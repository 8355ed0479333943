"""schuss and NumPy, and the limit; peers.py has the others.

A new contender is its step for each rule that it knows, and its name where it takes part.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

import schuss
from benchmarks.harness import (
    LIMIT,
    LIMIT_OF_ONE,
    Array,
    Contender,
    Problem,
    Rule,
    Run,
    Step,
    Yardstick,
    one_or_list,
)

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
    for name, value in hyperparameters.items():
        setattr(problem.optimizer, name, value)
    return partial(problem.optimizer.step, one_or_list(problem.grads))


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


@contextmanager
def level(name: str) -> Iterator[None]:
    """Use another instruction set level for a while."""
    before = schuss.simd()
    schuss.set_simd(name)
    try:
        yield
    finally:
        schuss.set_simd(before)


def _openblas_can_be_served() -> bool:
    try:
        with schuss.share_threads_with_blas():
            return True
    except RuntimeError:
        return False


FUSED = {rule.name: fused for rule in RULES}
SCHUSS = Contender("schuss", FUSED, exact=True)
ONE_THREAD = Contender(
    "schuss, 1 thread", FUSED, exact=True, one_thread=True, setting=partial(schuss.threads, 1)
)
SHARED_THREADS = Contender(
    "schuss, shared threads",
    FUSED,
    exact=True,
    present=_openblas_can_be_served,
    setting=schuss.share_threads_with_blas,
)
LEVELS = tuple(
    Contender(f"schuss, {name}", FUSED, exact=True, setting=partial(level, name))
    for name in schuss.available_simd()
    if name != schuss.simd()
)
IN_PLACE = Contender(
    "NumPy in place",
    {"Adam": in_place_adam, "momentum": in_place_momentum, "RMSprop": in_place_rmsprop},
    one_thread=True,
)
TEXTBOOK = Contender(
    "NumPy textbook",
    {"Adam": textbook_adam, "momentum": textbook_momentum, "RMSprop": textbook_rmsprop},
    one_thread=True,
)
CONTENDERS = (SCHUSS, IN_PLACE, TEXTBOOK)


def limit(problem: Problem, threads: int | None = None) -> Run:
    """Return additions over the problem's own arrays; if they are many or strided, over copies.

    By as many threads as schuss may use, unless told otherwise.
    """

    def dense(arrays: Sequence[Array]) -> list[Array]:
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=None)
        return [np.ascontiguousarray(whole)]

    flat = problem
    if any(len(a) > 1 or not a[0].flags.c_contiguous for a in (problem.params, problem.grads)):
        flat = Problem(problem.rule, dense(problem.params), dense(problem.grads))
    arrays = (*flat.params, *flat.grads, *flat.states[0])
    count = threads or schuss.num_threads()
    return lambda repeats: schuss._core.additions(repeats, count, *arrays)


YARDSTICKS: Mapping[str, Yardstick] = {LIMIT: limit}
BOTH_LIMITS: Mapping[str, Yardstick] = {LIMIT: limit, LIMIT_OF_ONE: partial(limit, threads=1)}

"""numba: the loop that a user would write, over one array at a time."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np

from benchmarks.harness import Contender, Problem, Step
from benchmarks.peers.packages import installed


@cache
def _numba_kernel(rule: str, *, fastmath: bool) -> Callable[..., None]:
    from numba import njit, prange

    # Divisions that raise at zero, as Python's do, would not vectorise.
    compiled = njit(parallel=True, error_model="numpy", fastmath=fastmath)

    def adam(p, g, m, v, rate, beta1, rest1, beta2, rest2, correction, eps):  # type: ignore[no-untyped-def]
        for i in prange(p.size):
            m[i] = beta1 * m[i] + rest1 * g[i]
            v[i] = beta2 * v[i] + rest2 * (g[i] * g[i])
            p[i] -= rate * m[i] / (np.sqrt(v[i] * correction) + eps)

    def momentum(p, g, v, rate, beta, rest):  # type: ignore[no-untyped-def]
        for i in prange(p.size):
            v[i] = beta * v[i] + rest * g[i]
            p[i] -= rate * v[i]

    def rmsprop(p, g, s, rate, beta, rest, eps):  # type: ignore[no-untyped-def]
        for i in prange(p.size):
            s[i] = beta * s[i] + rest * (g[i] * g[i])
            p[i] -= rate * g[i] / (np.sqrt(s[i]) + eps)

    kernel: Callable[..., None] = compiled({"Adam": adam, "RMSprop": rmsprop}.get(rule, momentum))
    return kernel


def _numba_step(
    problem: Problem, coefficients: Callable[[], tuple[float, ...]], *, fastmath: bool
) -> Step:
    """Return a step that computes its coefficients in double and rounds them to the dtype."""
    kernel = _numba_kernel(problem.rule.name, fastmath=fastmath)
    given = zip(problem.params, problem.grads, problem.states, strict=True)
    flat = [[array.reshape(-1) for array in (p, g, *states)] for p, g, states in given]
    number = problem.params[0].dtype.type

    def step() -> None:
        numbers = [number(value) for value in coefficients()]
        for arrays in flat:
            kernel(*arrays, *numbers)

    return step


def numba_adam(
    problem: Problem, *, lr: float, beta1: float, beta2: float, eps: float, fastmath: bool
) -> Step:
    t = 0

    def coefficients() -> tuple[float, ...]:
        nonlocal t
        t += 1
        rate, correction = lr / (1 - beta1**t), 1 / (1 - beta2**t)
        return rate, beta1, 1 - beta1, beta2, 1 - beta2, correction, eps

    return _numba_step(problem, coefficients, fastmath=fastmath)


def numba_momentum(problem: Problem, *, lr: float, beta: float, fastmath: bool) -> Step:
    return _numba_step(problem, lambda: (lr, beta, 1 - beta), fastmath=fastmath)


def numba_rmsprop(problem: Problem, *, lr: float, beta: float, eps: float, fastmath: bool) -> Step:
    return _numba_step(problem, lambda: (lr, beta, 1 - beta, eps), fastmath=fastmath)


def _numba(name: str, *, fastmath: bool) -> Contender:
    steps: Mapping[str, Callable[..., Step]] = {
        "Adam": numba_adam,
        "momentum": numba_momentum,
        "RMSprop": numba_rmsprop,
    }
    return Contender(
        name,
        {rule: partial(step, fastmath=fastmath) for rule, step in steps.items()},
        present=partial(installed, "numba"),
    )


NUMBA = _numba("numba", fastmath=False)
NUMBA_FASTMATH = _numba("numba, fastmath", fastmath=True)
"""The compiler may reorder operations and approximate divisions and roots."""

"""schuss, NumPy and the memory limit; peers has the others.

A new contender is a step function per rule, and its name in the lists of the benchmarks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import schuss
from benchmarks.harness import (
    FORMAT_OPTIONS,
    LIMIT,
    LIMIT_OF_ONE,
    PLAIN,
    PLAIN_OF_ONE,
    Array,
    Contender,
    Problem,
    Rule,
    Run,
    Step,
    Yardstick,
    one_or_list,
    ordinary,
    repeated,
)

ADAM = Rule(
    "Adam",
    schuss.Adam,
    schuss.reference.adam,
    hyperparameters={"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    counts_steps=True,
)
MOMENTUM = Rule(
    "momentum",
    schuss.Momentum,
    schuss.reference.momentum,
    hyperparameters={"lr": 0.01, "beta": 0.9},
)
RMSPROP = Rule(
    "RMSprop",
    schuss.RMSprop,
    schuss.reference.rmsprop,
    hyperparameters={"lr": 0.001, "beta": 0.9, "eps": 1e-8},
)
RULES = (ADAM, MOMENTUM, RMSPROP)
_BETAS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
FURTHER_RULES = (
    Rule(
        "Lion",
        schuss.Lion,
        schuss.reference.lion,
        hyperparameters={"lr": 1e-4, "beta1": 0.9, "beta2": 0.99},
    ),
    Rule(
        "Adagrad",
        schuss.Adagrad,
        schuss.reference.adagrad,
        hyperparameters={"lr": 0.01, "eps": 1e-10},
        counts_steps=True,
    ),
    Rule(
        "Adamax",
        schuss.Adamax,
        schuss.reference.adamax,
        hyperparameters={"lr": 0.002, **_BETAS},
        counts_steps=True,
    ),
    Rule(
        "NAdam",
        schuss.NAdam,
        schuss.reference.nadam,
        hyperparameters={"lr": 0.002, **_BETAS},
        counts_steps=True,
    ),
)


def fused(
    problem: Problem, accumulate: Callable[[Any], None] | None = None, **hyperparameters: float
) -> Step:
    """Return schuss's step; `accumulate` is how it takes the gradients of further mini-batches."""
    optimizer = problem.optimizer
    for name, value in hyperparameters.items():
        setattr(optimizer, name, value)

    def tell() -> None:
        problem.state_bytes[...] = optimizer.state_bytes
        if "clip_norm" in problem.options and optimizer.last is not None:
            problem.norm[...] = optimizer.last.grad_norm

    problem.write_backs.append(tell)
    if not problem.more_grads:
        return partial(optimizer.step, one_or_list(problem.grads))
    parts = [one_or_list(grads) for grads in (problem.grads, *problem.more_grads)]
    accumulate = accumulate or optimizer.accumulate

    def step() -> None:
        for grads in parts:
            accumulate(grads)
        optimizer.step()

    return step


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


def in_order(parts: Sequence[Step]) -> Step:
    """Return a step that is made of parts."""
    if len(parts) == 1:
        return parts[0]

    def step() -> None:
        for part in parts:
            part()

    return step


def in_place_whole(
    problem: Problem, adam: Callable[..., Step] = in_place_adam, **hyperparameters: float
) -> Step:
    """Make Adam's step with the options; gradients accumulate in the first ones."""
    options = problem.options
    arrays = _with_scratch(problem)

    def add_up() -> None:
        for grads in problem.more_grads:
            for total, grad in zip(problem.grads, grads, strict=True):
                np.add(total, grad, out=total)

    def clip() -> None:
        norm = np.linalg.norm([np.linalg.norm(grad) for grad in problem.grads])
        problem.norm[...] = norm
        factor = options["clip_norm"] / (norm + 1e-6)
        if factor < 1:
            for grad in problem.grads:
                np.multiply(grad, grad.dtype.type(factor), out=grad)

    steps = 0

    def average() -> None:
        nonlocal steps
        steps += 1
        beta = options["average"] if steps > 1 else 0.0
        for (param, _, scratch, *_), of_param in zip(arrays, problem.averages, strict=True):
            np.multiply(of_param, beta, out=of_param)
            np.multiply(param, 1 - beta, out=scratch)
            np.add(of_param, scratch, out=of_param)

    def clear() -> None:
        for grad in problem.grads:
            grad.fill(0)

    def cast() -> None:
        for copy, param in zip(problem.copies, problem.params, strict=True):
            copy[...] = param

    parts = [adam(problem, **hyperparameters)]
    if "clip_norm" in options:
        parts.insert(0, clip)
    if problem.more_grads:
        parts.insert(0, add_up)
    if problem.averages:
        parts.append(average)
    if options.get("clear_grads"):
        parts.append(clear)
    if problem.copies:
        parts.append(cast)
    return in_order(parts)


@contextmanager
def level(name: str) -> Iterator[None]:
    """Use an instruction set within the context."""
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


FUSED = {rule.name: fused for rule in (*RULES, *FURTHER_RULES)}
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
IN_PLACE_WHOLE = Contender("NumPy in place", {"Adam": in_place_whole}, one_thread=True)
TEXTBOOK = Contender(
    "NumPy textbook",
    {"Adam": textbook_adam, "momentum": textbook_momentum, "RMSprop": textbook_rmsprop},
    one_thread=True,
)
CONTENDERS = (SCHUSS, IN_PLACE, TEXTBOOK)


def limit(problem: Problem, threads: int | None = None) -> Run:
    """Return the memory limit: additions over the problem's own arrays.

    If the arrays are many or strided, the additions are over contiguous copies. For a step with
    options or several dtypes, they are over as many float32 arrays as a plain step has, of the size
    that moves the same bytes. For 12 bytes written the limit reads 16; such steps read 13 to 20.

    By default it uses the number of threads that schuss may use.
    """

    def dense(arrays: Sequence[Array]) -> list[Array]:
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=None)
        return [np.ascontiguousarray(whole)]

    flat = problem
    if not problem.plain:
        one = Problem(problem.rule, [ordinary(1)], [ordinary(1)])
        size = max(1, problem.bytes_moved // one.bytes_moved)
        flat = Problem(problem.rule, [ordinary(size)], [ordinary(size)])
    elif any(len(a) > 1 or not a[0].flags.c_contiguous for a in (problem.params, problem.grads)):
        flat = Problem(problem.rule, dense(problem.params), dense(problem.grads))
    arrays = (*flat.params, *flat.grads, *flat.states[0])
    count = threads or schuss.num_threads()
    return lambda repeats: schuss._core.memory_floor(repeats, count, *arrays)


def plain_step(problem: Problem, by: Contender = SCHUSS) -> Run:
    """Return schuss's step of the rule on a float32 problem of the same size, in new arrays."""
    size = sum(param.size for param in problem.params)
    plain = Problem(problem.rule, [ordinary(size)], [ordinary(size)])
    for state in plain.states[0]:
        np.copyto(state, plain.params[0])
    run = repeated(by.prepare(plain))

    def with_setting(repeats: int) -> None:
        with by.setting():
            run(repeats)

    return with_setting


def _in_float32(problem: Problem) -> Problem:
    """Return the problem that trains the same model by float32 arrays, with copies in bfloat16."""
    given = problem.options
    options = {name: given[name] for name in given if name not in FORMAT_OPTIONS}
    arrays = ([a.astype(np.float32) for a in each] for each in (problem.params, problem.grads))
    return Problem(problem.rule, *arrays, options={**options, "copies": "bfloat16"})


def in_float32(contender: Contender) -> Contender:
    """Return the contender for models in bfloat16 that it trains by float32 parameters."""
    return replace(contender, name=f"{contender.name}, float32 and cast", instead=_in_float32)


YARDSTICKS: Mapping[str, Yardstick] = {LIMIT: limit}
BOTH_LIMITS: Mapping[str, Yardstick] = {LIMIT: limit, LIMIT_OF_ONE: partial(limit, threads=1)}
WITH_PLAIN: Mapping[str, Yardstick] = {
    **BOTH_LIMITS,
    PLAIN: plain_step,
    PLAIN_OF_ONE: partial(plain_step, by=ONE_THREAD),
}

"""The whole step: clipping, accumulation, averages, clearing and copies around the update."""

from collections.abc import Mapping
from functools import partial
from itertools import product
from math import sqrt
from typing import Any

from benchmarks.contenders import (
    ADAM,
    IN_PLACE_WHOLE,
    ONE_THREAD,
    SCHUSS,
    WITH_PLAIN,
    fused,
)
from benchmarks.harness import (
    Case,
    Contender,
    Problem,
    Record,
    Settings,
    Step,
    compare,
    ordinary,
    tracked,
)
from benchmarks.peers import TORCH_WHOLE, installed

SIZES = (16_777_216,)
"""Larger than the caches. Restoring the values of smaller arrays would load them into a cache, and
the arrays of the yardsticks are not restored."""
SIZES_IN_CACHE, WORKS_IN_CACHE = (1_048_576,), ("step", "clip, step")
"""A model of 4 MiB, whose arrays stay in the cache from step to step. These works are the same for
any values, so nothing is restored."""
CHECK_SIZE = 100_003
CLIPPED_TO = 0.25
"""The clip norm, divided by the root of the number of elements; ordinary values exceed 1."""
AVERAGE, AVERAGE_TO_CHECK = 0.999, 0.9
"""The decay rate that is timed, and one for the check: a few steps show whether it is applied."""
FURTHER = 3
SUBNORMAL = 1e-39
"""A moment decays to this after hundreds of steps without gradients."""

CLEAR: Mapping[str, Any] = {"clip_norm": CLIPPED_TO, "average": AVERAGE, "clear_grads": True}
SUBNORMAL_MOMENT = "step, subnormal moment"
ACCUMULATE = f"accumulate {1 + FURTHER}, step"
WORKS: Mapping[str, Mapping[str, Any]] = {
    "step": {},
    "clip, step": {"clip_norm": CLIPPED_TO},
    "clip, step, average, clear": CLEAR,
    "clip, step, average, clear, cast": {**CLEAR, "copies": "bfloat16"},
    ACCUMULATE: {},
    SUBNORMAL_MOMENT: {},
}
CONTENDERS = (SCHUSS, ONE_THREAD, IN_PLACE_WHOLE, TORCH_WHOLE)


def fused_in_the_gradients(problem: Problem, **hyperparameters: float) -> Step:
    """Sum the gradients in the memory of the first ones, as the other contenders do."""
    accumulate = partial(problem.optimizer.accumulate, overwrite_grads=True)
    return fused(problem, accumulate, **hyperparameters)


OVERWRITING = Contender("schuss, overwrite_grads", {ADAM.name: fused_in_the_gradients}, exact=True)


def posed_to_check(work: str, size: int, average: float = AVERAGE_TO_CHECK) -> Problem:
    """Return a problem before its first step."""
    options = dict(WORKS[work])
    if "clip_norm" in options:
        options["clip_norm"] *= sqrt(size)
    if "average" in options:
        options["average"] = average
    more_grads = [[ordinary(size)] for _ in range(FURTHER * (work == ACCUMULATE))]
    arrays = [ordinary(size)], [ordinary(size)]
    return Problem(ADAM, *arrays, options=options, more_grads=more_grads)


def posed(work: str, size: int) -> Problem:
    """Return a problem with the moments of many steps."""
    problem = posed_to_check(work, size, AVERAGE)
    (grad,), ((m, v),) = problem.grads, problem.states
    v[...] = m[...] = grad
    if work == SUBNORMAL_MOMENT:
        m[...], grad[...] = SUBNORMAL, 0
    return problem


def whole(settings: Settings) -> list[Record]:
    """A whole step of one array: Adam, float32."""
    works = [work for work in WORKS if "copies" not in WORKS[work] or installed("ml_dtypes")]
    sizes = settings.sizes or SIZES
    chosen = [*product(sizes, works, [True])]
    if not settings.sizes:
        chosen += product(SIZES_IN_CACHE, WORKS_IN_CACHE, [False])
    records = []
    for size, work, restores in tracked("whole", chosen):
        case = Case(
            {"work": work, "size": size},
            ADAM,
            partial(posed, work, size),
            partial(posed_to_check, work, min(size, CHECK_SIZE)),
            restores=restores,
        )
        contenders = (*CONTENDERS, OVERWRITING) if work == ACCUMULATE else CONTENDERS
        records += compare(case, contenders, WITH_PLAIN, settings.rounds)
    return records

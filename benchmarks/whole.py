"""The whole step: clipping, accumulation, averages, clearing and copies around the update."""

from collections.abc import Mapping, Sequence
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
    in_float32,
)
from benchmarks.dtypes import CHECK_SIZE, CHECK_SIZE_OF_BLOCKS, FAST_IN_8_BITS, dtype_of
from benchmarks.harness import (
    EIGHT_BITS,
    Case,
    Contender,
    Problem,
    Record,
    Rule,
    Settings,
    Step,
    compare_all,
    ordinary,
)
from benchmarks.peers import (
    BITSANDBYTES_WHOLE,
    DEEPSPEED_WHOLE,
    NUMEXPR_WHOLE,
    TORCH_COMPILED_WHOLE,
    TORCH_WHOLE,
    TORCHAO_WHOLE,
    installed,
)

SIZES = (16_777_216,)
"""Larger than the caches. Restoring the values of smaller arrays would load them into a cache, and
the arrays of the yardsticks are not restored."""
SIZES_IN_CACHE, WORKS_IN_CACHE = (1_048_576,), ("step", "clip, step")
"""A model of 4 MiB, whose arrays stay in the cache from step to step. These works are the same for
any values, so nothing is restored."""
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
CAST = "clip, step, average, clear, cast"
IN_8_BITS = "clip, step, average, clear: 8bit"
WITH_MASTER = "clip, step, average, clear: 8bit, master=float32"
"""Of parameters and gradients in bfloat16, which need no cast."""
WORKS: Mapping[str, Mapping[str, Any]] = {
    "step": {},
    "clip, step": {"clip_norm": CLIPPED_TO},
    "clip, step, average, clear": CLEAR,
    CAST: {**CLEAR, "copies": "bfloat16"},
    ACCUMULATE: {},
    SUBNORMAL_MOMENT: {},
    IN_8_BITS: {**CLEAR, "state_dtype": EIGHT_BITS},
    WITH_MASTER: {**CLEAR, "state_dtype": EIGHT_BITS, "master": "float32"},
}


def fused_in_the_gradients(problem: Problem, **hyperparameters: float) -> Step:
    """Sum the gradients in the memory of the first ones, as the other contenders do."""
    accumulate = partial(problem.optimizer.accumulate, overwrite_grads=True)
    return fused(problem, accumulate, **hyperparameters)


OVERWRITING = Contender("schuss, overwrite_grads", {ADAM.name: fused_in_the_gradients}, exact=True)


def posed_to_check(work: str, size: int) -> Problem:
    """Return a problem before its first step."""
    in_8_bits = "state_dtype" in WORKS[work]
    return _before(work, size, AVERAGE_TO_CHECK, FAST_IN_8_BITS if in_8_bits else ADAM)


def posed(work: str, size: int) -> Problem:
    """Return a problem with the moments of many steps, unless they have 8 bits."""
    problem = _before(work, size, AVERAGE, ADAM)
    (grad,), (states,) = problem.grads, problem.states
    for state in states:
        state[...] = grad
    if work == SUBNORMAL_MOMENT:
        states[0][...], grad[...] = SUBNORMAL, 0
    return problem


def _before(work: str, size: int, average: float, rule: Rule) -> Problem:
    options = dict(WORKS[work])
    if "clip_norm" in options:
        options["clip_norm"] *= sqrt(size)
    if "average" in options:
        options["average"] = average
    dtype = dtype_of("bfloat16" if "master" in options else "float32")
    param, grad, *more = (
        ordinary(size).astype(dtype) for _ in range(2 + FURTHER * (work == ACCUMULATE))
    )
    return Problem(rule, [param], [grad], options=options, more_grads=[[grad] for grad in more])


CONTENDERS: Sequence[Contender] = (
    IN_PLACE_WHOLE,
    NUMEXPR_WHOLE,
    TORCH_WHOLE,
    TORCH_COMPILED_WHOLE,
    DEEPSPEED_WHOLE,
)
CONTENDERS_OF: Mapping[str, Sequence[Contender]] = {
    IN_8_BITS: (BITSANDBYTES_WHOLE, TORCHAO_WHOLE),
    WITH_MASTER: (in_float32(TORCH_WHOLE), in_float32(DEEPSPEED_WHOLE)),
}
"""All of schuss take part, too."""


def needs_ml_dtypes(work: str) -> bool:
    """Whether a part of the work is in bfloat16."""
    return not {"copies", "master"}.isdisjoint(WORKS[work])


def case_of(size: int, work: str, restores: bool) -> Case:
    contenders = CONTENDERS_OF.get(work, CONTENDERS)
    in_8_bits = "state_dtype" in WORKS[work]
    check_size = CHECK_SIZE_OF_BLOCKS if in_8_bits else min(size, CHECK_SIZE)
    return Case(
        {"work": work, "size": size},
        ADAM,
        partial(posed, work, size),
        partial(posed_to_check, work, check_size),
        restores=restores,
        contenders=(*contenders, *[OVERWRITING] * (work == ACCUMULATE)),
    )


def whole(settings: Settings) -> list[Record]:
    """A whole step of one array: Adam, float32 if the work does not say otherwise."""
    works = [work for work in WORKS if not needs_ml_dtypes(work) or installed("ml_dtypes")]
    chosen = [*product(settings.sizes or SIZES, works, [True])]
    if not settings.sizes:
        chosen += product(SIZES_IN_CACHE, WORKS_IN_CACHE, [False])
    cases = [case_of(*case) for case in chosen]
    return compare_all("whole", cases, settings, (SCHUSS, ONE_THREAD), WITH_PLAIN)

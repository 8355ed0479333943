"""The benchmarks: which problems, in which sizes, posed to whom."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import get_args

from benchmarks.contenders import ADAM, CONTENDERS, RULES, SCHUSS, YARDSTICKS
from benchmarks.data import average, batches
from benchmarks.harness import (
    Array,
    Case,
    DType,
    Problem,
    Record,
    Rule,
    Run,
    Settings,
    Yardstick,
    compare,
    interleave,
    line,
    ordinary,
    repeated,
    tracked,
)


def step(settings: Settings) -> list[Record]:
    """One step of one array."""
    sizes = settings.sizes or (1_024, 65_536, 1_048_576, 16_777_216, 67_108_864)

    def pose(rule: Rule, dtype: DType, size: int) -> Problem:
        return Problem(rule, [ordinary(size, dtype=dtype)], [ordinary(size, dtype=dtype)])

    cases = [
        Case(
            {"rule": rule.name, "dtype": dtype, "size": size},
            rule,
            partial(pose, rule, dtype),
            size,
            check_size=min(size, 100_003),
        )
        for rule, dtype, size in product(RULES, get_args(DType), sizes)
    ]
    return _compare_all("step", cases, settings)


def many(settings: Settings) -> list[Record]:
    """One step of 1,000 arrays: Adam, float32."""

    def pose(size: int) -> Problem:
        return Problem(ADAM, *([ordinary(size) for _ in range(1_000)] for _ in range(2)))

    cases = [
        Case({"arrays": 1_000, "size": size}, ADAM, pose, size)
        for size in settings.sizes or (1_000,)
    ]
    return _compare_all("many", cases, settings)


LAYOUTS: dict[str, Callable[[int], Array]] = {
    "C": lambda n: ordinary(n, n),
    "transposed": lambda n: ordinary(n, n).T,
    "every second column": lambda n: ordinary(n, 2 * n)[:, ::2],
    "3 columns": lambda n: ordinary(n * n // 3 + 1, 3),
    "3 columns of 4": lambda n: ordinary(n * n // 3 + 1, 4)[:, :3],
}


def layout(settings: Settings) -> list[Record]:
    """One step of a square matrix, laid out in several ways: Adam, float32."""
    pairs = (
        ("C", "C"),
        ("C", "transposed"),
        ("transposed", "transposed"),
        ("every second column", "C"),
        ("3 columns of 4", "3 columns"),
    )

    def pose(param: str, grad: str, n: int) -> Problem:
        return Problem(ADAM, [LAYOUTS[param](n)], [LAYOUTS[grad](n)])

    def equal_layouts(problem: Problem) -> Run:
        copies = ([a.copy(order="C") for a in arrays] for arrays in (problem.params, problem.grads))
        return repeated(SCHUSS.prepare(Problem(problem.rule, *copies)))

    cases = [
        Case(
            {"n": n, "param": param, "grad": grad},
            ADAM,
            partial(pose, param, grad),
            n,
            check_size=min(n, 301),
        )
        for n in settings.sizes or (4_096,)
        for param, grad in pairs
    ]
    return _compare_all("layout", cases, settings, {**YARDSTICKS, "equal layouts": equal_layouts})


def startup(settings: Settings) -> list[Record]:
    """The import, each time in a fresh process."""
    clocked = "from time import perf_counter as t; s = t(); import {}; print(t() - s)"
    programs = {
        "import numpy": clocked.format("numpy"),
        "import schuss, after numpy": f"import numpy; {clocked.format('schuss')}",
    }

    def seconds_of(program: str) -> float:
        command = [sys.executable, "-c", program]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    measures = {name: partial(seconds_of, program) for name, program in programs.items()}
    times = interleave(measures, settings.rounds)
    return [line({}, name, times, "milliseconds") for name in times]


BENCHMARKS: dict[str, Callable[[Settings], list[Record]]] = {
    "step": step,
    "many": many,
    "layout": layout,
    "average": average,
    "batches": batches,
    "startup": startup,
}


def _compare_all(
    name: str,
    cases: Sequence[Case],
    settings: Settings,
    yardsticks: Mapping[str, Yardstick] = YARDSTICKS,
) -> list[Record]:
    return [
        record
        for case in tracked(name, cases)
        for record in compare(case, CONTENDERS, yardsticks, settings.rounds)
    ]

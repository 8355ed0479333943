"""The benchmarks: problems, sizes and contenders."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import get_args

import schuss
from benchmarks.checkpoints import checkpoints
from benchmarks.contenders import (
    ADAM,
    BOTH_LIMITS,
    CONTENDERS,
    FURTHER_RULES,
    IN_PLACE,
    LEVELS,
    ONE_THREAD,
    RULES,
    SCHUSS,
    TEXTBOOK,
    YARDSTICKS,
)
from benchmarks.data import average, batches
from benchmarks.dtypes import dtypes
from benchmarks.files import files
from benchmarks.harness import (
    Array,
    Case,
    DType,
    Problem,
    Record,
    Rule,
    Run,
    Settings,
    compare,
    compare_all,
    interleave,
    line,
    ordinary,
    repeated,
    tracked,
)
from benchmarks.loop import loop
from benchmarks.mapped import mapped
from benchmarks.mpi.command import mpi
from benchmarks.overhead import overhead
from benchmarks.peers import PEERS, TORCH_COMPILED
from benchmarks.rows.command import rows
from benchmarks.shapes import Shape, gpt2_small, resnet50
from benchmarks.sklearn import sklearn
from benchmarks.torch_loop import torch_loop
from benchmarks.train import train
from benchmarks.whole import whole

STEP_SIZES = (1_024, 16_384, 65_536, 262_144, 1_048_576, 2_097_152, 16_777_216, 67_108_864)
SIZES_OF_OTHERS = (65_536, 1_048_576, 16_777_216)
"""Of the rules other than Adam: in the caches of a core, in the last one, in memory."""
RULES_SIZES = (16_777_216,)


def equal(count: int, size: int) -> Sequence[Shape]:
    return [(size,)] * count


MANY: Mapping[str, Callable[[], Sequence[Shape]]] = {
    "1,000 x 1,000": partial(equal, 1_000, 1_000),
    "160 x 65,536": partial(equal, 160, 65_536),
    "ResNet-50": resnet50,
    "GPT-2 small": gpt2_small,
}
MOST_COMPILED = 160
"""torch.compile takes up to a minute for 160 arrays, and several minutes for 1,000."""


def posed(rule: Rule, dtype: DType, shapes: Sequence[Shape]) -> Problem:
    return Problem(rule, *([ordinary(*s, dtype=dtype) for s in shapes] for _ in range(2)))


def step(settings: Settings) -> list[Record]:
    """One step of one array."""
    cases = [
        Case(
            {"rule": rule.name, "dtype": dtype, "size": size},
            rule,
            partial(posed, rule, dtype, [(size,)]),
            partial(posed, rule, dtype, [(min(size, 100_003),)]),
            dtype,
        )
        for rule, dtype in product(RULES, get_args(DType))
        for size in settings.sizes or (STEP_SIZES if rule is ADAM else SIZES_OF_OTHERS)
    ]
    contenders = (SCHUSS, ONE_THREAD, *LEVELS, IN_PLACE, TEXTBOOK, *PEERS)
    return compare_all("step", cases, settings, contenders, BOTH_LIMITS)


def rules(settings: Settings) -> list[Record]:
    """One step of one array, by further rules: float32."""
    cases = [
        Case(
            {"rule": rule.name, "size": size},
            rule,
            partial(posed, rule, "float32", [(size,)]),
            partial(posed, rule, "float32", [(min(size, 100_003),)]),
        )
        for rule, size in product(FURTHER_RULES, settings.sizes or RULES_SIZES)
    ]
    return compare_all("rules", cases, settings, (SCHUSS, ONE_THREAD, *PEERS), BOTH_LIMITS)


def many_case(name: str, shapes: Sequence[Shape]) -> Case:
    """Return the case of these arrays, which is checked on the smallest of each dimension."""
    small = {len(shape): shape for shape in sorted(shapes, key=prod, reverse=True)}
    labels = {"list": name, "arrays": len(shapes), "elements": sum(map(prod, shapes))}
    pose, pose_small = (partial(posed, ADAM, "float32", of) for of in (shapes, [*small.values()]))
    return Case(labels, ADAM, pose, pose_small)


def many(settings: Settings) -> list[Record]:
    """One step of many arrays: Adam, float32; with --sizes, of 1,000 arrays each."""
    lists = {f"1,000 x {size:,}": partial(equal, 1_000, size) for size in settings.sizes} or MANY
    records = []
    for name, shapes_of in tracked("many", [*lists.items()]):
        shapes = shapes_of()
        peers = [c for c in PEERS if c is not TORCH_COMPILED or len(shapes) <= MOST_COMPILED]
        contenders = (SCHUSS, ONE_THREAD, IN_PLACE, TEXTBOOK, *peers)
        records += compare(many_case(name, shapes), contenders, BOTH_LIMITS, settings.rounds)
    return records


LAYOUTS: dict[str, Callable[[int], Array]] = {
    "C": lambda n: ordinary(n, n),
    "transposed": lambda n: ordinary(n, n).T,
    "every second column": lambda n: ordinary(n, 2 * n)[:, ::2],
    "3 columns": lambda n: ordinary(n * n // 3 + 1, 3),
    "3 columns of 4": lambda n: ordinary(n * n // 3 + 1, 4)[:, :3],
}


@schuss.threads(1)
def layout(settings: Settings) -> list[Record]:
    """One step of a square matrix, laid out in several ways: Adam, float32, one thread."""
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
            partial(pose, param, grad, n),
            partial(pose, param, grad, min(n, 301)),
        )
        for n in settings.sizes or (4_096,)
        for param, grad in pairs
    ]
    yardsticks = {**YARDSTICKS, "equal layouts": equal_layouts}
    return compare_all("layout", cases, settings, CONTENDERS, yardsticks)


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
    "rules": rules,
    "many": many,
    "whole": whole,
    "dtypes": dtypes,
    "loop": loop,
    "torch_loop": torch_loop,
    "sklearn": sklearn,
    "train": train,
    "layout": layout,
    "rows": rows,
    "average": average,
    "batches": batches,
    "checkpoints": checkpoints,
    "mapped": mapped,
    "files": files,
    "mpi": mpi,
    "overhead": overhead,
    "startup": startup,
}

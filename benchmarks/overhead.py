"""What a call costs apart from its arithmetic: on arrays so small that nothing else matters."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import schuss
from benchmarks.contenders import (
    ADAM,
    FURTHER_RULES,
    IN_PLACE,
    ONE_THREAD,
    RULES,
    SCHUSS,
    YARDSTICKS,
)
from benchmarks.harness import (
    Array,
    Case,
    Contender,
    Problem,
    Record,
    Rounds,
    Rule,
    Settings,
    Step,
    check_values,
    compare,
    interleave,
    line,
    ordinary,
    settle,
    tracked,
)
from benchmarks.peers import PEERS
from benchmarks.tasks import Peer, Work, contend

SIZE = 64
"""Elements an array."""
ARRAYS, MANY_ARRAYS = 20, 10_000
STEPS = 1_000
"""An epoch of `fit`: its beginning and end do not matter."""
ONE, MANY = "one array", f"{ARRAYS} arrays"
FIT, CONSTRUCTION = "a step of fit", f"construction, {MANY_ARRAYS:,} arrays"


def kernel(problem: Problem, **hyperparameters: float) -> Step:
    """Call the rule's kernel on the problem's arrays and states."""
    rule = problem.rule
    function = getattr(schuss.kernels, rule.reference.__name__)
    (param,), (grad,), (states,) = problem.params, problem.grads, problem.states
    update = partial(function, param, grad, *states, **hyperparameters)
    if not rule.counts_steps:
        return update
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        update(step=t)

    return step


def fused_dict(problem: Problem, **hyperparameters: float) -> Step:
    """Step a dict of arrays."""
    params, grads = (
        {f"array {i}": array for i, array in enumerate(arrays)}
        for arrays in (problem.params, problem.grads)
    )
    return partial(problem.rule.optimizer(params, **hyperparameters).step, grads)


KERNELS = Contender(
    "schuss.kernels", {rule.name: kernel for rule in (*RULES, *FURTHER_RULES)}, exact=True
)
DICTS = Contender("schuss, dict", {ADAM.name: fused_dict}, exact=True)


def small_steps(size: int, rounds: Rounds) -> list[Record]:
    """Steps of one array by each rule, and of a dict of arrays."""
    kinds: list[tuple[str, Rule, int, Sequence[Contender]]] = [
        *((ONE, rule, 1, (SCHUSS, KERNELS, IN_PLACE)) for rule in (*RULES, *FURTHER_RULES)),
        (MANY, ADAM, ARRAYS, (SCHUSS, DICTS, ONE_THREAD, IN_PLACE, *PEERS)),
    ]

    def pose(rule: Rule, count: int) -> Problem:
        return Problem(rule, *([ordinary(size) for _ in range(count)] for _ in range(2)))

    records = []
    for work, rule, count, contenders in tracked("overhead", kinds):
        make = partial(pose, rule, count)
        case = Case({"work": work, "rule": rule.name, "size": size}, rule, make, make)
        records += compare(case, contenders, YARDSTICKS, rounds)
    return records


class Training(NamedTuple):
    """A training whose loss costs next to nothing."""

    size: int

    def run(self, by: Callable[..., object]) -> Array:
        """Train, and return the parameters."""
        param, grad = ordinary(self.size), ordinary(self.size)
        optimizer = schuss.Adam(param)
        by(lambda param, x: (0.0, grad), param, optimizer, np.zeros((STEPS, 1), np.float32))
        return param

    def seconds_a_step(self, by: Callable[..., object]) -> float:
        settle()
        start = perf_counter()
        self.run(by)
        return (perf_counter() - start) / STEPS


def loop_of_fit(loss_and_grad: Any, param: Array, optimizer: Any, x: Array) -> None:
    """Train as `schuss.fit` says that it does."""
    for batch in schuss.minibatches(x, batch_size=1, rng=0):
        _, grad = loss_and_grad(param, batch)
        optimizer.step(grad)


BY_HAND, BY_FIT = "the loop by hand", "schuss.fit"
TRAINERS: Mapping[str, Callable[..., object]] = {
    BY_HAND: loop_of_fit,
    BY_FIT: partial(schuss.fit, batch_size=1, rng=0, progress=False),
}


def fit(size: int, rounds: Rounds) -> list[Record]:
    """A step of `schuss.fit`, and one of the same loop; `own` is the difference."""
    training = Training(size)
    expected = training.run(loop_of_fit)
    for name, by in TRAINERS.items():
        check_values(f"{name}: the parameters", training.run(by), expected, exact=True)
    measures = {name: partial(training.seconds_a_step, by) for name, by in TRAINERS.items()}
    times = interleave(measures, rounds)
    own = float(np.median(times[BY_FIT] - times[BY_HAND])) * 1e6
    labels = {"work": FIT, "rule": ADAM.name, "size": size}
    lines = [line(labels, name, times, "microseconds", [BY_HAND]) for name in times]
    return [*lines[:-1], {**lines[-1], "own_microseconds": own}]


class Parameters(NamedTuple):
    """Parameters to make an optimizer of."""

    arrays: Sequence[Array]

    def check(self, name: str, work: Work) -> None:
        """Raise WrongResultError unless the optimizer has all parameters."""
        (group,) = work().param_groups
        for mine, given in zip(group["params"], self.arrays, strict=True):
            check_values(f"{name}: a parameter", np.asarray(mine), given, exact=True)

    def timed(self, work: Work) -> Work:
        return work


def torch_adam(parameters: Parameters) -> Work:
    torch = import_module("torch")
    return partial(torch.optim.Adam, list(map(torch.from_numpy, parameters.arrays)), fused=True)


def zeros(parameters: Parameters) -> Work:
    return lambda: [(np.zeros_like(a), np.zeros_like(a)) for a in parameters.arrays]


MAKERS = (
    Peer[Parameters]("schuss", lambda parameters: partial(schuss.Adam, list(parameters.arrays))),
    Peer("torch fused, no moments yet", torch_adam, "torch"),
)
MOMENTS = Peer("moments alone", zeros)


def construction(size: int, rounds: Rounds) -> list[Record]:
    """The construction of an optimizer."""

    def pose(count: int) -> Parameters:
        return Parameters([ordinary(size) for _ in range(count)])

    labels = {"work": CONSTRUCTION, "rule": ADAM.name, "size": size}
    sizes = (ARRAYS, MANY_ARRAYS)
    return contend(labels, pose, sizes, MAKERS, [MOMENTS], rounds, unit="microseconds")


def overhead(settings: Settings) -> list[Record]:
    """A call's own cost: small arrays, kernels, fit, and making an optimizer; float32."""
    return [
        record
        for size in settings.sizes or (SIZE,)
        for part in (small_steps, fit, construction)
        for record in part(size, settings.rounds)
    ]

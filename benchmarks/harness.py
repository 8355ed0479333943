"""How a problem is posed to contenders: each is checked, then all are timed in turn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import repeat
from time import perf_counter, process_time, sleep
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

import schuss

DType: TypeAlias = Literal["float32", "float64"]
Array: TypeAlias = npt.NDArray[np.float32 | np.float64]
Step: TypeAlias = Callable[[], None]
Run: TypeAlias = Callable[[int], None]
"""Makes as many steps as it is told."""
Record: TypeAlias = dict[str, Any]
"""What one contender did on one problem: a line of a table."""
Times: TypeAlias = Mapping[str, npt.NDArray[np.float64]]
"""The seconds of each contender, by round."""

_Case = TypeVar("_Case")

LIMITS = LIMIT, LIMIT_OF_ONE = "limit", "limit, 1 thread"

CHECK_SIZE = 37
CHECK_STEPS = 5
CHECK_ULPS = 32
TINY_GRADIENT = 1e-8
"""About eps: where gradients are as small, it shows who leaves eps out or adds it elsewhere."""

CLOCK_SECONDS = 0.002
"""A measurement lasts at least this long, so that the clock's own time vanishes in it."""
COLD_SECONDS = 0.5
"""What the caches held before, and memory that the system took back, matter nothing to a step as
long as this."""
QUIET_SECONDS, QUIET_SHARE, SETTLE_SECONDS = 0.005, 0.2, 2.0
"""A process is quiet if it used no more than this share of a processor for so many seconds; it is
given SETTLE_SECONDS to become so."""
SLOW_SECONDS, SLOW_ROUNDS = 2.0, 3
"""Who takes so long takes part in the first rounds only: a benchmark is to end the same day."""


class WrongResultError(Exception):
    """A contender does not compute what it is timed for."""


@dataclass(frozen=True)
class Rule:
    """An update rule, and the hyperparameters that every contender uses."""

    name: str
    optimizer: type[schuss.optimizers.Optimizer]
    reference: Callable[..., None]
    states: int
    hyperparameters: Mapping[str, float]
    counts_steps: bool = False

    @property
    def arrays_moved(self) -> int:
        """The parameter and each state are read and written, the gradient is read."""
        return 2 * (1 + self.states) + 1


@dataclass(frozen=True)
class Problem:
    """Arrays for contenders to work on, in place; all may work on the same ones in turn."""

    rule: Rule
    params: Sequence[Array]
    grads: Sequence[Array]
    optimizer: schuss.optimizers.Optimizer = field(init=False)
    states: Sequence[Sequence[Array]] = field(init=False)
    """For each parameter its state arrays, those of the optimizer: who works on them too has the
    same place in memory."""
    write_backs: list[Callable[[], None]] = field(init=False, default_factory=list)
    """What brings results to the params: contenders that keep them elsewhere add to it."""

    def __post_init__(self) -> None:
        optimizer = self.rule.optimizer(one_or_list(self.params))
        by_name = optimizer.state.values()
        states = [by_name] if len(self.params) == 1 else list(zip(*by_name, strict=True))
        object.__setattr__(self, "optimizer", optimizer)
        object.__setattr__(self, "states", [tuple(arrays) for arrays in states])

    @property
    def bytes_moved(self) -> int:
        return self.rule.arrays_moved * sum(p.nbytes for p in self.params)


Yardstick: TypeAlias = Callable[[Problem], Run]
"""What contenders are compared with: timed with them, but computes something else."""


@dataclass(frozen=True)
class Contender:
    """Someone who can make steps: for each rule, a function from a problem to its step.

    The function gets the problem and the rule's hyperparameters; the step updates the problem's
    params in place from whatever its grads then hold, and leaves the grads as they are.
    """

    name: str
    steps: Mapping[str, Callable[..., Step]]
    exact: bool = False
    present: Callable[[], bool] = lambda: True
    dtypes: Sequence[str] = get_args(DType)
    one_thread: bool = False
    setting: Callable[[], AbstractContextManager[object]] = nullcontext
    """What it runs within: its thread count, its level."""
    eps_elsewhere: str = ""
    """Where it adds eps, if not to the corrected root: it is not checked where eps matters."""

    def knows(self, case: "Case") -> bool:
        return case.rule.name in self.steps and case.dtype in self.dtypes

    def prepare(self, problem: Problem) -> Step:
        return self.steps[problem.rule.name](problem, **problem.rule.hyperparameters)


@dataclass(frozen=True)
class Case:
    """A line of work: how to pose what is timed, and something small to check who may take part."""

    labels: Mapping[str, object]
    rule: Rule
    pose: Callable[[], Problem]
    pose_small: Callable[[], Problem]
    dtype: DType = "float32"


@dataclass(frozen=True)
class Rounds:
    """How many rounds to measure: as many as the seconds allow, within limits."""

    least: int = 7
    most: int = 41
    seconds: float = 8.0

    def __iter__(self) -> Iterator[int]:
        start = perf_counter()
        for done in range(self.most):
            if done >= self.least and perf_counter() - start > self.seconds:
                return
            yield done


@dataclass(frozen=True)
class Settings:
    """What the user may choose."""

    sizes: Sequence[int] = ()
    rounds: Rounds = field(default_factory=Rounds)


def ordinary(*shape: int, dtype: DType = "float32") -> Array:
    """Return values in [0.5, 1.5): however often added up or averaged, they stay ordinary numbers.

    Being positive, they can also be added to an average of squares, as the limit does.
    """
    values: Array = np.random.default_rng(0).random(shape, dtype)
    values += 0.5
    return values


def one_or_list(arrays: Sequence[Array]) -> Array | list[Array]:
    """Return what a user would give: an array, where there is but one."""
    return arrays[0] if len(arrays) == 1 else list(arrays)


def check(contender: Contender, problem: Problem) -> None:
    """Compare a few steps with the reference; gradients differ from step to step.

    Every second gradient is about as small as eps.

    Raises
    ------
    WrongResultError
        If a parameter is not what the reference computes: exactly, or within rounding.
    """
    rule, rng = problem.rule, np.random.default_rng(1)
    twins = [
        (param.copy(), *map(np.zeros_like, states))
        for param, states in zip(problem.params, problem.states, strict=True)
    ]
    with contender.setting():
        step = contender.prepare(problem)
        for t in range(1, CHECK_STEPS + 1):
            count = {"step": t} if rule.counts_steps else {}
            for grad, (param, *states) in zip(problem.grads, twins, strict=True):
                grad[...] = rng.standard_normal(grad.shape)
                if contender.eps_elsewhere:
                    grad += np.copysign(1, grad)
                else:
                    grad[..., ::2] *= TINY_GRADIENT
                rule.reference(param, grad, *states, **count, **rule.hyperparameters)
            step()
    for write_back in problem.write_backs:
        write_back()
    for param, (expected, *_) in zip(problem.params, twins, strict=True):
        what = f"{contender.name}: {rule.name} on {param.dtype}"
        check_values(what, param, expected, exact=contender.exact)


def check_values(
    what: str, values: npt.NDArray[Any], expected: npt.NDArray[Any], *, exact: bool
) -> None:
    """Raise WrongResultError unless values are as expected: exactly, or within rounding."""
    tolerance = 0.0 if exact else CHECK_ULPS * np.finfo(expected.dtype).eps
    if not np.allclose(values, expected, rtol=tolerance, atol=tolerance):
        worst = np.max(np.abs(values - expected))
        raise WrongResultError(
            f"{what} is {worst:.3g} off the reference, expected at most {tolerance:.3g}"
        )


def repeated(step: Step) -> Run:
    """Return what makes many steps, at the least cost a loop in Python has."""

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            step()

    return run


def settle() -> None:
    """Wait until no thread of this process works: some spin for a while after their work."""
    started = perf_counter()
    while perf_counter() - started < SETTLE_SECONDS:
        before = process_time()
        sleep(QUIET_SECONDS)
        if process_time() - before < QUIET_SHARE * QUIET_SECONDS:
            return


class Stopwatch:
    """Measures the seconds a step takes, over enough calls for the clock, when all is quiet."""

    def __init__(
        self,
        run: Run,
        setting: Callable[[], AbstractContextManager[object]] = nullcontext,
        seconds: float = CLOCK_SECONDS,
    ) -> None:
        self.run, self.setting, self.calls = run, setting, 1
        with setting():
            run(1)
            while (elapsed := self._clock()) < seconds:
                self.calls *= 2
        self.warm_up = elapsed / self.calls < COLD_SECONDS

    def __call__(self) -> float:
        with self.setting():
            settle()
            if self.warm_up:
                self.run(self.calls)
            return self._clock() / self.calls

    def _clock(self) -> float:
        start = perf_counter()
        self.run(self.calls)
        return perf_counter() - start


def interleave(
    measures: Mapping[str, Callable[[], float]], rounds: Rounds
) -> dict[str, npt.NDArray[np.float64]]:
    """Measure all in turn, round after round; return each one's seconds by round.

    Those who turn out to be slow drop out after the first rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in measures}
    for done in rounds:
        for name, measure in measures.items():
            if done < SLOW_ROUNDS or times[name][0] < SLOW_SECONDS:
                times[name].append(measure())
    return {name: np.array(seconds) for name, seconds in times.items()}


def time_in_turn(runs: Mapping[str, Run], rounds: Rounds) -> Times:
    """Return the seconds of one step of each, by round."""
    return interleave({name: Stopwatch(run) for name, run in runs.items()}, rounds)


def compare(
    case: Case,
    contenders: Sequence[Contender],
    yardsticks: Mapping[str, Yardstick],
    rounds: Rounds,
) -> list[Record]:
    """Check the contenders who know the rule, time them next to the yardsticks, tell how each did.

    Shares are of the limit of as many threads at most, where it is there; ratios are to the other
    yardsticks and to the first contender.
    """
    entrants = {c.name: c for c in contenders if c.knows(case) and c.present()}
    for contender in entrants.values():
        check(contender, case.pose_small())
    problem = case.pose()
    stopwatches = {name: Stopwatch(make(problem)) for name, make in yardsticks.items()}
    for name, contender in entrants.items():
        with contender.setting():
            run = repeated(contender.prepare(problem))
        stopwatches[name] = Stopwatch(run, contender.setting)
    times = interleave(stopwatches, rounds)
    rivals = [name for name in yardsticks if name not in LIMITS] + [next(iter(entrants))]

    def limit_of(name: str) -> npt.NDArray[np.float64]:
        limit, of_one = (times.get(each) for each in LIMITS)
        assert limit is not None
        one_thread = name == LIMIT_OF_ONE or (name in entrants and entrants[name].one_thread)
        if of_one is None or name == LIMIT:
            return limit
        # Whoever has more threads need not use them, and for few elements is faster with one.
        return of_one if one_thread else np.minimum(limit, of_one)

    return [
        {
            **line(case.labels, name, times, "microseconds", rivals),
            "gigabytes_per_second": problem.bytes_moved / float(np.median(seconds)) / 1e9,
            "share_of_limit": ratio(limit_of(name), seconds),
        }
        for name, seconds in times.items()
    ]


def line(
    labels: Mapping[str, object], name: str, times: Times, unit: str, rivals: Sequence[str] = ()
) -> Record:
    """Return how one did in a case, by its own time and next to its rivals."""
    return {
        "case": dict(labels),
        "contender": name,
        **summary(times[name], unit),
        "times": {rival: ratio(times[name], times[rival]) for rival in rivals},
    }


def ratio(seconds: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """Return the median over the ratios within a round: what slows a whole round cancels out."""
    both = min(len(seconds), len(others))  # the slow are there in the first rounds only
    return float(np.median(seconds[:both] / others[:both]))


def summary(seconds: npt.NDArray[np.float64], unit: str) -> Record:
    """Return the median and the quartiles in milli- or microseconds, and over how many rounds."""
    scale = {"milliseconds": 1e3, "microseconds": 1e6}[unit]
    low, median, high = (np.quantile(seconds, [0.25, 0.5, 0.75]) * scale).tolist()
    return {unit: median, "quartiles": [low, high], "rounds": len(seconds)}


def tracked(name: str, cases: Sequence[_Case]) -> Iterator[_Case]:
    """Yield the cases, with a progress bar where someone looks on."""
    console = Console(stderr=True)
    quiet = not console.is_terminal
    yield from track(cases, name, console=console, transient=True, disable=quiet)

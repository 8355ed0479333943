"""How a problem is posed to contenders: each is checked, then all are timed in turn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from time import perf_counter
from typing import Any, Literal, TypeAlias, TypeVar

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

CHECK_SIZE = 37
CHECK_STEPS = 5
CHECK_ULPS = 32

CLOCK_SECONDS = 0.002
"""A measurement lasts at least this long, so that the clock's own time vanishes in it."""
COLD_SECONDS = 0.5
"""What the caches held before, and memory that the system took back, matter nothing to a step as
long as this."""
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
    states: Sequence[Sequence[Array]] = field(init=False)
    """For each parameter its state arrays: for contenders that do not bring their own."""

    def __post_init__(self) -> None:
        # Placed in memory as schuss places its own: the limit is to have no handicap.
        by_name = self.rule.optimizer(list(self.params)).state.values()
        states = list(zip(*by_name, strict=True))
        object.__setattr__(self, "states", states)

    @property
    def bytes_moved(self) -> int:
        return self.rule.arrays_moved * sum(p.nbytes for p in self.params)


Yardstick: TypeAlias = Callable[[Problem], Run]
"""What contenders are compared with: timed with them, but computes something else."""


@dataclass(frozen=True)
class Contender:
    """Someone who can make steps: for each rule, a function from a problem to its step.

    The function gets the problem and the rule's hyperparameters; the step updates the problem's
    params in place from whatever its grads then hold.
    """

    name: str
    steps: Mapping[str, Callable[..., Step]]
    exact: bool = False

    def prepare(self, problem: Problem) -> Step:
        return self.steps[problem.rule.name](problem, **problem.rule.hyperparameters)


@dataclass(frozen=True)
class Case:
    """A line of work: how to pose it in any size, and the size to time it in."""

    labels: Mapping[str, str | int]
    rule: Rule
    pose: Callable[[int], Problem]
    size: int
    check_size: int = CHECK_SIZE


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


def check(contender: Contender, problem: Problem) -> None:
    """Compare a few steps with the reference; gradients differ from step to step.

    Raises
    ------
    WrongResultError
        If a parameter is not what the reference computes: exactly, or within rounding.
    """
    rule, rng = problem.rule, np.random.default_rng(1)
    step = contender.prepare(problem)
    twins = [
        (param.copy(), *map(np.zeros_like, states))
        for param, states in zip(problem.params, problem.states, strict=True)
    ]
    for t in range(1, CHECK_STEPS + 1):
        count = {"step": t} if rule.counts_steps else {}
        for grad, (param, *states) in zip(problem.grads, twins, strict=True):
            grad[...] = rng.standard_normal(grad.shape)
            rule.reference(param, grad, *states, **count, **rule.hyperparameters)
        step()
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


class Stopwatch:
    """Measures the seconds a step takes, over enough calls for the clock."""

    def __init__(self, run: Run) -> None:
        self.run, self.calls = run, 1
        run(1)
        while (elapsed := self._clock()) < CLOCK_SECONDS:
            self.calls *= 2
        self.warm_up = elapsed / self.calls < COLD_SECONDS

    def __call__(self) -> float:
        if self.warm_up:
            self.run(1)
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

    Shares and ratios are to the yardsticks and to the first contender.
    """
    entrants = [c for c in contenders if case.rule.name in c.steps]
    for contender in entrants:
        check(contender, case.pose(case.check_size))
    problem = case.pose(case.size)
    runs = {name: make(problem) for name, make in yardsticks.items()}
    runs |= {c.name: repeated(c.prepare(problem)) for c in entrants}
    times = time_in_turn(runs, rounds)
    rivals = [name for name in (*yardsticks, entrants[0].name) if name != "limit"]
    return [
        {
            **line(case.labels, name, times, "microseconds", rivals),
            "gigabytes_per_second": problem.bytes_moved / float(np.median(seconds)) / 1e9,
            "share_of_limit": ratio(times["limit"], seconds),
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

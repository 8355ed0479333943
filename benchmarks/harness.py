"""The harness: it poses a problem to contenders, checks each, and times all in turn."""

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
from schuss._arrays import components

DType: TypeAlias = Literal["float32", "float64"]
Array: TypeAlias = npt.NDArray[Any]
Step: TypeAlias = Callable[[], None]
Run: TypeAlias = Callable[[int], None]
"""Makes the given number of steps."""
Record: TypeAlias = dict[str, Any]
"""The figures of one contender in one case: a row of a table."""
Times: TypeAlias = Mapping[str, npt.NDArray[np.float64]]
"""The seconds of each contender, by round."""

_Case = TypeVar("_Case")

LIMITS = LIMIT, LIMIT_OF_ONE = "limit", "limit, 1 thread"
PLAINS = PLAIN, PLAIN_OF_ONE = "plain float32 step", "plain float32 step, 1 thread"
"""Yardsticks that may move a different number of bytes: only ratios to their times count."""
EIGHT_BITS = "8bit"
FORMAT_OPTIONS = ("state_dtype", "master", "round_params")
"""Options that tell in what formats an optimizer keeps its numbers."""

CHECK_STEPS = 5
CHECK_ULPS, CHECK_ULPS_OF_HALVES = 32, 4
"""The tolerance for 16-bit formats is smaller, because their spacing is larger."""
TINY_GRADIENT = 1e-8
"""Close to eps: such gradients show whether a contender omits eps or adds it elsewhere."""
MEAN_OFF, TYPICALLY_OFF, MOST_OFF = 0.001, 0.03, 0.15
"""How far a training with state of 8 bits may be from one with float32, relative to the root mean
square of the change of all parameters. Codes of 8 bits are about a hundredth of a block's maximum
apart, so single parameters deviate by that much, but not all in the same direction."""
STATE_BYTES = 1.05
"""The bytes of a contender's 8-bit state, relative to those of schuss, at most."""

CLOCK_SECONDS = 0.002
"""The shortest measurement: the cost of reading the clock is negligible in it."""
COLD_SECONDS = 0.5
"""A step of this length is long enough that cold caches and page faults do not matter."""
QUIET_SECONDS, QUIET_SHARE, SETTLE_SECONDS = 0.005, 0.2, 2.0
"""A process is idle if it used at most this share of a processor for QUIET_SECONDS. The harness
waits at most SETTLE_SECONDS for that."""
SLOW_SECONDS, SLOW_ROUNDS = 2.0, 3
"""A contender this slow runs in the first rounds only, to bound the duration of the benchmark."""


class WrongResultError(Exception):
    """A contender does not compute what it is timed for."""


@dataclass(frozen=True)
class Rule:
    """An update rule, and the hyperparameters that every contender uses."""

    name: str
    optimizer: type[schuss.optimizers.Optimizer]
    reference: Callable[..., None]
    hyperparameters: Mapping[str, float]
    counts_steps: bool = False


@dataclass(frozen=True)
class Problem:
    """Arrays that contenders update in place, one contender after another."""

    rule: Rule
    params: Sequence[Array]
    grads: Sequence[Array]
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    """Options of the step, as keyword arguments of a schuss optimizer."""
    more_grads: Sequence[Sequence[Array]] = field(default=(), kw_only=True)
    """Gradients of further mini-batches, each for all params: the step takes the sum of all."""
    optimizer: schuss.optimizers.Optimizer = field(init=False)
    states: Sequence[Sequence[Array]] = field(init=False)
    """For each parameter its state arrays. These are the optimizer's, so all contenders work in the
    same memory. So are averages and copies, if the options ask for them. None for 8 bits."""
    averages: Sequence[Array] = field(init=False)
    copies: Sequence[Array] = field(init=False)
    norm: Array = field(init=False)
    """Receives the norm of the last gradients, if the options clip by it."""
    state_bytes: Array = field(init=False)
    """Receives the size of the contender's state, if it has 8 bits."""
    write_backs: list[Callable[[], None]] = field(init=False, default_factory=list)
    """Called to copy results into these arrays, for contenders that keep their own."""

    def __post_init__(self) -> None:
        optimizer = self.rule.optimizer(one_or_list(self.params), **self.options)

        count = len(self.params)
        trees = () if self.in_8_bits else optimizer.state.values()
        states = list(zip(*(_list_of(tree, count) for tree in trees), strict=True))
        for name, value in {
            "optimizer": optimizer,
            "states": states or [()] * count,
            "averages": _list_of(optimizer.average, count),
            "copies": _list_of(optimizer.copies, count),
            "norm": np.zeros((), np.float32),
            "state_bytes": np.zeros((), np.int64),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def in_8_bits(self) -> bool:
        """Whether the state has 8 bits an element. Each contender then has its own."""
        return bool(self.options.get("state_dtype") == EIGHT_BITS)

    @property
    def plain(self) -> bool:
        """Whether the problem is the rule alone, in a single compute dtype."""
        dtypes = {array.dtype.name for array in (*self.params, *self.grads)}
        alone = not self.options and not self.more_grads
        return alone and len(dtypes) == 1 and dtypes <= set(get_args(DType))

    @property
    def bytes_moved(self) -> int:
        """The bytes that a step must read and write.

        A norm needs a pass over the gradients of its own. The gradients of a further mini-batch
        come after the sum of the earlier ones was written.
        """

        def size(arrays: Sequence[Array]) -> int:
            return sum(array.nbytes for array in arrays)

        passes = 1 + ("clip_norm" in self.options) + bool(self.options.get("clear_grads"))
        passes += 2 * len(self.more_grads)
        return (
            2 * (size([*self.params, *self.averages]) + self.optimizer.state_bytes)
            + passes * size(self.grads)
            + sum(map(size, self.more_grads))
            + size(self.copies)
        )

    def keeper(self) -> Step:
        """Return a function that restores the present values of params, states and gradients.

        State of 8 bits goes on as it is: no value of it changes the work of a step.
        """
        states = [state for of_param in self.states for state in of_param]
        # The gradients come last, as they would from a backward pass.
        arrays = [*self.params, *states, *self.grads]
        kept = [array.copy() for array in arrays]

        def restore() -> None:
            for array, values in zip(arrays, kept, strict=True):
                np.copyto(array, values)

        return restore


Yardstick: TypeAlias = Callable[[Problem], Run]
"""A baseline that is timed with the contenders but computes something else."""


@dataclass(frozen=True)
class Contender:
    """An implementation of steps: for each rule, a function from a problem to its step.

    The function gets the problem and the rule's hyperparameters; the step updates the problem's
    params in place from the present grads, with the options of the problem.
    It leaves the grads as they are, unless the case restores them.
    """

    name: str
    steps: Mapping[str, Callable[..., Step]]
    exact: bool = False
    present: Callable[[], bool] = lambda: True
    dtypes: Sequence[str] = get_args(DType)
    one_thread: bool = False
    setting: Callable[[], AbstractContextManager[object]] = nullcontext
    """A context to run in: a number of threads, an instruction set."""
    eps_elsewhere: str = ""
    """Where it adds eps, if not to the corrected root; the check then avoids small gradients."""
    instead: Callable[[Problem], Problem] | None = None
    """Returns the problem that it solves in place of the given one, which it does not know."""

    def knows(self, case: "Case") -> bool:
        return case.rule.name in self.steps and case.dtype in self.dtypes

    def own(self, problem: Problem) -> Problem:
        """Return the problem that it solves."""
        return self.instead(problem) if self.instead else problem

    def prepare(self, problem: Problem) -> Step:
        return self.steps[problem.rule.name](problem, **problem.rule.hyperparameters)


@dataclass(frozen=True)
class Case:
    """A case: how to make the problem that is timed, and a small one for the check."""

    labels: Mapping[str, object]
    rule: Rule
    pose: Callable[[], Problem]
    pose_small: Callable[[], Problem]
    dtype: DType = "float32"
    restores: bool = False
    """Whether each turn begins with the original values, because a step changes the work of the
    next one."""
    contenders: Sequence[Contender] = ()
    """Those that take part in this case only."""

    @property
    def title(self) -> str:
        return ", ".join(f"{value}" for value in self.labels.values())


@dataclass(frozen=True)
class Rounds:
    """The number of rounds: what fits in the seconds, between bounds."""

    least: int = 7
    most: int = 41
    seconds: float = 5.0

    def __iter__(self) -> Iterator[int]:
        start = perf_counter()
        for done in range(self.most):
            if done >= self.least and perf_counter() - start > self.seconds:
                return
            yield done


@dataclass(frozen=True)
class Settings:
    """The command's settings."""

    sizes: Sequence[int] = ()
    rounds: Rounds = field(default_factory=Rounds)
    only: str = ""
    """A part of the titles of the cases to run."""


def ordinary(*shape: int, dtype: DType = "float32") -> Array:
    """Return values in [0.5, 1.5): sums and averages of many of them are ordinary numbers too.

    They are positive, so they can also be added to an average of squares, as the memory limit does.
    """
    values: Array = np.random.default_rng(0).random(shape, dtype)
    values += 0.5
    return values


def one_or_list(arrays: Sequence[Array]) -> Array | list[Array]:
    """Return what a user would pass: the list, or the array itself if there is only one."""
    return arrays[0] if len(arrays) == 1 else list(arrays)


def _list_of(tree: Any, count: int) -> list[Array]:
    """Return the arrays of a tree that one_or_list made; none of None."""
    return [] if tree is None else [tree] if count == 1 else list(tree)


def check(contender: Contender, problem: Problem) -> None:
    """Compare a few steps with the reference; gradients differ from step to step.

    Every second gradient is about as small as eps. Contenders whose state has 8 bits are compared
    with a training in float32, unless they are exact, by gradients that differ less.

    Raises
    ------
    WrongResultError
        If a parameter, an average, a copy, a cleared gradient or the norm is not what the reference
        computes: exactly, or within rounding. If state of 8 bits takes more memory than that.
    """
    in_float32 = problem.in_8_bits and not contender.exact
    reference, rng = _reference(problem, in_float32=in_float32), np.random.default_rng(1)
    starts = [param.copy() for param in problem.params]
    all_grads = (problem.grads, *problem.more_grads)
    with contender.setting():
        step = contender.prepare(problem)
        for t in range(1, CHECK_STEPS + 1):
            for grads in all_grads:
                for grad in grads:
                    values = rng.standard_normal(grad.shape)
                    if contender.eps_elsewhere or in_float32:
                        values += np.copysign(1, values)
                    else:
                        values[..., ::2] *= TINY_GRADIENT
                    grad[...] = values / t if in_float32 else values
                reference.accumulate(one_or_list([grad.copy(order="K") for grad in grads]))
            reference.step()
            step()
    for write_back in problem.write_backs:
        write_back()
    who, exact = contender.name, contender.exact
    for what, arrays, tree in (
        (f"{problem.rule.name} on {problem.params[0].dtype}", problem.params, reference.params),
        ("the average", problem.averages, reference.average),
    ):
        all_expected = _list_of(tree, len(problem.params))
        for array, expected, start in zip(arrays, all_expected, starts, strict=bool(arrays)):
            if in_float32:
                start = start.astype(np.float64)
                check_changes(f"{who}: {what}", array - start, expected - start)
            else:
                check_values(f"{who}: {what}", array, expected, exact=exact)
    for copy, param in zip(problem.copies, problem.params, strict=bool(problem.copies)):
        # Copies of the contender's own parameters: rounding to nearest leaves no choice.
        check_values(f"{who}: the copy", copy, param.astype(copy.dtype), exact=True)
    if problem.options.get("clear_grads"):
        for grad in problem.grads:
            check_values(f"{who}: the cleared gradient", grad, np.zeros_like(grad), exact=True)
    if "clip_norm" in problem.options and reference.last is not None:
        norm = np.asarray(reference.last.grad_norm, np.float32)
        check_values(f"{who}: the norm", problem.norm, norm, exact=exact)
    if problem.in_8_bits:
        _check_state_bytes(who, problem)


def _check_state_bytes(who: str, problem: Problem) -> None:
    if not 0 < problem.state_bytes <= STATE_BYTES * problem.optimizer.state_bytes:
        expected = problem.optimizer.state_bytes
        raise WrongResultError(
            f"{who}: its state has {problem.state_bytes:,} bytes, expected about {expected:,}"
        )


def _reference(problem: Problem, *, in_float32: bool) -> schuss.reference.Optimizer:
    """Return the optimizer that does in NumPy what the problem asks for, in arrays of its own."""
    params = [param.copy(order="K") for param in problem.params]
    settings: dict[str, Any] = {**problem.rule.hyperparameters, **problem.options}
    if in_float32:
        params = [param.astype(np.float32) for param in params]
        settings = {name: settings[name] for name in settings if name not in FORMAT_OPTIONS}
    kind = problem.rule.optimizer.__name__.lower()
    return schuss.reference.Optimizer(kind, one_or_list(params), **settings)


def check_changes(
    what: str, changes: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]
) -> None:
    """Raise WrongResultError unless the changes are as state of 8 bits allows.

    The mean is the slope of their regression on the expected ones.
    """
    off, square = changes - expected, np.mean(expected * expected)
    for how, figure, allowed in (
        ("on average", abs(np.mean(off * expected)) / square, MEAN_OFF),
        ("typically", np.sqrt(np.mean(off * off) / square), TYPICALLY_OFF),
        ("at most", np.max(np.abs(off)) / np.sqrt(square), MOST_OFF),
    ):
        if not figure <= allowed:
            raise WrongResultError(
                f"{what} is {how} {figure:.2%} off a training in float32, expected {allowed:.2%}"
            )


def check_values(
    what: str, values: npt.NDArray[Any], expected: npt.NDArray[Any], *, exact: bool
) -> None:
    """Raise WrongResultError unless values are as expected: exactly, or within rounding."""
    values, expected = components(values), components(expected)
    ulps = CHECK_ULPS if expected.dtype.itemsize > 2 else CHECK_ULPS_OF_HALVES
    tolerance = 0.0 if exact else ulps * float(np.spacing(expected.dtype.type(1)))
    values, expected = values.astype(np.float64), expected.astype(np.float64)
    if not np.allclose(values, expected, rtol=tolerance, atol=tolerance):
        worst = np.max(np.abs(values - expected))
        raise WrongResultError(
            f"{what} is {worst:.3g} off the reference, expected at most {tolerance:.3g}"
        )


def repeated(step: Step) -> Run:
    """Return a function that makes many steps with the least overhead of a Python loop."""

    def run(calls: int) -> None:
        for _ in repeat(None, calls):
            step()

    return run


def settle() -> None:
    """Wait until no thread of this process runs: some pools spin for a while after their work."""
    started = perf_counter()
    while perf_counter() - started < SETTLE_SECONDS:
        before = process_time()
        sleep(QUIET_SECONDS)
        if process_time() - before < QUIET_SHARE * QUIET_SECONDS:
            return


class Stopwatch:
    """Measures the seconds of a step in an idle process, over enough calls for the clock.

    If `before` must run before each step, outside the clock, it measures one call.
    """

    def __init__(
        self,
        run: Run,
        setting: Callable[[], AbstractContextManager[object]] = nullcontext,
        seconds: float = CLOCK_SECONDS,
        before: Step | None = None,
    ) -> None:
        self.run, self.setting, self.before, self.calls = run, setting, before, 1
        with setting():
            self._clock()
            while (elapsed := self._clock()) < seconds and before is None:
                self.calls *= 2
        self.warm_up = elapsed / self.calls < COLD_SECONDS

    def __call__(self) -> float:
        with self.setting():
            settle()
            if self.warm_up:
                self._clock()
            return self._clock() / self.calls

    def _clock(self) -> float:
        if self.before is not None:
            self.before()
        start = perf_counter()
        self.run(self.calls)
        return perf_counter() - start


def interleave(
    measures: Mapping[str, Callable[[], float]], rounds: Rounds
) -> dict[str, npt.NDArray[np.float64]]:
    """Measure all in turn, round after round; return the seconds of each by round.

    Slow ones run in the first rounds only.
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
    """Check the contenders that know the rule, time them with the yardsticks, return the figures.

    Shares are of the memory limit with at most the same number of threads, if it was timed. Ratios
    are to the other yardsticks, also with the same number of threads, and to the first contender.
    """
    everyone = (*contenders, *case.contenders)
    entrants = {c.name: c for c in everyone if c.knows(case) and c.present()}
    for contender in entrants.values():
        check(contender, contender.own(case.pose_small()))
    problem = case.pose()
    before = problem.keeper() if case.restores else None
    stopwatches = {
        name: Stopwatch(make(problem), before=before) for name, make in yardsticks.items()
    }
    for name, contender in entrants.items():
        own = contender.own(problem)
        with contender.setting():
            run = repeated(contender.prepare(own))
        restore = before if own is problem or before is None else own.keeper()
        stopwatches[name] = Stopwatch(run, contender.setting, before=restore)
    times = interleave(stopwatches, rounds)
    rivals = [name for name in yardsticks if name not in (*LIMITS, PLAIN_OF_ONE)]
    rivals.append(next(iter(entrants)))
    of_one_thread = {LIMIT_OF_ONE, PLAIN_OF_ONE, *(c.name for c in everyone if c.one_thread)}

    def limit_of(name: str) -> npt.NDArray[np.float64]:
        limit, of_one = (times.get(each) for each in LIMITS)
        assert limit is not None
        if of_one is None or name == LIMIT:
            return limit
        # A contender with several threads may use only one, which is faster for few elements.
        return of_one if name in of_one_thread else np.minimum(limit, of_one)

    def figures(name: str) -> Record:
        record = line(case.labels, name, times, "microseconds", rivals)
        if name in of_one_thread and PLAIN_OF_ONE in times:
            record["times"][PLAIN] = ratio(times[name], times[PLAIN_OF_ONE])
        if name in PLAINS or (name in entrants and entrants[name].instead):
            return record  # other bytes than the problem's
        speed = problem.bytes_moved / float(np.median(times[name])) / 1e9
        share = ratio(limit_of(name), times[name])
        return {**record, "gigabytes_per_second": speed, "share_of_limit": share}

    return [figures(name) for name in times]


def compare_all(
    name: str,
    cases: Sequence[Case],
    settings: Settings,
    contenders: Sequence[Contender],
    yardsticks: Mapping[str, Yardstick],
) -> list[Record]:
    """Compare the contenders in each case that the settings choose."""
    return [
        record
        for case in tracked(name, [case for case in cases if settings.only in case.title])
        for record in compare(case, contenders, yardsticks, settings.rounds)
    ]


def line(
    labels: Mapping[str, object], name: str, times: Times, unit: str, rivals: Sequence[str] = ()
) -> Record:
    """Return the figures of one contender in a case, with ratios to its rivals."""
    return {
        "case": dict(labels),
        "contender": name,
        **summary(times[name], unit),
        "times": {rival: ratio(times[name], times[rival]) for rival in rivals},
    }


def ratio(seconds: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    """Return the median of the ratios within a round: a slow round slows both."""
    both = min(len(seconds), len(others))  # slow contenders run in the first rounds only
    return float(np.median(seconds[:both] / others[:both]))


def summary(seconds: npt.NDArray[np.float64], unit: str) -> Record:
    """Return the median and the quartiles in milli- or microseconds, and the number of rounds."""
    scale = {"milliseconds": 1e3, "microseconds": 1e6}[unit]
    low, median, high = (np.quantile(seconds, [0.25, 0.5, 0.75]) * scale).tolist()
    return {unit: median, "quartiles": [low, high], "rounds": len(seconds)}


def tracked(name: str, cases: Sequence[_Case]) -> Iterator[_Case]:
    """Yield the cases, with a progress bar on a terminal."""
    console = Console(stderr=True)
    quiet = not console.is_terminal
    yield from track(cases, name, console=console, transient=True, disable=quiet)

"""Schedules: their formulas, where t starts, and the rates of PyTorch and optax."""

import copy
import math
import pickle
import re
import types
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import schuss
from schuss.schedules import (
    Chain,
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    InverseTime,
    Linear,
    Manual,
    OneCycle,
    PerEpoch,
    Polynomial,
    ReduceOnPlateau,
    Schedule,
    Staircase,
    WarmUp,
    chain,
)
from support.optimizers import every_optimizer, make_optimizer

FROZEN: list[Schedule] = [
    InverseTime(0.2),
    Exponential(0.3, base=0.9),
    InverseSqrt(0.3, k=0.7),
    Staircase(0.3, every=7, factor=0.3),
    Manual({1: 0.1, 8: 0.3, 20.5: 0.01}),
    Constant(0.1),
    Linear(0.1, 0.3, steps=13),
    Polynomial(0.3, 0.1, steps=13, power=1.7),
    Cosine(0.3, steps=13, end=0.1),
    CosineRestarts(0.3, steps=3, end=0.1),
    CosineRestarts(0.3, steps=3, end=0.1, factor=2, decay=0.7),
    OneCycle(0.3, steps=37),
    OneCycle(0.3, steps=37, anneal="linear", three_phase=True),
    WarmUp(0.3, steps=7, start=0.1),
    WarmUp(Cosine(0.3, steps=13), steps=7),
    chain([InverseTime(0.2), 0.3, Linear(0.3, 0.0, steps=5)], [5, 11]),
    Exponential(0.3).per_epoch(4),
]
EVERY_FROZEN = pytest.mark.parametrize("schedule", FROZEN, ids=repr)


def evaluate(expression: str, **names: Any) -> Any:
    """Return the value of an expression that may use the names of `schuss.schedules`."""
    numbers = {"nan": math.nan, "inf": math.inf}
    return eval(expression, {**vars(schuss.schedules), **numbers, **names})


def plateau() -> ReduceOnPlateau:
    """Return a plateau schedule that has reduced its rate and is cooling down."""
    schedule = ReduceOnPlateau(0.5, factor=0.5, patience=1, cooldown=4)
    for cost in (3.0, 2.0, 2.0, 2.0, 2.0):
        schedule.update(cost)
    assert (schedule.lr, schedule.best, schedule.cooling) == (0.25, 2.0, 3)
    return schedule


def rates(schedule: Schedule, steps: int) -> npt.NDArray[np.float64]:
    return schedule(range(1, steps + 1))


# The numbers of each formula.


# Schedules, values of t, and the rates at them.
WORKED = [
    ("InverseTime(lr=0.2, rate=1.0)", [1, 2, 3, 4], [0.1, 0.2 / 3, 0.05, 0.04]),
    ("InverseTime(0.2, rate=0.5)", [6], [0.05]),
    ("Exponential(lr=8.0, base=0.5)", [1, 2, 3], [4, 2, 1]),
    ("Exponential(lr=1.0)", [10], [0.5987369392383789]),
    ("InverseSqrt(lr=0.5, k=3.0)", [1, 4, 9], [1.5, 0.75, 0.5]),
    ("Staircase(0.8, every=3)", range(1, 8), [0.8] * 3 + [0.4] * 3 + [0.2]),
    ("Staircase(8.0, every=1, factor=0.25)", [1, 2, 3], [8, 2, 0.5]),
    (
        "Manual({10: 0.01, 1: 0.1, 12: 0.5})",
        [1, 9.9, 10, 11.5, 12, 10**9],
        [0.1] * 2 + [0.01] * 2 + [0.5] * 2,
    ),
    ("Linear(1.0, 0.0, steps=4)", [1, 2, 3, 5, 6], [1, 0.75, 0.5, 0, 0]),
    ("Polynomial(1.0, 0.5, steps=4, power=2)", [1, 2, 3], [1, 0.78125, 0.625]),
    ("Cosine(1.0, steps=4)", [1, 2, 3, 5, 6], [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0, 0]),
    ("Constant(0.1)", [1, 1000], [0.1, 0.1]),
    # Cycles of 2, 6 and 18 steps from t = 1, 3, 9 and 27; half of each is half way down.
    ("CosineRestarts(9, 2, 1, factor=3, decay=0.5)", [1, 2, 3, 6, 9, 18], [9, 5, 5, 3, 3, 2]),
    ("OneCycle(0.5, steps=100)", [1, 30, 100, 101, 10**6], [0.02, 0.5, 2e-6, 2e-6, 2e-6]),
    # With one step to rise in, or less, the first is the peak or is over already.
    ("OneCycle(0.5, steps=10, rise=0.1)", [1], [0.5]),
    ("OneCycle(0.5, steps=1)", [1], [2e-6]),
]


@pytest.mark.parametrize(("schedule", "t", "expected"), WORKED)
def test_a_schedule_has_the_worked_rates(schedule: str, t: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(evaluate(schedule)(t), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("start", "end"), [(0.3, 0.1), (0.1, 0.3), (0.1, 0.7), (1e-9, 0.9)])
@pytest.mark.parametrize("steps", [1, 3, 7, 49, 1000])
def test_a_ramp_has_exactly_its_start_and_its_end_and_stays_there(
    start: float, end: float, steps: int
) -> None:
    ramps = [
        Linear(start, end, steps),
        Polynomial(start, end, steps, power=2.3),
        Cosine(start, steps, end),
        WarmUp(end, steps, start),
    ]
    for ramp in ramps:
        assert ramp([1, steps + 1, steps + 2, 10 * steps]).tolist() == [start, end, end, end]


def test_a_warm_up_hands_over_to_the_first_step_of_what_follows() -> None:
    after = InverseTime(0.8)
    schedule = WarmUp(after, steps=4)
    assert rates(schedule, 5).tolist() == [0.0, 0.1, 0.2, 0.4 * 0.75, 0.4]
    np.testing.assert_array_equal(schedule(range(5, 50)), after(range(1, 46)))


def test_in_a_chain_each_begins_with_its_own_first_step_after_the_boundary() -> None:
    parts = [InverseTime(0.2), Exponential(0.3), Staircase(0.5, every=2)]
    schedule = chain(parts, [3, 4])
    expected = [*rates(parts[0], 3), *rates(parts[1], 1), *rates(parts[2], 9)]
    assert rates(schedule, 13).tolist() == expected
    # A t that is not whole belongs to the step that it is in, and no part is asked below t = 1.
    assert schedule(3.75) == parts[0](3.75)
    assert schedule(4.5) == parts[1](1.5)


def test_per_epoch_is_the_rate_of_the_epoch_for_each_of_its_steps() -> None:
    by_epoch = InverseTime(0.2)
    by_step = by_epoch.per_epoch(5)
    assert rates(by_step, 20).tolist() == np.repeat(rates(by_epoch, 4), 5).tolist()
    assert by_step(5.5) == by_epoch(1)
    assert repr(by_step) == "PerEpoch(schedule=InverseTime(lr=0.2, rate=1.0), steps=5)"


def test_an_inner_schedule_may_be_any_callable_and_gets_an_integer_t_for_an_integer_t() -> None:
    def table(t: int) -> Any:
        return [0.1, 0.2, np.float32(0.5)][t - 1]

    assert rates(PerEpoch(table, 2), 6).tolist() == [0.1, 0.1, 0.2, 0.2, 0.5, 0.5]
    assert rates(WarmUp(table, 2), 5).tolist() == [0.0, 0.05, 0.1, 0.2, 0.5]
    assert rates(Chain([0.7, table], [2]), 5).tolist() == [0.7, 0.7, 0.1, 0.2, 0.5]
    assert WarmUp(table, 2)(np.int32(4)) == 0.2
    # An epoch is whole even where t is not.
    assert PerEpoch(table, 2)([4.0, 5.5]).tolist() == [0.2, 0.5]
    assert type(PerEpoch(table, 1)(3)) is float


# Calls.


@EVERY_FROZEN
def test_an_array_of_t_gives_the_bits_of_each_t_alone(schedule: Schedule) -> None:
    whole = np.arange(1, 61).reshape(5, 12)
    some = np.linspace(1, 60, 60).reshape(3, 4, 5)
    for t in (whole, whole.astype(np.uint8), some, some.astype(np.float32), whole.T[::2]):
        result = schedule(t)
        assert (result.dtype.name, result.shape) == ("float64", t.shape)
        assert result.ravel().tolist() == [schedule(float(each)) for each in t.ravel()]
    assert schedule(whole).ravel().tolist() == [schedule(t) for t in range(1, 61)]
    assert schedule(whole.tolist()).tolist() == schedule(whole).tolist()
    assert schedule([]).shape == (0,)
    assert schedule(np.array(3)).shape == ()


@EVERY_FROZEN
def test_any_real_number_gives_a_float_and_the_same_one(schedule: Schedule) -> None:
    for number in (3, 3.0, np.float32(3), np.float64(3), np.int8(3), np.uint64(3), Fraction(3)):
        value = schedule(number)  # type: ignore[arg-type]
        assert type(value) is float
        assert value == schedule(3)
    assert all(0 <= schedule(t) < 1 for t in (1, 2.5, 10**9, 2.0**53, 1e300))


@EVERY_FROZEN
@pytest.mark.parametrize(
    ("ts", "error", "was"),
    [
        ([0, [1, 0]], ValueError, "t is 0, expected a finite number >= 1"),
        ([0.5], ValueError, "t is 0.5, expected a finite number >= 1"),
        (
            [math.nan, np.array([[1.0, math.nan]])],
            ValueError,
            "t is nan, expected a finite number >= 1",
        ),
        ([math.inf], ValueError, "t is inf, expected a finite number >= 1"),
        ([True], TypeError, "t is a bool, expected a number"),
        ([None], TypeError, "t is a NoneType, expected a number"),
        ([1j], TypeError, "t is a complex, expected a number"),
        ([["1"]], TypeError, "t is a list of <U1, expected numbers"),
        ([[True]], TypeError, "t is a list of bool, expected numbers"),
        ([[1, [2]]], TypeError, "t is a list of object, expected numbers"),
        ([{1}], TypeError, "t is a set of object, expected numbers"),
        ([np.array([1j])], TypeError, "t is a ndarray of complex128, expected numbers"),
    ],
)
def test_a_t_that_is_not_a_number_of_at_least_one_is_refused(
    schedule: Schedule, ts: list[Any], error: type[Exception], was: str
) -> None:
    for t in ts:
        with pytest.raises(error, match=rf"^{type(schedule).__name__}: {was}"):
            schedule(t)


def test_a_schedule_of_ones_own_is_one_method() -> None:
    class Ones(Schedule):
        def formula(self, t: float) -> float:
            return 1

    class Nothing(Schedule):
        def formula(self, t: float) -> float:
            return None  # type: ignore[return-value]

    assert type(Ones()(3)) is float
    assert Ones()([1, 2]).tolist() == [1.0, 1.0]
    assert Ones().per_epoch(3)(7) == 1.0
    with pytest.raises(TypeError, match=r"^Nothing: rate at t=3 is a NoneType, expected a number$"):
        Nothing()(3)
    with pytest.raises(TypeError, match="formula"):
        Schedule()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("schedule", "t"),
    [
        ("Exponential(1e-7, base=1.1)", 8000),
        ("Staircase(1.0, every=1, factor=2.0)", 2000),
        ("CosineRestarts(1.0, steps=1, decay=2.0)", 2000),
        ("InverseTime(1.0)", 10**400),
    ],
    ids=["Exponential", "Staircase", "CosineRestarts", "a huge t"],
)
def test_a_rate_beyond_floating_point_is_refused_by_name(schedule: str, t: int) -> None:
    name = schedule.partition("(")[0]
    expected = f"^{name}: rate at t={t} is too large for a float, expected a finite number$"
    with pytest.raises(ValueError, match=expected):
        evaluate(schedule)(t)


# As values.


@EVERY_FROZEN
def test_a_schedule_is_a_value(schedule: Schedule) -> None:
    copies = [copy.copy(schedule), copy.deepcopy(schedule)]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copies.append(pickle.loads(pickle.dumps(schedule, protocol)))
    for copied in copies:
        assert type(copied) is type(schedule)
        assert copied == schedule
        assert hash(copied) == hash(schedule)
        assert rates(copied, 60).tolist() == rates(schedule, 60).tolist()
    assert [other for other in FROZEN if other == schedule] == [schedule]
    # A repr is code that makes the schedule again.
    assert eval(repr(schedule)) == schedule


@EVERY_FROZEN
def test_a_schedule_cannot_be_changed(schedule: Schedule) -> None:
    before = repr(schedule)
    for name in (*schedule.__slots__, "lr", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(schedule, name, 0.5)
    assert repr(schedule) == before


def test_schedules_are_equal_however_their_numbers_were_given_and_copy_them() -> None:
    assert InverseTime(1) == InverseTime(np.float64(1.0), rate=Fraction(1))  # type: ignore[arg-type]
    values, parts, boundaries = {1: 1, 5: 2}, [1, 2], [3]
    same = {Manual(values), Manual([(5, 2.0), (1, 1.0)]), Manual(iter([(1.0, 1), (5, 2)]))}
    joined = chain(parts, boundaries)
    values[1], parts[0], boundaries[0] = 9, 9, 9
    assert same == {Manual({1: 1, 5: 2})}
    assert joined == Chain((1.0, 2.0), np.array([3]))  # type: ignore[arg-type]
    assert InverseTime(0.2) != InverseTime(0.2, rate=2.0)
    other: Schedule = Exponential(0.2, base=1.0)
    assert InverseTime(0.2, rate=1.0) != other


# Calls, and their errors after the name of the class.
REFUSED = {
    ValueError: {
        "InverseTime(-0.1)": "lr is -0.1, expected a finite",
        "InverseTime(0.1, rate=nan)": "rate is nan, expected",
        "Exponential(0.1, base=-1)": "base is -1, expected a fin",
        "InverseSqrt(0.1, k=inf)": "k is inf, expected a fin",
        "InverseSqrt(10**400)": "lr is inf, expected a finite",
        "Staircase(0.1, 0)": "every is 0, expected an integer >= 1",
        "Staircase(0.1, 2, -1)": "factor is -1, expected a finite",
        "Linear(-1, 0, 5)": "start is -1, expected a finite",
        "Linear(1, -1, 5)": "end is -1, expected a finite",
        "Linear(1, 0, 0)": "steps is 0, expected an integer >= 1",
        "Polynomial(1, 0, 5, -1)": "power is -1, expected a finite",
        "Polynomial(1, 0, 5, power=0)": "power is 0, expected a finite number > 0",
        "CosineRestarts(1, 5, factor=0)": "factor is 0, expect",
        "CosineRestarts(0, 1, 1.0, decay=2)": (
            "decay is 2.0 where start is below end, expected at most 1.0"
        ),
        "CosineRestarts(1, 5, decay=-1)": "decay is -1, expect",
        "OneCycle(1, 5, rise=1)": "rise is 1, expected a number in [0, 1)",
        "OneCycle(1, 5, start_divisor=0.5)": "start_divisor is 0.5, ",
        "OneCycle(1, 5, end_divisor=0)": "end_divisor is 0, expected",
        'OneCycle(1, 5, anneal="sin")': "anneal is 'sin', expected 'cos' or 'linear'",
        "OneCycle(1, 5, rise=0.6, three_phase=True)": (
            "rise is 0.6, expected at most 0.5 with three_phase"
        ),
        "WarmUp(-1, 5)": "after is -1, expected a finite number >= 0",
        "WarmUp(1, 0)": "steps is 0, expected an integer >= 1",
        "WarmUp(1, 5, -1)": "start is -1, expected a finite number",
        "PerEpoch(Constant(1), 0)": "steps is 0, expected an integer",
        "Chain([], [])": "schedules is empty, expected at least one",
        "Chain([1, 2], [0])": "boundaries[0] is 0, expected an integer >= 1",
        "Chain([1, 2, 3], [5, 5])": "boundaries is (5, 5), expected increasing integers",
        "Chain([1, 2, 3], [5])": "boundaries has 1 entries, expected 2 (one fewer than schedules)",
        "Manual({})": "values is empty, expected a rate for t = 1",
        "Manual({2: 1})": "values begins at 2, expected a rate for t",
        "Manual({1: -1})": "values[1] is -1, expected a finite",
        "Manual({1: 1, 0: 1})": "a t of values is 0, expected a fin",
        "Manual([(1, 1), (1.0, 2)])": "values has t = 1.0 twice, expected each once",
        "ReduceOnPlateau(-1)": "lr is -1, expected a finite",
        "ReduceOnPlateau(1, factor=1)": "factor is 1, expected a number in [0, 1)",
        "ReduceOnPlateau(1, patience=-1)": "patience is -1, ",
        'ReduceOnPlateau(1, mode="most")': "mode is 'most', expected 'min' or 'max'",
        'ReduceOnPlateau(1, threshold_mode="x")': "threshold_mode is 'x', expected 'rel' or 'abs'",
        "ReduceOnPlateau(1, threshold=-1)": "threshold is -1",
        "ReduceOnPlateau(1, min_lr=-1)": "min_lr is -1, exp",
        "ReduceOnPlateau(1, eps=inf)": "eps is inf, exp",
    },
    TypeError: {
        'InverseTime("0.1")': "lr is a str, expected a number",
        "Staircase(0.1, 2.5)": "every is a float, expected an int",
        "Constant(True)": "lr is a bool, expected a number",
        "WarmUp(InverseTime, 5)": "after is the class InverseTime, expected a number or a schedule",
        "Cosine(1, None)": "steps is a NoneType, expected an integer",
        "CosineRestarts(1, 5, factor=1.5)": "factor is a float",
        "OneCycle(1, 5, anneal=3)": "anneal is 3, expected 'cos' or",
        "OneCycle(1, 5, three_phase=1)": "three_phase is 1, expected",
        'WarmUp("x", 5)': "after is a str, expected a number",
        "PerEpoch(None, 5)": "schedule is a NoneType, expected a num",
        "Chain(0.1, [])": "schedules is a float, expected a sequence",
        'Chain([0.1, "x"], [1])': "schedules[1] is a str, expected a number",
        "Chain([0.1], 3)": "boundaries is a int, expected a sequence",
        "Manual(0.1)": "values is 0.1, expected a mapping of t to rate",
        "Manual([1, 2])": "values is [1, 2], expected a mapping of t",
        'Manual({"1": 1})': "a t of values is a str, expected a num",
        "ReduceOnPlateau(1, cooldown=1.0)": "cooldown is a fl",
    },
}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [(call, error, words) for error, calls in REFUSED.items() for call, words in calls.items()],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_name(
    call: str, error: type[Exception], words: str
) -> None:
    name = call.partition("(")[0]
    with pytest.raises(error, match=f"^{re.escape(f'{name}: {words}')}"):
        evaluate(call)


# ReduceOnPlateau, and the schedules that contain it.


def test_a_plateau_reduces_its_rate_after_patience_costs_without_improvement() -> None:
    schedule = ReduceOnPlateau(0.8, factor=0.5, patience=2)
    costs = [5.0, 4.0, 4.0, math.nan, 4.5, 3.0, 3.0, math.inf, math.nan, 2.0]
    seen = []
    for cost in costs:
        schedule.update(cost)
        seen.append(schedule(1))
    assert seen == [0.8] * 4 + [0.4] * 4 + [0.2] * 2
    assert schedule.best == 2.0


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda inner: WarmUp(inner, 1), 31),
        (lambda inner: PerEpoch(inner, 1), 31),
        (lambda inner: Chain([0.1, inner], [1]), 31),
        (lambda inner: Chain([inner, inner], [1]), 12),  # 2**13 - 1 of them
        (lambda inner: Chain([inner] * 100, range(1, 100)), 1),
    ],
)
def test_nested_schedules_are_bounded_in_depth_and_number(
    make: Callable[[Any], Any], most: int
) -> None:
    schedule: Any = ReduceOnPlateau(0.1)
    for _ in range(most):
        schedule = make(schedule)
    with pytest.raises(ValueError, match=r"^\w+: schedules are nested more than 32 deep, or more"):
        make(schedule)
    # The largest that are allowed can still be copied, compared, printed and called.
    for copied in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert copied == schedule
        assert repr(copied) == repr(schedule)
    assert schedule(1000) == 0.1
    assert np.all(schedule([1, 50]) <= 0.1)


def test_each_plateau_that_schedules_contain_receives_each_cost_once() -> None:
    def old_enough(t: float) -> float:
        return 0.5

    shared, alone, inner, deep = (ReduceOnPlateau(0.5, factor=0.5, patience=1) for _ in range(4))
    parts: list[Any] = [
        shared,
        old_enough,
        WarmUp(shared, 2),
        PerEpoch(Chain([shared, inner], [3]), 2),
    ]
    schedule = Chain(parts, [1, 5, 6])
    doubled: Any = deep
    for _ in range(11):  # 2**11 paths lead to it
        doubled = Chain([doubled, WarmUp(doubled, 2)], [3])
    for cost in (1.0, 2.0, 2.0, 2.0):
        for each in (schedule, doubled, alone):
            each.update(cost)
    assert shared == inner == deep == alone
    Chain([0.3, old_enough], [5]).update(1.0)  # contains no plateau


def test_a_plateaus_patience_may_be_2_to_the_53_minus_1() -> None:
    schedule = ReduceOnPlateau(0.5, factor=0.5, patience=2**53 - 1)
    schedule.best, schedule.waited = 1.0, 2**53 - 2
    schedule.update(2.0)
    assert (schedule.waited, schedule.lr) == (2**53 - 1, 0.5)
    schedule.update(2.0)
    assert (schedule.waited, schedule.lr) == (0, 0.25)


def test_a_plateaus_first_finite_cost_is_its_best_at_any_threshold() -> None:
    for threshold in (1.0, 2.0):
        schedule = ReduceOnPlateau(1.0, factor=0.5, patience=0, threshold=threshold)
        schedule.update(5.0)
        assert (schedule.best, schedule.lr) == (5.0, 1.0)
        schedule.update(0.1)  # not below 5 - 5
        assert (schedule.best, schedule.lr) == (5.0, 0.5)


def test_a_plateau_whose_mode_is_set_to_the_other_forgets_its_best() -> None:
    schedule = ReduceOnPlateau(1.0, factor=0.5, patience=1)
    schedule.update(3.0)
    schedule.mode = "min"
    assert schedule.best == 3.0
    schedule.mode = "max"
    for score in range(5):
        schedule.update(score)
    assert (schedule.best, schedule.lr) == (4.0, 1.0)


class Scalar:
    """An array without axes, as another library has it."""

    shape = ()

    def __init__(self, value: Any) -> None:
        self._value = value

    def item(self) -> Any:
        return self._value


def test_a_number_may_be_an_array_without_axes_of_any_library() -> None:
    schedule = ReduceOnPlateau(0.5)
    for best, cost in [(3.0, Scalar(3.0)), (2.0, Scalar(2)), (1.0, np.array(1.0, np.float32))]:
        schedule.update(cost)  # type: ignore[arg-type]
        assert (type(schedule.best), schedule.best) == (float, best)
    optimizer = schuss.SGD(np.ones(1), lr=lambda t: Scalar(0.5))  # type: ignore[arg-type, return-value]
    optimizer.step(np.ones(1))
    assert optimizer.params == 0.5
    with pytest.raises(TypeError, match=r"cost is a bool, expected a number"):
        schedule.update(Scalar(True))  # type: ignore[arg-type]
    without_memory: Any = types.SimpleNamespace(shape=(), item=lambda: int("x"))
    with pytest.raises(TypeError, match=r"best is namespace.*, expected a number"):
        schedule.best = without_memory
    with pytest.raises(TypeError, match=r"patience is a SimpleNamespace, expected an integer"):
        schedule.patience = without_memory
    with pytest.raises(ValueError, match=r"best is nan, expected a number"):
        schedule.best = Scalar(np.nan)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("library", "number"), [("jax.numpy", "float32(0.5)"), ("torch", "tensor(0.5)")]
)
def test_numbers_of_other_libraries_are_numbers(library: str, number: str) -> None:
    names = vars(pytest.importorskip(library)).copy()
    assert Constant(eval(number, names))(3) == 0.5


def test_a_plateau_is_read_copied_and_compared_with_what_it_has_seen() -> None:
    schedule = plateau()
    assert schedule(1) == schedule(10**6) == schedule.per_epoch(3)(7) == schedule.lr == 0.25
    assert schedule([[1, 2]]).tolist() == [[0.25, 0.25]]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(schedule, protocol)) == schedule
    copied = copy.copy(schedule)
    assert copied == schedule == copy.deepcopy(schedule)
    assert repr(copied).endswith("eps=1e-08): best=2.0, waited=0, cooling=3>")
    assert schedule != ReduceOnPlateau(0.25, factor=0.5, patience=1, cooldown=4)
    copied.update(1.0)
    assert copied != schedule
    assert schedule.best == 2.0
    for cost in (5.0,) * 5:
        schedule.update(cost)
    assert (schedule.lr, copied.lr) == (0.125, 0.25)
    with pytest.raises(TypeError, match="unhashable"):
        hash(schedule)


@pytest.mark.parametrize("cost", ["1", None, True, 1j, [1.0]])
def test_a_cost_that_is_no_number_is_refused_and_changes_nothing(cost: Any) -> None:
    schedule = plateau()
    with pytest.raises(TypeError, match=r"^ReduceOnPlateau.update: cost is a \w+, expected a numb"):
        schedule.update(cost)
    assert schedule == plateau()


def test_a_plateaus_settings_are_checked_whenever_they_are_set() -> None:
    schedule = plateau()
    for name, bad in {"lr": -1, "factor": 1.0, "mode": "up", "patience": 0.5}.items():
        with pytest.raises((TypeError, ValueError), match=f"^ReduceOnPlateau: {name} is "):
            setattr(schedule, name, bad)
    with pytest.raises(AttributeError):
        schedule.gamma = 0.1
    assert schedule == plateau()


# PyTorch: after n calls of scheduler.step(), the rate is that of step n + 1, which is s(n + 1).


def torch_rates(scheduler_of_o: str, steps: int) -> npt.NDArray[np.float64]:
    """Return the rates after 0, 1, … calls of `step` of a scheduler of the optimizer `o`."""
    torch: Any = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3, momentum=0.9)
    seen = []
    with warnings.catch_warnings():
        # PyTorch warns of an optimizer that makes no steps; SequentialLR warns of itself.
        warnings.simplefilter("ignore")
        scheduler = eval(scheduler_of_o, {**vars(torch.optim.lr_scheduler), "o": optimizer})
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return np.array(seen)


# Schedules, and PyTorch's schedulers of the optimizer `o` with the same settings.
TORCH = [
    ("Staircase(0.3, every=7, factor=0.1)", "StepLR(o, 7, gamma=0.1)"),
    ("Manual({1: 0.3, 6: 0.15, 21: 0.075})", "MultiStepLR(o, [5, 20], gamma=0.5)"),
    ("Manual({1: 0.1, 6: 0.3})", "ConstantLR(o, factor=1 / 3, total_iters=5)"),
    ("Linear(0.03, 0.24, steps=19)", "LinearLR(o, 0.1, 0.8, total_iters=19)"),
    ("WarmUp(0.3, steps=19, start=0.03)", "LinearLR(o, 0.1, 1.0, total_iters=19)"),
    ("Polynomial(0.3, 0.0, steps=29, power=1.7)", "PolynomialLR(o, 29, power=1.7)"),
    ("CosineRestarts(0.3, 7, end=0.01)", "CosineAnnealingWarmRestarts(o, 7, eta_min=0.01)"),
    ("CosineRestarts(0.3, 3, 0.01, factor=2)", "CosineAnnealingWarmRestarts(o, 3, 2, 0.01)"),
    ("OneCycle(0.3, steps=50)", "OneCycleLR(o, 0.3, 50)"),
    (
        "OneCycle(0.3, 50, rise=0.37, start_divisor=3, end_divisor=7, anneal='linear')",
        "OneCycleLR(o, 0.3, 50, pct_start=0.37, div_factor=3, final_div_factor=7, "
        "anneal_strategy='linear')",
    ),
    (
        "OneCycle(0.3, steps=50, rise=0.23, three_phase=True)",
        "OneCycleLR(o, 0.3, 50, pct_start=0.23, three_phase=True)",
    ),
    ("OneCycle(0.3, steps=50, rise=0.0)", "OneCycleLR(o, 0.3, 50, pct_start=0.0)"),
    (
        "chain([WarmUp(0.3, 5, start=0.03), Staircase(0.3, 4, 0.5), Linear(0.3, 0.0, 9)], [5, 30])",
        "SequentialLR(o, [LinearLR(o, 0.1, 1.0, total_iters=5), StepLR(o, 4, gamma=0.5), "
        "LinearLR(o, 1.0, 0.0, total_iters=9)], [5, 30])",
    ),
    ("InverseTime(0.3)", "LambdaLR(o, lambda n: 1 / (1 + (n + 1)))"),
    ("Cosine(0.3, 49, end=0.01)", "CosineAnnealingLR(o, 49, eta_min=0.01)"),  # until its end
    ("Exponential(0.3 / 0.9, base=0.9)", "ExponentialLR(o, 0.9)"),  # which begins undecayed
]


@pytest.mark.parametrize(("ours", "theirs"), TORCH)
def test_the_rate_of_step_t_is_that_of_torch_after_t_minus_1_scheduler_steps(
    ours: str, theirs: str
) -> None:
    expected = torch_rates(theirs, 50)
    np.testing.assert_allclose(rates(evaluate(ours), 50), expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"factor": 0.5, "patience": 0},
        {"factor": 0.7, "patience": 2, "threshold": 0.05, "cooldown": 3},
        {"factor": 0.7, "patience": 2, "threshold": 0.05, "threshold_mode": "abs"},
        {"factor": 0.7, "patience": 1, "mode": "max", "threshold": 0.01},
        {"factor": 0.7, "patience": 1, "mode": "max", "threshold": 0.01, "threshold_mode": "abs"},
        {"factor": 0.1, "patience": 0, "min_lr": 0.002},
        {"factor": 0.5, "patience": 0, "eps": 0.05},
    ],
    ids=str,
)
def test_a_plateau_reduces_when_torch_reduces(options: dict[str, Any]) -> None:
    torch: Any = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    reductions = 0
    for trend in (0.0, -0.02, 0.02):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        ours = ReduceOnPlateau(0.3, **options)
        for t in range(1, 150):
            cost = float(rng.choice([2 + trend * t + rng.normal(), math.nan, math.inf, 2.0]))
            before = ours(t)
            ours.update(cost)
            theirs.step(cost)
            assert ours(t) == optimizer.param_groups[0]["lr"]
            reductions += ours(t) < before
    assert reductions >= 3


# optax counts from 0: its value at t - 1 is s(t). It computes in float32.

OPTAX = [
    ("Constant(0.3)", "constant_schedule(0.3)"),
    ("Exponential(0.3 / 0.9, base=0.9)", "exponential_decay(0.3, 1, 0.9)"),
    ("Linear(0.3, 0.1, 29)", "linear_schedule(0.3, 0.1, 29)"),
    ("Polynomial(0.3, 0.1, 29, power=2.5)", "polynomial_schedule(0.3, 0.1, 2.5, 29)"),
    ("Cosine(0.3, 29, end=0.03)", "cosine_decay_schedule(0.3, 29, alpha=0.1)"),
    ("Staircase(0.3, every=7, factor=0.6)", "exponential_decay(0.3, 7, 0.6, staircase=True)"),
    ("Manual({1: 0.3, 6: 0.15, 21: 0.3})", "piecewise_constant_schedule(0.3, {5: 0.5, 20: 2})"),
    (
        "chain([WarmUp(0.3, 4), Cosine(0.3, 20), 0.1], [7, 31])",
        "join_schedules([linear_schedule(0.0, 0.3, 4), constant_schedule(0.3), "
        "cosine_decay_schedule(0.3, 20), constant_schedule(0.1)], [4, 7, 31])",
    ),
    (  # decay_steps include the warm-up
        "WarmUp(Cosine(0.3, 24, end=0.01), steps=5, start=0.1)",
        "warmup_cosine_decay_schedule(0.1, 0.3, 5, decay_steps=29, end_value=0.01)",
    ),
    (
        "WarmUp(Staircase(0.3, 6, 0.7), steps=5, start=0.1)",
        "warmup_exponential_decay_schedule(0.1, 0.3, 5, 6, 0.7, staircase=True)",
    ),
    (
        "CosineRestarts(0.3, 6, end=0.1, factor=2, decay=0.5)",
        "sgdr_schedule(dict(init_value=0.0, peak_value=0.1 + 0.2 * 0.5**i, warmup_steps=0, "
        "decay_steps=6 * 2**i, end_value=0.1) for i in range(4))",
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), OPTAX)
def test_the_rate_of_step_t_is_that_of_optax_at_t_minus_1(ours: str, theirs: str) -> None:
    schedule = eval(theirs, vars(pytest.importorskip("optax")).copy())
    expected = [float(schedule(t)) for t in range(50)]
    np.testing.assert_allclose(rates(evaluate(ours), 50), expected, rtol=3e-6, atol=1e-8)


# In optimizers.


@pytest.mark.parametrize("schedule", [*FROZEN, plateau()], ids=repr)
@every_optimizer
def test_a_schedule_does_what_setting_the_rate_by_hand_does(name: str, schedule: Schedule) -> None:
    params = np.arange(1.0, 4.0), np.arange(1.0, 4.0)
    scheduled = make_optimizer(name, params[0], lr=schedule)
    by_hand = make_optimizer(name, params[1])
    for t in range(1, 13):
        by_hand.lr = schedule(t)
        for optimizer, param in zip((scheduled, by_hand), params, strict=True):
            optimizer.step(np.cos(param))
            assert optimizer.lr_now == schedule(t)
        assert params[0].tobytes() == params[1].tobytes()
    assert scheduled.lr is schedule


@every_optimizer
def test_lr_now_is_the_rate_of_the_last_step_or_of_the_first_to_come(name: str) -> None:
    param, schedule = np.ones(3), InverseTime(0.2)
    optimizer = make_optimizer(name, param, lr=schedule)
    assert optimizer.lr_now == schedule(1)
    for t in range(1, 5):
        optimizer.step(np.ones(3))
        assert optimizer.lr_now == schedule(t)
    optimizer.lr = 0.5  # by hand, in mid training
    assert optimizer.lr_now == 0.5
    before = param.copy()
    optimizer.step(np.ones(3))
    assert not np.array_equal(param, before)
    optimizer.lr = schedule
    assert optimizer.lr_now == schedule(5)
    with pytest.raises(AttributeError):
        optimizer.lr_now = 0.5


def test_lr_now_stays_that_of_the_last_step_when_a_plateau_is_fed() -> None:
    plateau: Any = ReduceOnPlateau(0.5, factor=0.5, patience=0)
    optimizer = schuss.SGD(np.ones(3), lr=plateau)
    for cost, lr in [(2.0, 0.5), (2.0, 0.5), (1.0, 0.25)]:
        optimizer.step(np.ones(3))
        plateau.update(cost)
        assert optimizer.lr_now == lr
    assert optimizer.params.tolist() == [1 - 0.5 - 0.5 - 0.25] * 3


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, None, "fast", True])
def test_lr_now_refuses_what_a_step_refuses(bad: Any) -> None:
    optimizer = schuss.Adam(np.ones(3), lr=lambda t: bad)
    with pytest.raises((TypeError, ValueError), match=r"^Adam\.step: lr is ") as step:
        optimizer.step(np.ones(3))
    with pytest.raises((TypeError, ValueError), match=r"^Adam\.lr_now: lr is ") as now:
        _ = optimizer.lr_now
    assert str(now.value).replace("lr_now", "step") == str(step.value)
    assert optimizer.steps == 0
    assert optimizer.params.tolist() == [1.0] * 3


@pytest.mark.parametrize("schedule", [*FROZEN, plateau()], ids=repr)
def test_a_schedule_survives_the_saving_of_its_optimizer(schedule: Schedule) -> None:
    param = np.arange(1.0, 4.0)
    optimizer = schuss.Adam(param, lr=schedule)
    for _ in range(3):
        optimizer.step(np.cos(param))
    unpickled = pickle.loads(pickle.dumps(optimizer))
    resumed = schuss.Adam(param.copy())
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    optimizer.step(np.cos(param))
    for other in (unpickled, resumed):
        assert other.lr == schedule
        assert other.lr_now == schedule(3)
        other.step(np.cos(other.params))
        assert other.params.tobytes() == param.tobytes()


@pytest.mark.parametrize("around", ["it", "Chain([0.5, WarmUp(it, 3)], [4]).per_epoch(2)"])
def test_a_state_dict_holds_the_plateau_as_it_was_then(around: str) -> None:
    lr = evaluate(around, it=ReduceOnPlateau(1.0, factor=0.5, patience=0))
    optimizer = schuss.SGD(np.zeros(2), lr=lr)
    optimizer.load_state_dict(optimizer.state_dict() | {"steps": 100})
    saved, other = optimizer.state_dict(), copy.copy(optimizer)
    for feeds in (3, 2, 0):
        plateau: Any = optimizer.lr
        for _ in range(feeds):
            plateau.update(1.0)
        assert (optimizer.lr_now, other.lr_now) == (0.5 ** max(feeds - 1, 0), 1.0)
        optimizer.load_state_dict(saved)

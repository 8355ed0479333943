"""Schedules: the formulas, where t starts, and what peers make of the same settings."""

import copy
import math
import pickle
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


MAKE: Any = schuss.schedules
"""The same classes, for calls that a type checker would refuse."""


def plateau() -> ReduceOnPlateau:
    """Return one that has been fed: it has reduced its rate, and cools down."""
    schedule = ReduceOnPlateau(0.5, factor=0.5, patience=1, cooldown=4)
    for cost in (3.0, 2.0, 2.0, 2.0, 2.0):
        schedule.update(cost)
    assert (schedule.lr, schedule.best, schedule.cooling) == (0.25, 2.0, 3)
    return schedule


def rates(schedule: Schedule, steps: int) -> npt.NDArray[np.float64]:
    return schedule(range(1, steps + 1))


# The numbers of each formula.


def test_inverse_time_from_0_2_at_rate_1_gives_0_1_0_0667_0_05_0_04() -> None:
    epochs = InverseTime(lr=0.2, rate=1.0)(np.array([1, 2, 3, 4]))
    assert epochs.round(4).tolist() == [0.1, 0.0667, 0.05, 0.04]
    assert InverseTime(0.2, rate=0.5)(6) == 0.05


def test_exponential_decay_of_epoch_10_is_0_5987() -> None:
    assert round(Exponential(lr=1.0)(10) / 1.0, 4) == 0.5987
    assert Exponential(lr=8.0, base=0.5)([1, 2, 3]).tolist() == [4.0, 2.0, 1.0]


def test_the_inverse_square_root_halves_the_rate_at_epoch_4() -> None:
    assert InverseSqrt(lr=0.3)(4) == 0.3 / 2
    assert InverseSqrt(lr=0.5, k=3.0)([1, 4, 9]).tolist() == [1.5, 0.75, 0.5]


def test_a_staircase_stays_for_so_many_steps_and_then_falls() -> None:
    assert rates(Staircase(0.8, every=3), 7).tolist() == [0.8] * 3 + [0.4] * 3 + [0.2]
    assert rates(Staircase(8.0, every=1, factor=0.25), 3).tolist() == [8.0, 2.0, 0.5]


def test_rates_by_hand_hold_until_the_next_one() -> None:
    schedule = Manual({10: 0.01, 1: 0.1, 12: 0.5})
    assert rates(schedule, 14).tolist() == [0.1] * 9 + [0.01] * 2 + [0.5] * 3
    assert schedule(9.999) == 0.1
    assert schedule(10**9) == 0.5


def test_ramps_have_these_values_at_a_quarter_and_half_of_the_way() -> None:
    at = [1, 2, 3, 5, 6, 1000]
    assert Linear(1.0, 0.0, steps=4)(at).tolist() == [1.0, 0.75, 0.5, 0.0, 0.0, 0.0]
    assert Polynomial(1.0, 0.5, steps=4, power=2)(at)[:3].tolist() == [1.0, 0.78125, 0.625]
    quarter = (1 + math.sqrt(0.5)) / 2
    np.testing.assert_allclose(Cosine(1.0, steps=4)(at), [1, quarter, 0.5, 0, 0, 0], atol=1e-15)
    assert Constant(0.1)(at).tolist() == [0.1] * 6


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


def test_a_cycle_that_starts_again_is_longer_and_lower_by_its_factors() -> None:
    schedule = CosineRestarts(9.0, steps=2, end=1.0, factor=3, decay=0.5)
    # Cycles of 2, 6 and 18 steps from t = 1, 3, 9 and 27; half of each is half way down.
    assert schedule([1, 2, 3, 6, 9, 18, 27]).tolist() == [9.0, 5.0, 5.0, 3.0, 3.0, 2.0, 2.0]


def test_one_cycle_rises_to_its_peak_and_ends_at_almost_nothing() -> None:
    schedule = OneCycle(0.5, steps=100)
    assert schedule(1) == pytest.approx(0.02, rel=1e-15)
    assert schedule(30) == 0.5
    assert schedule([100, 101, 10**6]) == pytest.approx([2e-6] * 3, rel=1e-15)
    assert rates(schedule, 200).argmax() == 29
    # With one step to rise in, or less, the first is the peak or is over already.
    assert OneCycle(0.5, steps=10, rise=0.1)(1) == 0.5
    assert OneCycle(0.5, steps=1)(1) == pytest.approx(2e-6, rel=1e-15)


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
    assert by_step == PerEpoch(by_epoch, 5)
    assert repr(by_step) == "PerEpoch(schedule=InverseTime(lr=0.2, rate=1.0), steps=5)"


def test_what_lies_inside_may_be_any_callable_and_gets_a_whole_t_for_a_whole_t() -> None:
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
    ("t", "error", "was"),
    [
        (0, ValueError, "t is 0, expected a finite number >= 1"),
        (0.5, ValueError, "t is 0.5, expected a finite number >= 1"),
        (-3, ValueError, "t is -3, expected a finite number >= 1"),
        (math.nan, ValueError, "t is nan, expected a finite number >= 1"),
        (math.inf, ValueError, "t is inf, expected a finite number >= 1"),
        ([1, 0], ValueError, "t is 0, expected a finite number >= 1"),
        (np.array([[1.0, math.nan]]), ValueError, "t is nan, expected a finite number >= 1"),
        (True, TypeError, "t is a bool, expected a number"),
        (None, TypeError, "t is a NoneType, expected a number"),
        ("1", TypeError, "t is a str, expected a number"),
        (1j, TypeError, "t is a complex, expected a number"),
        (["1"], TypeError, "t is a list of <U1, expected numbers"),
        ([True], TypeError, "t is a list of bool, expected numbers"),
        ([1, [2]], TypeError, "t is a list of object, expected numbers"),
        ({1}, TypeError, "t is a set of object, expected numbers"),
        (np.array([1j]), TypeError, "t is a ndarray of complex128, expected numbers"),
    ],
)
def test_a_t_that_is_none_is_refused(
    schedule: Schedule, t: Any, error: type[Exception], was: str
) -> None:
    with pytest.raises(error, match=rf"^{type(schedule).__name__}: {was}$"):
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
        (Exponential(1e-7, base=1.1), 8000),
        (Staircase(1.0, every=1, factor=2.0), 2000),
        (CosineRestarts(1.0, steps=1, decay=2.0), 2000),
        (InverseTime(1.0), 10**400),
    ],
    ids=["Exponential", "Staircase", "CosineRestarts", "a huge t"],
)
def test_a_rate_beyond_floating_point_is_refused_by_name(schedule: Schedule, t: int) -> None:
    name = type(schedule).__name__
    expected = f"^{name}: rate at t={t} is beyond floating point, expected a number$"
    with pytest.raises(ValueError, match=expected):
        schedule(t)


# As values.


@EVERY_FROZEN
def test_a_schedule_is_a_value(schedule: Schedule) -> None:
    twins = [copy.copy(schedule), copy.deepcopy(schedule)]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        twins.append(pickle.loads(pickle.dumps(schedule, protocol)))
    for twin in twins:
        assert type(twin) is type(schedule)
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert rates(twin, 60).tolist() == rates(schedule, 60).tolist()
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


def test_a_repr_names_everything() -> None:
    assert repr(InverseTime(0.2)) == "InverseTime(lr=0.2, rate=1.0)"
    assert repr(Manual({10: 0.01, 1.0: 0.1})) == "Manual(values=((1.0, 0.1), (10, 0.01)))"
    assert repr(WarmUp(Constant(1), 3)) == "WarmUp(after=Constant(lr=1.0), steps=3, start=0.0)"


def test_schedules_are_equal_however_their_numbers_were_given() -> None:
    assert InverseTime(1) == InverseTime(np.float64(1.0), rate=Fraction(1))  # type: ignore[arg-type]
    same = [Manual({1: 1, 5: 2}), Manual([(5, 2.0), (1, 1.0)]), Manual(iter([(1.0, 1), (5, 2)]))]
    assert len(set(same)) == 1
    assert chain([1, 2], [3]) == Chain((1.0, 2.0), np.array([3]))  # type: ignore[arg-type]
    assert InverseTime(0.2) != InverseTime(0.2, rate=2.0)
    other: Schedule = Exponential(0.2, base=1.0)
    assert InverseTime(0.2, rate=1.0) != other


def test_what_was_given_may_change_afterwards() -> None:
    values, parts, boundaries = {1: 0.1}, [0.1, 0.2], [5]
    manual, joined = Manual(values), chain(parts, boundaries)
    values[1], parts[0], boundaries[0] = 9, 9, 9
    assert (manual(1), joined(1), joined(6)) == (0.1, 0.1, 0.2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MAKE.InverseTime(-0.1), ValueError, "InverseTime: lr is -0.1, expected a finite"),
        (lambda: MAKE.InverseTime("0.1"), TypeError, "InverseTime: lr is a str, expected a number"),
        (
            lambda: MAKE.InverseTime(0.1, rate=math.nan),
            ValueError,
            "InverseTime: rate is nan, expected",
        ),
        (
            lambda: MAKE.Exponential(0.1, base=-1),
            ValueError,
            "Exponential: base is -1, expected a fin",
        ),
        (
            lambda: MAKE.InverseSqrt(0.1, k=math.inf),
            ValueError,
            "InverseSqrt: k is inf, expected a fin",
        ),
        (
            lambda: MAKE.InverseSqrt(10**400),
            ValueError,
            "InverseSqrt: lr is inf, expected a finite",
        ),
        (
            lambda: MAKE.Staircase(0.1, 0),
            ValueError,
            "Staircase: every is 0, expected an integer >= 1",
        ),
        (
            lambda: MAKE.Staircase(0.1, 2.5),
            TypeError,
            "Staircase: every is a float, expected an int",
        ),
        (
            lambda: MAKE.Staircase(0.1, 2, -1),
            ValueError,
            "Staircase: factor is -1, expected a finite",
        ),
        (lambda: MAKE.Constant(True), TypeError, "Constant: lr is a bool, expected a number"),
        (lambda: MAKE.Linear(-1, 0, 5), ValueError, "Linear: start is -1, expected a finite"),
        (lambda: MAKE.Linear(1, -1, 5), ValueError, "Linear: end is -1, expected a finite"),
        (lambda: MAKE.Linear(1, 0, 0), ValueError, "Linear: steps is 0, expected an integer >= 1"),
        (
            lambda: MAKE.Polynomial(1, 0, 5, -1),
            ValueError,
            "Polynomial: power is -1, expected a finite",
        ),
        (
            lambda: MAKE.Polynomial(1, 0, 5, power=0),
            ValueError,
            "Polynomial: power is 0, expected a finite number > 0",
        ),
        (
            lambda: MAKE.WarmUp(InverseTime, 5),
            TypeError,
            "WarmUp: after is the class InverseTime, expected a number or a schedule",
        ),
        (
            lambda: MAKE.Cosine(1, None),
            TypeError,
            "Cosine: steps is a NoneType, expected an integer",
        ),
        (
            lambda: MAKE.CosineRestarts(1, 5, factor=1.5),
            TypeError,
            "CosineRestarts: factor is a float",
        ),
        (
            lambda: MAKE.CosineRestarts(1, 5, factor=0),
            ValueError,
            "CosineRestarts: factor is 0, expect",
        ),
        (
            lambda: MAKE.CosineRestarts(0, 1, 1.0, decay=2),
            ValueError,
            "CosineRestarts: decay is 2.0 where start is below end, expected at most 1.0",
        ),
        (
            lambda: MAKE.CosineRestarts(1, 5, decay=-1),
            ValueError,
            "CosineRestarts: decay is -1, expect",
        ),
        (
            lambda: MAKE.OneCycle(1, 5, rise=1),
            ValueError,
            r"OneCycle: rise is 1, expected .* \[0, 1\)",
        ),
        (
            lambda: MAKE.OneCycle(1, 5, start_divisor=0.5),
            ValueError,
            "OneCycle: start_divisor is 0.5, ",
        ),
        (
            lambda: MAKE.OneCycle(1, 5, end_divisor=0),
            ValueError,
            "OneCycle: end_divisor is 0, expected",
        ),
        (
            lambda: MAKE.OneCycle(1, 5, anneal="sin"),
            ValueError,
            "OneCycle: anneal is 'sin', expected 'cos' or 'linear'",
        ),
        (
            lambda: MAKE.OneCycle(1, 5, anneal=3),
            TypeError,
            "OneCycle: anneal is 3, expected 'cos' or",
        ),
        (
            lambda: MAKE.OneCycle(1, 5, three_phase=1),
            TypeError,
            "OneCycle: three_phase is 1, expected",
        ),
        (
            lambda: MAKE.OneCycle(1, 5, rise=0.6, three_phase=True),
            ValueError,
            "OneCycle: rise is 0.6, expected at most 0.5 with three_phase",
        ),
        (lambda: MAKE.WarmUp("x", 5), TypeError, "WarmUp: after is a str, expected a number"),
        (
            lambda: MAKE.WarmUp(-1, 5),
            ValueError,
            "WarmUp: after is -1, expected a finite number >= 0",
        ),
        (lambda: MAKE.WarmUp(1, 0), ValueError, "WarmUp: steps is 0, expected an integer >= 1"),
        (
            lambda: MAKE.WarmUp(1, 5, -1),
            ValueError,
            "WarmUp: start is -1, expected a finite number",
        ),
        (
            lambda: MAKE.Constant(1).per_epoch(0),
            ValueError,
            "PerEpoch: steps is 0, expected an integer",
        ),
        (
            lambda: MAKE.PerEpoch(None, 5),
            TypeError,
            "PerEpoch: schedule is a NoneType, expected a num",
        ),
        (
            lambda: MAKE.chain([], []),
            ValueError,
            "Chain: schedules is empty, expected at least one",
        ),
        (
            lambda: MAKE.chain(0.1, []),
            TypeError,
            "Chain: schedules is a float, expected a sequence",
        ),
        (
            lambda: MAKE.chain([0.1, "x"], [1]),
            TypeError,
            r"Chain: schedules\[1\] is a str, expected a number",
        ),
        (
            lambda: MAKE.chain([0.1], 3),
            TypeError,
            "Chain: boundaries is a int, expected a sequence",
        ),
        (
            lambda: MAKE.chain([1, 2], [0]),
            ValueError,
            r"Chain: boundaries\[0\] is 0, expected an integer >= 1",
        ),
        (
            lambda: MAKE.chain([1, 2, 3], [5, 5]),
            ValueError,
            r"Chain: boundaries is \(5, 5\), expected increasing integers",
        ),
        (
            lambda: MAKE.chain([1, 2, 3], [5]),
            ValueError,
            r"Chain: boundaries has 1 entries, expected 2 \(one fewer than schedules\)",
        ),
        (lambda: MAKE.Manual({}), ValueError, "Manual: values is empty, expected a rate for t = 1"),
        (
            lambda: MAKE.Manual({2: 1}),
            ValueError,
            "Manual: values begins at 2, expected a rate for t",
        ),
        (
            lambda: MAKE.Manual(0.1),
            TypeError,
            "Manual: values is 0.1, expected a mapping of t to rate",
        ),
        (
            lambda: MAKE.Manual([1, 2]),
            TypeError,
            r"Manual: values is \[1, 2\], expected a mapping of t",
        ),
        (lambda: MAKE.Manual({1: -1}), ValueError, r"Manual: values\[1\] is -1, expected a finite"),
        (
            lambda: MAKE.Manual({1: 1, 0: 1}),
            ValueError,
            "Manual: a t of values is 0, expected a fin",
        ),
        (
            lambda: MAKE.Manual({"1": 1}),
            TypeError,
            "Manual: a t of values is a str, expected a num",
        ),
        (
            lambda: MAKE.Manual([(1, 1), (1.0, 2)]),
            ValueError,
            "Manual: values has t = 1.0 twice, expected each once",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(-1),
            ValueError,
            "ReduceOnPlateau: lr is -1, expected a finite",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(1, factor=1),
            ValueError,
            r"ReduceOnPlateau: factor is 1, expected a number in \[0, 1\)",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(1, patience=-1),
            ValueError,
            "ReduceOnPlateau: patience is -1, ",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(1, mode="most"),
            ValueError,
            "ReduceOnPlateau: mode is 'most', expected 'min' or 'max'",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(1, threshold_mode="x"),
            ValueError,
            "ReduceOnPlateau: threshold_mode is 'x', expected 'rel' or 'abs'",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(1, threshold=-1),
            ValueError,
            "ReduceOnPlateau: threshold is -1",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(1, cooldown=1.0),
            TypeError,
            "ReduceOnPlateau: cooldown is a fl",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(1, min_lr=-1),
            ValueError,
            "ReduceOnPlateau: min_lr is -1, exp",
        ),
        (
            lambda: MAKE.ReduceOnPlateau(1, eps=math.inf),
            ValueError,
            "ReduceOnPlateau: eps is inf, exp",
        ),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_name(
    make: Callable[[], Schedule], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()


# What is fed the cost.


def test_a_plateau_reduces_the_rate_after_so_many_costs_without_improvement() -> None:
    schedule = ReduceOnPlateau(0.8, factor=0.5, patience=2)
    costs = [5.0, 4.0, 4.0, math.nan, 4.5, 3.0, 3.0, math.inf, math.nan, 2.0]
    seen = []
    for cost in costs:
        schedule.update(cost)
        seen.append(schedule(1))
    assert seen == [0.8] * 4 + [0.4] * 4 + [0.2] * 2
    assert schedule.best == 2.0


def test_what_is_made_of_plateaus_passes_the_cost_on_to_all_of_them() -> None:
    def inner() -> ReduceOnPlateau:
        return ReduceOnPlateau(0.5, factor=0.5, patience=0)

    def old_enough(t: float) -> float:
        return 0.5

    first, second, third, alone = inner(), inner(), inner(), inner()
    schedule = Chain([WarmUp(first, 5), 0.3, old_enough, third, PerEpoch(second, 3)], [5, 6, 7, 8])
    for cost in (3.0, 2.0, 2.0, 2.5, 1.0):
        alone.update(cost)
        schedule.update(cost)
    assert alone.lr == 0.125
    assert first == second == third == alone
    Chain([0.3, old_enough], [5]).update(1.0)  # nobody is fed


def nested(times: int, make: Callable[[Any], Any]) -> Any:
    schedule: Any = ReduceOnPlateau(0.1)
    for _ in range(times):
        schedule = make(schedule)
    return schedule


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
def test_schedules_in_each_other_are_bounded_whoever_shares_what(
    make: Callable[[Any], Any], most: int
) -> None:
    schedule = nested(most, make)
    with pytest.raises(ValueError, match=r"^\w+: schedules are nested more than 32 deep, or more"):
        make(schedule)
    # So whatever walks over them comes to its end.
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert twin == schedule
        assert repr(twin) == repr(schedule)
    assert schedule(1000) == 0.1
    assert np.all(schedule([1, 50]) <= 0.1)


def test_a_plateau_that_stands_in_several_places_is_told_each_cost_once() -> None:
    shared, alone = (ReduceOnPlateau(0.5, factor=0.5, patience=1) for _ in range(2))
    schedule = Chain([shared, WarmUp(shared, 2), PerEpoch(Chain([shared, 0.1], [3]), 2)], [1, 5])
    for cost in (1.0, 2.0, 2.0, 2.0):
        schedule.update(cost)
        alone.update(cost)
    assert shared == alone


def test_a_plateau_waits_as_long_as_anyone_can_count() -> None:
    schedule = ReduceOnPlateau(0.5, factor=0.5, patience=2**53 - 1)
    schedule.best, schedule.waited = 1.0, 2**53 - 2
    schedule.update(2.0)
    assert (schedule.waited, schedule.lr) == (2**53 - 1, 0.5)
    schedule.update(2.0)
    assert (schedule.waited, schedule.lr) == (0, 0.25)


def test_a_plateaus_first_finite_cost_is_its_best_whatever_the_threshold() -> None:
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


def test_numbers_of_jax_are_numbers() -> None:
    jnp: Any = pytest.importorskip("jax.numpy")
    assert Constant(jnp.float32(0.5))(3) == 0.5


def test_numbers_of_torch_are_numbers() -> None:
    torch: Any = pytest.importorskip("torch")
    assert Constant(torch.tensor(0.5))(3) == 0.5


def test_a_plateau_gives_its_present_rate_for_any_t() -> None:
    schedule = plateau()
    assert schedule(1) == schedule(10**6) == schedule.lr == 0.25
    assert schedule([[1, 2]]).tolist() == [[0.25, 0.25]]
    schedule.lr = 0.125
    assert schedule(7) == 0.125
    assert schedule.per_epoch(3)(7) == 0.125


def test_a_plateau_is_copied_saved_and_compared_with_what_it_has_seen() -> None:
    schedule = plateau()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(schedule, protocol))
        assert twin == schedule
    twin = copy.copy(schedule)
    assert twin == schedule == copy.deepcopy(schedule)
    assert schedule != ReduceOnPlateau(0.25, factor=0.5, patience=1, cooldown=4)
    twin.update(1.0)
    assert twin != schedule
    assert schedule.best == 2.0
    for cost in (5.0,) * 5:
        schedule.update(cost)
    assert (schedule.lr, twin.lr) == (0.125, 0.25)
    with pytest.raises(TypeError, match="unhashable"):
        hash(schedule)


def test_a_plateau_says_where_it_is() -> None:
    assert repr(plateau()) == (
        "<ReduceOnPlateau(lr=0.25, factor=0.5, patience=1, mode='min', threshold=0.0001, "
        "threshold_mode='rel', cooldown=4, min_lr=0.0, eps=1e-08): best=2.0, waited=0, cooling=3>"
    )


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


# PyTorch: the rate after n calls of scheduler.step() is that of step n + 1, so it is s(n + 1).


def torch_rates(
    make: Callable[[Any, Any], Any], steps: int, lr: float = 0.3
) -> npt.NDArray[np.float64]:
    """Return the rates after 0, 1, … calls of `step` of the scheduler that is made."""
    torch: Any = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr, momentum=0.9)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an optimizer that makes no steps; SequentialLR's own
        scheduler = make(torch.optim.lr_scheduler, optimizer)
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return np.array(seen)


TORCH: dict[str, tuple[Schedule, Callable[[Any, Any], Any]]] = {
    "StepLR": (Staircase(0.3, every=7, factor=0.1), lambda lr, o: lr.StepLR(o, 7, gamma=0.1)),
    "MultiStepLR": (
        Manual({1: 0.3, 6: 0.15, 21: 0.075}),
        lambda lr, o: lr.MultiStepLR(o, [5, 20], gamma=0.5),
    ),
    "ConstantLR": (
        Manual({1: 0.1, 6: 0.3}),
        lambda lr, o: lr.ConstantLR(o, factor=1 / 3, total_iters=5),
    ),
    "LinearLR": (
        Linear(0.03, 0.24, steps=19),
        lambda lr, o: lr.LinearLR(o, 0.1, 0.8, total_iters=19),
    ),
    "LinearLR as a warm-up": (
        WarmUp(0.3, steps=19, start=0.03),
        lambda lr, o: lr.LinearLR(o, 0.1, 1.0, total_iters=19),
    ),
    "PolynomialLR": (
        Polynomial(0.3, 0.0, steps=29, power=1.7),
        lambda lr, o: lr.PolynomialLR(o, total_iters=29, power=1.7),
    ),
    "CosineAnnealingWarmRestarts": (
        CosineRestarts(0.3, steps=7, end=0.01),
        lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 7, eta_min=0.01),
    ),
    "CosineAnnealingWarmRestarts, longer": (
        CosineRestarts(0.3, steps=3, end=0.01, factor=2),
        lambda lr, o: lr.CosineAnnealingWarmRestarts(o, 3, T_mult=2, eta_min=0.01),
    ),
    "OneCycleLR": (OneCycle(0.3, steps=50), lambda lr, o: lr.OneCycleLR(o, 0.3, 50)),
    "OneCycleLR, linear": (
        OneCycle(0.3, steps=50, rise=0.37, start_divisor=3, end_divisor=7, anneal="linear"),
        lambda lr, o: lr.OneCycleLR(
            o,
            0.3,
            50,
            pct_start=0.37,
            div_factor=3,
            final_div_factor=7,
            anneal_strategy="linear",
        ),
    ),
    "OneCycleLR, three phases": (
        OneCycle(0.3, steps=50, rise=0.23, three_phase=True),
        lambda lr, o: lr.OneCycleLR(o, 0.3, 50, pct_start=0.23, three_phase=True),
    ),
    "OneCycleLR, no rise": (
        OneCycle(0.3, steps=50, rise=0.0),
        lambda lr, o: lr.OneCycleLR(o, 0.3, 50, pct_start=0.0),
    ),
    "SequentialLR": (
        chain([WarmUp(0.3, 5, start=0.03), Staircase(0.3, 4, 0.5), Linear(0.3, 0.0, 9)], [5, 30]),
        lambda lr, o: lr.SequentialLR(
            o,
            [
                lr.LinearLR(o, 0.1, 1.0, total_iters=5),
                lr.StepLR(o, 4, gamma=0.5),
                lr.LinearLR(o, 1.0, 0.0, total_iters=9),
            ],
            [5, 30],
        ),
    ),
    "LambdaLR": (InverseTime(0.3), lambda lr, o: lr.LambdaLR(o, lambda n: 1 / (1 + (n + 1)))),
}


@pytest.mark.parametrize("name", TORCH)
def test_the_rate_of_step_t_is_that_of_torch_after_t_minus_1_scheduler_steps(name: str) -> None:
    schedule, make = TORCH[name]
    np.testing.assert_allclose(rates(schedule, 50), torch_rates(make, 50), rtol=1e-11, atol=1e-15)


def test_a_cosine_is_that_of_torch_until_its_end_where_torch_turns_around() -> None:
    theirs = torch_rates(lambda lr, o: lr.CosineAnnealingLR(o, 29, eta_min=0.01), 30)
    np.testing.assert_allclose(rates(Cosine(0.3, 29, end=0.01), 30), theirs, rtol=1e-11)


def test_exponential_decay_is_one_step_ahead_of_torch_which_begins_undecayed() -> None:
    theirs = torch_rates(lambda lr, o: lr.ExponentialLR(o, 0.9), 51)
    np.testing.assert_allclose(rates(Exponential(0.3, base=0.9), 50), theirs[1:], rtol=1e-12)


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


def optax_schedules() -> dict[str, tuple[Schedule, Any]]:
    optax: Any = pytest.importorskip("optax")
    cosine = {"init_value": 0.1, "peak_value": 0.3, "warmup_steps": 5, "end_value": 0.01}
    return {
        "constant": (Constant(0.3), optax.constant_schedule(0.3)),
        "linear": (Linear(0.3, 0.1, 29), optax.linear_schedule(0.3, 0.1, 29)),
        "polynomial": (
            Polynomial(0.3, 0.1, 29, power=2.5),
            optax.polynomial_schedule(0.3, 0.1, 2.5, 29),
        ),
        "cosine_decay": (
            Cosine(0.3, 29, end=0.03),
            optax.cosine_decay_schedule(0.3, 29, alpha=0.1),
        ),
        "exponential_decay, staircase": (
            Staircase(0.3, every=7, factor=0.6),
            optax.exponential_decay(0.3, 7, 0.6, staircase=True),
        ),
        "piecewise_constant": (
            Manual({1: 0.3, 6: 0.15, 21: 0.3}),
            optax.piecewise_constant_schedule(0.3, {5: 0.5, 20: 2.0}),
        ),
        "join": (
            chain([WarmUp(0.3, 4), Cosine(0.3, 20), 0.1], [7, 31]),
            optax.join_schedules(
                [
                    optax.join_schedules(
                        [optax.linear_schedule(0.0, 0.3, 4), optax.constant_schedule(0.3)], [4]
                    ),
                    optax.cosine_decay_schedule(0.3, 20),
                    optax.constant_schedule(0.1),
                ],
                [7, 31],
            ),
        ),
        # Its decay_steps include the warm-up.
        "warmup_cosine_decay": (
            WarmUp(Cosine(0.3, 24, end=0.01), steps=5, start=0.1),
            optax.warmup_cosine_decay_schedule(**cosine, decay_steps=29),
        ),
        "warmup_exponential_decay": (
            WarmUp(Staircase(0.3, 6, 0.7), steps=5, start=0.1),
            optax.warmup_exponential_decay_schedule(0.1, 0.3, 5, 6, 0.7, staircase=True),
        ),
        "sgdr": (
            CosineRestarts(0.3, 6, end=0.1, factor=2, decay=0.5),
            optax.sgdr_schedule(
                {
                    "init_value": 0.0,
                    "peak_value": 0.1 + 0.2 * 0.5**i,
                    "warmup_steps": 0,
                    "decay_steps": 6 * 2**i,
                    "end_value": 0.1,
                }
                for i in range(4)
            ),
        ),
    }


OPTAX = [
    "constant",
    "linear",
    "polynomial",
    "cosine_decay",
    "exponential_decay, staircase",
    "piecewise_constant",
    "join",
    "warmup_cosine_decay",
    "warmup_exponential_decay",
    "sgdr",
]


@pytest.mark.parametrize("name", OPTAX)
def test_the_rate_of_step_t_is_that_of_optax_at_t_minus_1(name: str) -> None:
    schedules = optax_schedules()
    assert list(schedules) == OPTAX
    ours, theirs = schedules[name]
    expected = [float(theirs(t - 1)) for t in range(1, 51)]
    np.testing.assert_allclose(rates(ours, 50), expected, rtol=3e-6, atol=1e-8)


def test_exponential_decay_in_t_itself_is_that_of_optax_at_t() -> None:
    optax: Any = pytest.importorskip("optax")
    theirs = optax.exponential_decay(0.3, 1, 0.9)
    expected = [float(theirs(t)) for t in range(1, 51)]
    np.testing.assert_allclose(rates(Exponential(0.3, base=0.9), 50), expected, rtol=3e-6)


# In optimizers.

OPTIMIZERS = ["SGD", "Momentum", "RMSprop", "Adam", "AdamW"]
EVERY_OPTIMIZER = pytest.mark.parametrize("name", OPTIMIZERS)


def steps_of(name: str, rates_by_hand: list[float]) -> list[bytes]:
    """Return the parameters after each step with rates that are set by hand."""
    param = np.arange(1.0, 4.0)
    optimizer = getattr(schuss, name)(param)
    seen = []
    for lr in rates_by_hand:
        optimizer.lr = lr
        optimizer.step(np.cos(param))
        assert optimizer.lr_now == lr
        seen.append(param.tobytes())
    return seen


@pytest.mark.parametrize("schedule", [*FROZEN, plateau()], ids=repr)
@EVERY_OPTIMIZER
def test_a_schedule_does_what_setting_the_rate_by_hand_does(name: str, schedule: Schedule) -> None:
    param = np.arange(1.0, 4.0)
    optimizer = getattr(schuss, name)(param, lr=schedule)
    by_hand = steps_of(name, [schedule(t) for t in range(1, 13)])
    for expected in by_hand:
        optimizer.step(np.cos(param))
        assert param.tobytes() == expected
    assert optimizer.lr is schedule


@EVERY_OPTIMIZER
def test_lr_now_is_the_rate_of_the_last_step_or_of_the_first_to_come(name: str) -> None:
    param, schedule = np.ones(3), InverseTime(0.2)
    optimizer = getattr(schuss, name)(param, lr=schedule)
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
    optimizer = schuss.SGD(np.ones(3), lr=ReduceOnPlateau(0.5, factor=0.5, patience=0))
    plateau: Any = optimizer.lr
    for cost, lr in [(2.0, 0.5), (2.0, 0.5), (1.0, 0.25)]:
        optimizer.step(np.ones(3))
        plateau.update(cost)
        assert optimizer.lr_now == lr
    assert optimizer.params.tolist() == [1 - 0.5 - 0.5 - 0.25] * 3


def test_a_plateau_that_is_shared_is_told_a_cost_once() -> None:
    shared = ReduceOnPlateau(1.0, factor=0.5, patience=0)
    schedule: Any = shared
    for _ in range(11):  # 2**11 ways to it
        schedule = Chain([schedule, WarmUp(schedule, 2)], [3])
    for _ in range(3):
        schedule.update(1.0)
    assert shared.lr == 0.25


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
    for twin in (unpickled, resumed):
        assert twin.lr == schedule
        assert twin.lr_now == schedule(3)
        twin.step(np.cos(twin.params))
        assert twin.params.tobytes() == param.tobytes()


@pytest.mark.parametrize(
    "around", [lambda it: it, lambda it: Chain([0.5, WarmUp(it, 3)], [4]).per_epoch(2)]
)
def test_a_state_dict_holds_the_plateau_as_it_was_then(around: Callable[[Any], Any]) -> None:
    params = np.zeros(2)
    optimizer = schuss.SGD(params, lr=around(ReduceOnPlateau(1.0, factor=0.5, patience=0)))
    optimizer.load_state_dict(optimizer.state_dict() | {"steps": 100})
    saved = optimizer.state_dict()
    other = copy.copy(optimizer)

    def feed(times: int) -> None:
        plateau: Any = optimizer.lr
        for _ in range(times):
            plateau.update(1.0)

    feed(3)
    assert optimizer.lr_now == 0.25
    assert other.lr_now == 1.0
    optimizer.load_state_dict(saved)
    feed(2)
    assert optimizer.lr_now == 0.5
    optimizer.load_state_dict(saved)
    assert optimizer.lr_now == 1.0

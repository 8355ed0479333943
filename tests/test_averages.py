"""Exponentially weighted averages: the recurrence bit for bit, and what it means."""

import copy
import math
import pickle
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import schuss
from schuss import _core, reference
from support.arrays import LAYOUTS, Array, laid_out, numbers, same_bits

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_form = pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "bare"])

BETAS = [0.0, 1e-3, 0.5, 0.9, 0.98, 0.999, 1 - 1e-9, 1 - 2.0**-53]
BLOCK = 1024  # so many weights are computed at once, so many series run side by side
EDGES = [*range(131), *(k * BLOCK + d for k in (1, 2, 3) for d in (-1, 0, 1, 17))]


def plain_loop(series: Array, beta: float, *, corrected: bool) -> Array:
    """The recurrence, a value at a time; subnormal numbers count as zero, as in every kernel."""
    scalar = series.dtype.type
    gain, v = scalar(1 - beta), scalar(0)
    keep, loss = (scalar(1), gain) if 1 - beta < 0.5 else (scalar(beta), scalar(0))
    weights = [scalar(reference.weight_of(float(gain), t + 1)) for t in range(len(series))]
    averages = []
    with _core.subnormals_are_zero(), np.errstate(all="ignore"):
        for x, weight in zip(series, weights, strict=True):
            v = keep * v + (gain * x - loss * v)
            averages.append(v / weight if corrected else v)
    return np.array(averages, series.dtype)


# The numbers of the mission.


@pytest.mark.parametrize(("beta", "window"), [(0.9, 10), (0.98, 50), (0.5, 2), (0.0, 1)])
def test_the_effective_window_is_one_over_one_minus_beta(beta: float, window: float) -> None:
    average = schuss.ExponentialAverage(beta)
    assert average.effective_window == pytest.approx(window, rel=1e-14)
    assert average.beta == beta


def test_the_first_two_averages_are_the_worked_numbers() -> None:
    theta = [40.0, 49.0]
    bare = schuss.ewma(theta, 0.98, bias_correction=False)
    np.testing.assert_allclose(bare, [0.02 * 40, 0.0196 * 40 + 0.02 * 49], rtol=1e-14)
    corrected = schuss.ewma(theta, 0.98)
    np.testing.assert_allclose(corrected, [40, (0.0196 * 40 + 0.02 * 49) / 0.0396], rtol=1e-14)


def test_the_hundredth_average_weighs_the_past_geometrically() -> None:
    theta = np.random.default_rng(0).standard_normal(100)
    expected = sum(0.1 * 0.9**k * theta[99 - k] for k in range(100))
    v = schuss.ewma(theta, 0.9, bias_correction=False)
    np.testing.assert_allclose(v[-1], expected, rtol=1e-12)


@pytest.mark.parametrize(("beta", "percent"), [(0.9, 0.35), (0.98, 0.36), (0.999, 0.37)])
def test_a_value_weighs_about_one_over_e_after_the_effective_window(
    beta: float, percent: float
) -> None:
    window = round(schuss.ExponentialAverage(beta).effective_window)
    impulse = np.zeros(window + 1)
    impulse[0] = 1
    weights = schuss.ewma(impulse, beta, bias_correction=False)
    remains = weights[window] / weights[0]
    assert remains == pytest.approx(percent, abs=0.005)
    assert remains == pytest.approx(1 / math.e, abs=0.02)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.98, 0.999, 1 - 1e-9])
def test_corrected_averages_are_weighted_means_from_the_first_on(beta: float) -> None:
    constant = schuss.ewma(np.full(3000, 7.0), beta)
    np.testing.assert_allclose(constant, 7, rtol=1e-12)
    values = np.random.default_rng(1).uniform(2, 3, 3000)
    averages = schuss.ewma(values, beta)
    assert averages[0] == pytest.approx(values[0], rel=1e-15)
    assert averages.min() >= values.min() * (1 - 1e-12)
    assert averages.max() <= values.max() * (1 + 1e-12)


def test_without_the_correction_the_averages_start_far_too_low() -> None:
    bare = schuss.ewma(np.full(365, 20.0), 0.98, bias_correction=False)
    np.testing.assert_allclose(bare, 20 * (1 - 0.98 ** np.arange(1, 366)), rtol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.98, 0.999, 0.9999])
def test_in_float32_an_average_is_right_to_a_rounding_for_each_value_of_its_window(
    beta: float,
) -> None:
    values = np.random.default_rng(2).uniform(1, 2, 30_000)
    exact = schuss.ewma(values, beta)
    single = schuss.ewma(values.astype(np.float32), beta)
    window = schuss.ExponentialAverage(beta).effective_window
    np.testing.assert_allclose(single, exact, rtol=window * float(np.finfo(np.float32).eps))


def test_a_weight_keeps_its_digits_for_a_small_gain() -> None:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for gain in (0.1, 0.001, 1e-9, 2.0**-53, 1 - 2.0**-53):
            for t in (1, 2, 10, 1000, 10**6, 10**12):
                exact = float(1 - (1 - mpmath.mpf(gain)) ** t)
                assert reference.weight_of(gain, t) == pytest.approx(exact, rel=4e-16)
                assert _core.weight_of(gain, t) == reference.weight_of(gain, t)
    assert _core.weight_of(1.0, 1) == reference.weight_of(1.0, 1) == 1


# Peers.


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.98, 0.999])
def test_corrected_averages_are_those_of_pandas(beta: float) -> None:
    pandas = pytest.importorskip("pandas")
    values = np.random.default_rng(3).standard_normal((5000, 2))
    theirs = pandas.DataFrame(values).ewm(alpha=1 - beta, adjust=True).mean()
    np.testing.assert_allclose(
        schuss.ewma(values, beta, axis=0), theirs.to_numpy(), rtol=1e-11, atol=1e-14
    )
    series = pandas.Series(values[:, 0])
    np.testing.assert_allclose(schuss.ewma(series, beta), theirs[0], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.98])
def test_bare_averages_are_the_filter_of_scipy(beta: float) -> None:
    signal = pytest.importorskip("scipy.signal")
    values = np.random.default_rng(4).standard_normal((3, 4000))
    theirs = signal.lfilter([1 - beta], [1, -beta], values)
    ours = schuss.ewma(values, beta, bias_correction=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@every_form
def test_averages_of_arrays_are_those_of_optax(corrected: bool) -> None:
    optax = pytest.importorskip("optax")
    theirs = optax.ema(0.9, debias=corrected)
    ours = schuss.ExponentialAverage(0.9, bias_correction=corrected)
    values = np.random.default_rng(5).standard_normal((10, 7)).astype(np.float32)
    state = theirs.init(values[0])
    for x in values:
        ours.update(x)
        expected, state = theirs.update(x, state)
        np.testing.assert_allclose(ours.value, np.asarray(expected), rtol=1e-5, atol=1e-7)


# Bit for bit.


@every_form
@every_dtype
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1 - 1e-9])
def test_every_length_gives_the_bits_of_the_plain_loop(
    beta: float, dtype: Any, corrected: bool
) -> None:
    series = numbers(np.random.default_rng(6), EDGES[-1], dtype, special=False)
    expected = plain_loop(series, beta, corrected=corrected)
    for length in EDGES:
        averages = schuss.ewma(series[:length], beta, bias_correction=corrected)
        assert same_bits(averages, expected[:length]), length


@every_form
@every_dtype
@pytest.mark.parametrize("beta", BETAS)
def test_every_value_that_floating_point_has_gives_the_bits_of_the_plain_loop(
    beta: float, dtype: Any, corrected: bool
) -> None:
    rng = np.random.default_rng(7)
    for length in (1, 2, 7, 30, 30, 30, 300):
        series = numbers(rng, length, dtype)
        averages = schuss.ewma(series, beta, bias_correction=corrected)
        assert same_bits(averages, plain_loop(series, beta, corrected=corrected)), length


@every_dtype
def test_a_beta_that_rounds_up_to_the_least_normal_number_gives_the_twins_bits(dtype: Any) -> None:
    tiny = float(np.finfo(dtype).tiny)
    values = np.array([np.finfo(dtype).max / 2, 1, 1], dtype)
    for beta in (tiny, tiny * (1 - 2.0**-24), tiny * (1 - 2.0**-25), tiny / 2, 5e-324):
        assert same_bits(schuss.ewma(values, beta), reference.ewma(values, beta)), beta


def with_tail(series: Array, tail: Any) -> Array:
    series[len(series) // 3 :] = tail
    return series


def with_one(series: Array, value: float) -> Array:
    series[len(series) // 2] = value
    return series


# Series that a lane begun from zero finds hard to join: those that end in few bits or in none.
LONG: dict[str, Any] = {
    "noise": lambda x: x,
    "constant": lambda x: with_tail(x, 1 / 3),
    "ends in a constant": lambda x: with_tail(x, 3),
    "ends in zeros": lambda x: with_tail(x, 0),
    "ends in zeros of its sign": lambda x: with_tail(-abs(x), -0.0),
    "ends in the least normal numbers": lambda x: with_tail(x, np.finfo(x.dtype).tiny),
    "ends in subnormal numbers": lambda x: with_tail(x, np.finfo(x.dtype).tiny / 2),
    "zeros": lambda x: 0 * x,
    "negative zeros": lambda x: np.full_like(x, -0.0),
    "subnormal numbers": lambda x: np.full_like(x, np.finfo(x.dtype).smallest_subnormal),
    "tiny numbers": lambda x: x * np.finfo(x.dtype).tiny * 4,
    "a NaN": lambda x: with_one(x, np.nan),
    "an infinity": lambda x: with_one(x, np.inf),
    "the greatest number": lambda x: with_one(x, np.finfo(x.dtype).max),
    "integers": lambda x: np.round(x * 3),
}


@every_form
@every_dtype
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kind", LONG)
def test_a_long_series_gives_the_bits_of_the_plain_loop(
    kind: str, beta: float, dtype: Any, corrected: bool
) -> None:
    series = LONG[kind](numbers(np.random.default_rng(8), 20_011, dtype, special=False))
    expected = plain_loop(series, beta, corrected=corrected)
    assert same_bits(schuss.ewma(series, beta, bias_correction=corrected), expected)
    assert same_bits(schuss.ewma(series, beta, bias_correction=corrected, out=series), expected)


@every_dtype
@pytest.mark.parametrize("kind", ["noise", "ends in a constant", "ends in zeros", "a NaN"])
def test_a_very_long_series_gives_the_bits_of_the_plain_loop(kind: str, dtype: Any) -> None:
    series = LONG[kind](numbers(np.random.default_rng(9), 200_003, dtype, special=False))
    expected = plain_loop(series, 0.99, corrected=True)
    assert same_bits(schuss.ewma(series, 0.99), expected)
    backwards = laid_out(series, "reversed")
    assert same_bits(schuss.ewma(backwards, 0.99), expected)


@every_dtype
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5])
def test_lengths_around_the_least_that_is_split_give_the_bits_of_the_plain_loop(
    beta: float, dtype: Any
) -> None:
    series = numbers(np.random.default_rng(10), 2300, dtype, special=False)
    expected = plain_loop(series, beta, corrected=False)
    for length in range(500, 2300, 3):
        averages = schuss.ewma(series[:length], beta, bias_correction=False)
        assert same_bits(averages, expected[:length]), length


@every_dtype
@pytest.mark.parametrize("count", [*range(1, 14), 16, 17])
def test_any_number_of_series_one_after_the_other_gives_the_bits_of_each(
    count: int, dtype: Any
) -> None:
    series = numbers(np.random.default_rng(11), (count, 2500), dtype, special=False)
    series[:, 2000:] = 1
    averages = schuss.ewma(series, 0.5)
    for line, expected in zip(averages, series, strict=True):
        assert same_bits(line, plain_loop(expected, 0.5, corrected=True))


@every_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_any_number_of_series_side_by_side_gives_the_twins_bits(count: int, dtype: Any) -> None:
    series = numbers(np.random.default_rng(12), (9, count), dtype)
    assert same_bits(schuss.ewma(series, 0.9, axis=0), reference.ewma(series, 0.9, axis=0))
    deep = numbers(np.random.default_rng(13), (2, 5, count), dtype)
    for axis in (0, 1):
        twin = reference.ewma(deep, 0.9, axis=axis)
        assert same_bits(schuss.ewma(deep, 0.9, axis=axis), twin)


@every_dtype
def test_long_series_side_by_side_give_the_bits_of_each(dtype: Any) -> None:
    series = numbers(np.random.default_rng(14), (2 * BLOCK + 9, 5), dtype, special=False)
    for beta in (0.5, 0.98, 1 - 1e-9):
        averages = schuss.ewma(series, beta, axis=0)
        for i in range(series.shape[1]):
            expected = plain_loop(series[:, i], beta, corrected=True)
            assert same_bits(averages[:, i], expected), (beta, i)


@every_form
@every_dtype
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("shape", [(3, 11, 20), (20, 1, 9), (1, 9, 1)], ids=str)
def test_every_layout_and_axis_gives_the_twins_bits(
    shape: tuple[int, ...], axis: int, dtype: Any, corrected: bool
) -> None:
    values = numbers(np.random.default_rng(15), shape, dtype)
    expected = reference.ewma(values, 0.9, bias_correction=corrected, axis=axis)
    options: Any = {"bias_correction": corrected, "axis": axis}
    for layout in LAYOUTS:
        array = laid_out(values, layout)
        assert same_bits(schuss.ewma(array, 0.9, **options), expected), layout
        assert same_bits(array, values), layout
        for out_layout in LAYOUTS:
            out = laid_out(np.ones_like(values), out_layout)
            assert schuss.ewma(array, 0.9, out=out, **options) is out
            assert same_bits(out, expected), (layout, out_layout)
        assert schuss.ewma(array, 0.9, out=array, **options) is array
        assert same_bits(array, expected), layout


def test_views_whose_elements_meet_are_averaged_as_the_arrays_they_show() -> None:
    values = np.random.default_rng(16).standard_normal(50)
    for view in (
        np.broadcast_to(values, (3, 50)),
        np.broadcast_to(values[:, None], (50, 3)),
        sliding_window_view(values, 8),
    ):
        for axis in (0, 1):
            expected = reference.ewma(view.copy(), 0.9, axis=axis)
            assert same_bits(schuss.ewma(view, 0.9, axis=axis), expected)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)], ids=str)
def test_no_elements_have_no_averages(shape: tuple[int, ...]) -> None:
    for axis in range(len(shape)):
        assert schuss.ewma(np.ones(shape, np.float32), 0.9, axis=axis).shape == shape


# What stands where values are expected, and where they go.


@pytest.mark.parametrize(
    "values",
    [[1, 2, 4], (True, False, True), np.array([1, 2, 4], np.int8), np.array([1, 2, 4], ">u2")],
    ids=str,
)
def test_integers_booleans_and_lists_are_averaged_in_float64(values: Any) -> None:
    averages = schuss.ewma(values, 0.5)
    assert averages.dtype == np.float64
    expected = plain_loop(np.array(values, np.float64), 0.5, corrected=True)
    assert averages.tolist() == expected.tolist()


@every_dtype
def test_the_result_is_a_new_array_of_the_dtype_and_the_values_stay(dtype: Any) -> None:
    values = np.array([1, 2, 4], dtype)
    values.setflags(write=False)
    averages = schuss.ewma(values, 0.5)
    assert averages.dtype == dtype
    assert values.tolist() == [1, 2, 4]
    averages[0] = 9  # writeable


@pytest.mark.parametrize("corrected", [True, False])
def test_a_float32_tensor_of_torch_is_averaged_like_an_array(corrected: bool) -> None:
    torch = pytest.importorskip("torch")
    values = np.arange(5, dtype=np.float32)
    averages = schuss.ewma(torch.from_numpy(values), 0.5, bias_correction=corrected)
    assert same_bits(averages, plain_loop(values, 0.5, corrected=corrected))


@pytest.mark.parametrize("length", [5, 3000])
@pytest.mark.parametrize("shift", [-7, -1, 1, 7])
def test_out_may_overlap_the_values_elsewhere(shift: int, length: int) -> None:
    space = np.random.default_rng(17).standard_normal(length + 14)
    values, out = space[7:-7], space[7 + shift : 7 + shift + length]
    expected = plain_loop(values.copy(), 0.5, corrected=True)
    assert same_bits(schuss.ewma(values, 0.5, out=out), expected)


def test_out_may_be_the_values_in_another_order() -> None:
    values = np.random.default_rng(18).standard_normal((6, 6))
    for view in (values[::-1], values[:, ::-1], values.T):
        expected = reference.ewma(values.copy(), 0.9)
        assert same_bits(schuss.ewma(values, 0.9, out=view), expected)
    line = np.random.default_rng(19).standard_normal(3000)
    expected = plain_loop(line, 0.5, corrected=True)
    assert same_bits(schuss.ewma(line, 0.5, out=line[::-1]), expected)


def test_out_writes_nothing_beside_its_elements() -> None:
    space = np.full((40, 30), -1.0)
    out = space[5:35:3, 4:24:2]
    schuss.ewma(np.ones(out.shape), 0.9, axis=0, out=out)
    assert (out > 0).all()
    out[...] = -1
    assert (space == -1).all()


@every_form
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("length", [20, 5000])
def test_a_nan_or_an_infinity_stays_in_its_series_from_there_on(
    length: int, bad: float, corrected: bool
) -> None:
    values = np.ones((3, length))
    values[1, length // 2] = bad
    for array, axis in ((values, 1), (values.T, 0)):
        averages = schuss.ewma(array, 0.5, axis=axis, bias_correction=corrected)
        finite = np.isfinite(averages if axis == 1 else averages.T)
        assert finite[[0, 2]].all()
        assert finite[1].tolist() == [i < length // 2 for i in range(length)]


@every_dtype
def test_a_long_average_neither_shrinks_nor_grows(dtype: Any) -> None:
    """In float32, beta and 1-beta as weights are off by up to 3e-8, here 10,000 times in a row."""
    beta = 0.9999
    rng = np.random.default_rng(17)
    base = np.linspace(0.1, 2, 16)
    values = (base + 0.05 * rng.standard_normal((int(3 / (1 - beta)), 16))).astype(dtype)
    of_arrays = schuss.ExponentialAverage(beta)
    twin, exact = np.zeros(16, dtype), np.zeros(16)
    for x in values:
        of_arrays.update(x)
        reference.average(twin, x, beta=beta)
        exact += (1 - beta) * (x - exact)
    weight = reference.weight_of(1 - beta, len(values))
    for average in (of_arrays.value / 1, twin / weight, schuss.ewma(values, beta, axis=0)[-1]):
        error = average / (exact / weight) - 1
        assert abs(error.mean()) <= 2e-6
        assert abs(error).max() <= 2e-5


@every_dtype
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.75, 0.999])
def test_numbers_far_apart_have_a_finite_average(beta: float, dtype: Any) -> None:
    most = float(np.finfo(dtype).max)
    series = np.array([most, -most, most / 3, -most], dtype)
    exact = [Fraction(0)]
    for x in series.tolist():
        exact.append(Fraction(beta) * exact[-1] + (1 - Fraction(beta)) * Fraction(x))
    averages = schuss.ewma(series, beta, bias_correction=False)
    of_arrays = schuss.ExponentialAverage(beta, bias_correction=False)
    of_numbers = schuss.ExponentialAverage(beta, bias_correction=False)
    rtol = 16 * float(np.finfo(dtype).eps)
    for i, x in enumerate(series):
        of_arrays.update(series[i : i + 1])
        of_numbers.update(float(x))
        expected = float(exact[i + 1])
        for value in (averages[i], of_arrays.value[0], of_numbers.value):
            assert value == pytest.approx(expected, rel=rtol, abs=rtol * most)


def test_infinities_of_both_signs_make_a_nan() -> None:
    averages = schuss.ewma([np.inf, -np.inf, 1.0], 0.5)
    np.testing.assert_array_equal(averages, [np.inf, np.nan, np.nan])


def test_the_callers_arithmetic_knows_subnormal_numbers_before_and_after() -> None:
    tiny = np.full(3, np.finfo(np.float64).tiny)
    assert schuss.ewma(tiny, 0.9, bias_correction=False)[0] == 0
    assert (tiny * 0.5).all()


READ_ONLY = np.ones(3)
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ([1.0], {"beta": 1.0}, ValueError, r"beta is 1\.0, expected a number in \[0, 1\)"),
        ([1.0], {"beta": -0.1}, ValueError, r"beta is -0\.1, expected a number in \[0, 1\)"),
        ([1.0], {"beta": np.nan}, ValueError, r"beta is nan, expected a number in \[0, 1\)"),
        ([1.0], {"beta": "0.9"}, TypeError, "beta is a str, expected a number"),
        ([1.0], {"beta": True}, TypeError, "beta is a bool, expected a number"),
        ([1.0], {"bias_correction": 1}, TypeError, "bias_correction is 1, expected True or False"),
        ([1.0], {"axis": 1}, ValueError, "axis is 1, expected an axis of values, which has 1"),
        ([1.0], {"axis": -2}, ValueError, "axis is -2, expected an axis of values, which has 1"),
        ([1.0], {"axis": 0.0}, TypeError, "axis is a float, expected an integer"),
        ([1.0], {"axis": None}, TypeError, "axis is a NoneType, expected an integer"),
        (1.0, {}, ValueError, "axis is -1, expected an axis of values, which has 0"),
        (["a"], {}, TypeError, "values has dtype <U1, expected float32 or float64"),
        ([1j], {}, TypeError, "values has dtype complex128, expected float32 or float64"),
        ([None], {}, TypeError, "values has dtype object, expected float32 or float64"),
        (np.ones(3, np.float16), {}, TypeError, "values has dtype float16, expected float32 or"),
        (np.ones(3, np.longdouble), {}, TypeError, r"values has dtype \w+, expected float32 or"),
        (np.ones(3, ">f8"), {}, TypeError, "values has dtype >f8, expected native byte order"),
        ([[1.0], [1.0, 2.0]], {}, ValueError, "values is .*expected"),
        (np.ones(3), {"out": [0.0] * 3}, TypeError, "out is a list, expected a NumPy array"),
        (np.ones(3), {"out": np.ones(4)}, ValueError, r"out has shape \(4,\), expected \(3,\)"),
        (np.ones(3), {"out": np.ones((3, 1))}, ValueError, r"out has shape \(3, 1\), expected"),
        (
            np.ones(3),
            {"out": np.ones(3, np.float32)},
            TypeError,
            r"out has dtype float32, expected float64 \(the dtype of values\)",
        ),
        ([1, 2, 3], {"out": np.arange(3)}, TypeError, "out has dtype int64, expected float64"),
        (np.ones(3), {"out": READ_ONLY}, ValueError, "out is read-only, expected a writeable"),
        (
            np.ones(3),
            {"out": as_strided(np.ones(3), (3,), (0,))},
            ValueError,
            "out has elements that overlap",
        ),
    ],
)
def test_an_error_names_the_argument_and_changes_nothing(
    values: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arrays = [a for a in (values, options.get("out")) if isinstance(a, np.ndarray)]
    before = copy.deepcopy(arrays)
    with pytest.raises(error, match=f"^ewma: {message}"):
        schuss.ewma(values, **{"beta": 0.9} | options)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old, strict=True)


def test_a_masked_array_is_refused_as_its_mask_would_be_lost() -> None:
    masked = np.ma.masked_array([1.0, 100.0, 3.0], mask=[False, True, False])
    with pytest.raises(TypeError, match=r"^ewma: values is a MaskedArray, expected"):
        schuss.ewma(masked, 0.5)


# As values come: ExponentialAverage.


@every_form
@pytest.mark.parametrize("beta", BETAS)
def test_numbers_as_they_come_are_averaged_like_a_series(beta: float, corrected: bool) -> None:
    series = np.random.default_rng(20).standard_normal(1500)
    series[1400] = np.nan
    average = schuss.ExponentialAverage(beta, bias_correction=corrected)
    streamed = []
    for x in series.tolist():
        average.update(x)
        streamed.append(average.value)
    assert type(streamed[0]) is float
    assert same_bits(np.array(streamed), schuss.ewma(series, beta, bias_correction=corrected))


@every_form
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beta", [0.0, 0.9, 1 - 1e-9])
def test_arrays_as_they_come_are_averaged_like_series(
    beta: float, layout: str, dtype: Any, corrected: bool
) -> None:
    series = numbers(np.random.default_rng(21), (40, 7, 19), dtype, special=False)
    series[30, 2] = np.nan
    average = schuss.ExponentialAverage(beta, bias_correction=corrected)
    expected = schuss.ewma(series, beta, bias_correction=corrected, axis=0)
    for i, x in enumerate(series):
        average.update(laid_out(x, layout if i else LAYOUTS[-1]))
        assert same_bits(average.value, expected[i]), i
    assert average.updates == 40


@pytest.mark.parametrize("beta", [0.98, 0.999, 0.9999, 0.99999, 1 - 1e-8])
def test_in_float32_too_an_average_of_arrays_is_a_weighted_mean(beta: float) -> None:
    average = schuss.ExponentialAverage(beta)
    for _ in range(1000):
        average.update(np.full(3, 7, np.float32))
    np.testing.assert_allclose(average.value, 7, rtol=2e-5)


@every_dtype
def test_large_weights_are_averaged_with_the_bits_of_the_twin(dtype: Any) -> None:
    rng = np.random.default_rng(22)
    values = [numbers(rng, (517, 390), dtype) for _ in range(3)]
    average = schuss.ExponentialAverage(0.98, bias_correction=False)
    twin = np.zeros_like(values[0])
    for x in values:
        average.update(x)
        reference.average(twin, x, beta=0.98)
    assert same_bits(average.value, twin)


@every_form
def test_values_next_to_the_limits_are_read_like_a_series_and_without_a_warning(
    corrected: bool,
) -> None:
    limits = np.finfo(np.float64)
    for value in (limits.max, -limits.max, limits.tiny, 3 * limits.tiny, limits.tiny / 2):
        for beta in (0.3, 0.5, 0.7, 0.9, 0.99, 0.999):
            series = np.full(40, value)
            expected = schuss.ewma(series, beta, bias_correction=corrected)
            average = schuss.ExponentialAverage(beta, bias_correction=corrected)
            for i in range(40):
                average.update(series[i : i + 1])
                assert same_bits(average.value, expected[i : i + 1]), (value, beta, i)


def test_any_structure_of_arrays_is_averaged_and_the_value_has_the_same() -> None:
    def weights(t: float) -> dict[str, Any]:
        layers = [(np.full((3, 2), t, np.float32), np.full(2, -t)), [np.array(t)]]
        return {"W": np.asfortranarray(np.full((4, 3), 2 * t)), "layers": layers}

    average = schuss.ExponentialAverage(0.5)
    average.update(weights(1.0))
    average.update(OrderedDict(reversed(weights(4.0).items())))  # keys, not their order
    value, mean = average.value, (0.25 * 1 + 0.5 * 4) / 0.75
    assert list(value) == ["W", "layers"]
    assert type(value["layers"][0]) is tuple
    (w, b), (scalar,) = value["layers"]
    assert [a.dtype for a in (w, b, scalar)] == [np.float32, np.float64, np.float64]
    assert [a.shape for a in (value["W"], w, b, scalar)] == [(4, 3), (3, 2), (2,), ()]
    for array, factor in ((value["W"], 2), (w, 1), (b, -1), (scalar, 1)):
        np.testing.assert_allclose(array, factor * mean, rtol=1e-6)


def test_values_are_only_read_and_never_kept() -> None:
    average = schuss.ExponentialAverage(0.5, bias_correction=False)
    values = np.ones(3)
    values.setflags(write=False)
    average.update(values)
    average.update(np.broadcast_to(np.float64(3), 3))
    values.setflags(write=True)
    values[:] = 100
    assert average.value.tolist() == [1.75] * 3


@pytest.mark.parametrize("corrected", [True, False])
def test_what_was_read_belongs_to_the_reader(corrected: bool) -> None:
    average = schuss.ExponentialAverage(0.0, bias_correction=corrected)
    average.update({"w": np.ones(3)})
    first = average.value
    first["w"][:] = 100
    assert average.value["w"].tolist() == [1.0] * 3
    average.update({"w": np.full(3, 2.0)})
    assert first["w"].tolist() == [100.0] * 3


def test_any_real_number_is_a_value() -> None:
    average = schuss.ExponentialAverage(0.0)
    values: list[Any] = [2, 2.5, np.float32(2.5), np.int8(3), Fraction(1, 2), np.inf]
    for value in values:
        average.update(value)
        assert average.value == value


def test_a_tensor_of_torch_is_averaged_like_an_array() -> None:
    torch = pytest.importorskip("torch")
    average = schuss.ExponentialAverage(0.5)
    for t in (1.0, 2.0):
        average.update([torch.full((2,), t)])
    (value,) = average.value
    assert value.tolist() == schuss.ewma(np.array([1, 2], np.float32), 0.5)[-1:].tolist() * 2


def test_the_representation_tells_the_settings_and_how_far_it_is() -> None:
    average = schuss.ExponentialAverage(0.98, bias_correction=False)
    shown = "<ExponentialAverage(0.98, bias_correction=False): {}>"
    assert repr(average) == shown.format("0 updates")
    average.update(1.0)
    assert repr(average) == shown.format("1 update")
    for _ in range(999):
        average.update(1.0)
    assert repr(average) == shown.format("1,000 updates")


COPIES: dict[str, Any] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda average: pickle.loads(pickle.dumps(average)),
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", ["none yet", "numbers", "arrays"])
def test_copies_go_on_alike_and_apart(kind: str, make_copy: Any) -> None:
    def value(t: float) -> Any:
        if kind == "numbers":
            return t
        return {"a": [np.asfortranarray(np.full((3, 2), t)), np.full(4, t, np.float32)[::-1]]}

    def read(average: schuss.ExponentialAverage) -> list[Any]:
        tree = average.value
        return [tree] if kind == "numbers" else [array.tolist() for array in tree["a"]]

    average = schuss.ExponentialAverage(0.9, bias_correction=False)
    if kind != "none yet":
        average.update(value(1.0))
    twin = make_copy(average)
    assert (twin.beta, twin.bias_correction, twin.updates) == (0.9, False, average.updates)
    average.update(value(2.0))
    if kind == "none yet":
        with pytest.raises(ValueError, match="there was no update"):
            _ = twin.value
    else:
        assert read(twin) != read(average)
    twin.update(value(2.0))
    expected = schuss.ExponentialAverage(0.9, bias_correction=False)
    for t in [1.0] * (kind != "none yet") + [2.0]:
        expected.update(value(t))
    assert read(twin) == read(average) == read(expected)


ARRAYS = {"w": np.ones(3)}
LIKE_NO_VALUE: list[tuple[Any, type[Exception], str]] = [
    (True, TypeError, "values is a bool, expected a number"),
    ("1", TypeError, "values is a str, expected"),
    (None, TypeError, "values is a NoneType, expected"),
    (1j, TypeError, "values is a complex, expected"),
    ([1.0, 2.0], TypeError, r"values\[0\] is a float, expected an array"),
    ({"w": "1"}, TypeError, r"values\['w'\] is a str, expected an array"),
    ({}, ValueError, "values holds no array, expected at least one"),
    (
        np.arange(3),
        TypeError,
        "values has dtype int64, expected float32, float64, float16 or bfloat16",
    ),
    ({"w": np.ones(3, "c8")}, TypeError, r"values\['w'\] has dtype complex64, expected float32, "),
    (np.ones(3, ">f8"), TypeError, "values has dtype >f8, expected native byte order"),
]
UNLIKE_NUMBERS: list[tuple[Any, type[Exception], str]] = [
    (ARRAYS, TypeError, "values is a dict, expected a number as before"),
    (np.ones(1), TypeError, "values is a ndarray, expected a number as before"),
]
UNLIKE_ARRAYS: list[tuple[Any, type[Exception], str]] = [
    (1.0, TypeError, "values is a float, expected arrays as before"),
    (np.ones(3), ValueError, "values is a ndarray, expected a mapping"),
    ([np.ones(3)], ValueError, "values is a list, expected a mapping"),
    ({"v": np.ones(3)}, ValueError, "values has no key 'w', expected it"),
    ({"w": np.ones(3), "v": np.ones(3)}, ValueError, "values has the key 'v', expected no"),
    ({"w": np.ones(4)}, ValueError, r"values\['w'\] has shape \(4,\), expected \(3,\)"),
    ({"w": np.ones(3, "f4")}, TypeError, r"values\['w'\] has dtype float32, expected float64"),
    ({"w": np.ones(3, "f2")}, TypeError, r"values\['w'\] has dtype float16, expected float64"),
]


@pytest.mark.parametrize(
    ("before", "value", "error", "message"),
    [
        *((None, *refusal) for refusal in LIKE_NO_VALUE),
        *((1.0, *refusal) for refusal in UNLIKE_NUMBERS),
        *((ARRAYS, *refusal) for refusal in UNLIKE_ARRAYS),
    ],
)
def test_a_value_unlike_those_before_is_refused_and_changes_nothing(
    before: Any, value: Any, error: type[Exception], message: str
) -> None:
    average = schuss.ExponentialAverage(0.5)
    if before is not None:
        average.update(before)
    with pytest.raises(error, match=rf"^ExponentialAverage\.update: {message}"):
        average.update(value)
    assert average.updates == (before is not None)
    if before is None:
        average.update(2.0)  # still free to be what it likes
        assert average.value == 2.0
    else:
        np.testing.assert_equal(average.value, before)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((1.0,), {}, ValueError, r"beta is 1\.0, expected a number in \[0, 1\)"),
        (("0.9",), {}, TypeError, "beta is a str, expected a number"),
        ((0.9,), {"bias_correction": None}, TypeError, "bias_correction is None, expected True or"),
    ],
)
def test_a_setting_out_of_range_is_refused(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^ExponentialAverage: {message}"):
        schuss.ExponentialAverage(*arguments, **options)


def test_there_is_no_value_before_the_first_update() -> None:
    with pytest.raises(ValueError, match=r"^ExponentialAverage\.value: there was no update"):
        _ = schuss.ExponentialAverage(0.9).value

"""Exponentially weighted averages: the recurrence bit for bit, and what it means."""

import copy
import math
import pickle
from collections import OrderedDict
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import schuss
from schuss import _core, reference
from support.arrays import LAYOUTS, Array, laid_out, numbers, same_bits
from support.execution import execution

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_form = pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "bare"])

BETAS = [0.0, 1e-3, 0.5, 0.9, 0.98, 0.999, 1 - 1e-9, 1 - 2.0**-53]
BLOCK = 1024  # the number of weights computed at once, and of series averaged side by side
EDGES = [*range(131), *(k * BLOCK + d for k in (1, 2, 3) for d in (-1, 0, 1, 17))]
AROUND_THE_SPLIT = range(500, 2300, 3)  # the length from which a series is split is in here


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


def fast_loop(series: Array, beta: float) -> Array:
    """The recurrence without correction in float64, in plain Python, where no number is tiny."""
    gain = 1 - beta
    averages = accumulate(series.tolist(), lambda v, x: v + (gain * x - gain * v), initial=0.0)
    return np.array([*averages][1:])


# Worked numbers.


@pytest.mark.parametrize(("beta", "window"), [(0.9, 10), (0.98, 50), (0.5, 2), (0.0, 1)])
def test_the_effective_window_is_one_over_one_minus_beta(beta: float, window: float) -> None:
    average = schuss.ExponentialAverage(beta)
    assert average.effective_window == pytest.approx(window, rel=1e-14)
    assert average.beta == beta


def test_averages_are_the_worked_numbers() -> None:
    theta = [40.0, 49.0]
    bare = schuss.ewma(theta, 0.98, bias_correction=False)
    np.testing.assert_allclose(bare, [0.02 * 40, 0.0196 * 40 + 0.02 * 49], rtol=1e-14)
    corrected = schuss.ewma(theta, 0.98)
    np.testing.assert_allclose(corrected, [40, (0.0196 * 40 + 0.02 * 49) / 0.0396], rtol=1e-14)
    values = np.random.default_rng(0).standard_normal(100)
    expected = sum(0.1 * 0.9**k * values[99 - k] for k in range(100))
    bare = schuss.ewma(values, 0.9, bias_correction=False)
    np.testing.assert_allclose(bare[-1], expected, rtol=1e-12)
    for beta, window in ((0.9, 10), (0.98, 50)):  # so old a value weighs about 1/e of a new one
        weights = schuss.ewma(np.eye(1, window + 1)[0], beta, bias_correction=False)
        assert weights[-1] / weights[0] == pytest.approx(1 / math.e, abs=0.02)
    bare = schuss.ewma(np.full(365, 20.0), 0.98, bias_correction=False)  # starts far too low
    np.testing.assert_allclose(bare, 20 * (1 - 0.98 ** np.arange(1, 366)), rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.98, 0.999, 1 - 1e-9])
def test_corrected_averages_are_weighted_means_from_the_first_on(beta: float) -> None:
    constant = schuss.ewma(np.full(3000, 7.0), beta)
    np.testing.assert_allclose(constant, 7, rtol=1e-12)
    values = np.random.default_rng(1).uniform(2, 3, 3000)
    averages = schuss.ewma(values, beta)
    assert averages[0] == pytest.approx(values[0], rel=1e-15)
    assert averages.min() >= values.min() * (1 - 1e-12)
    assert averages.max() <= values.max() * (1 + 1e-12)


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
    ours = schuss.ewma(values, beta, axis=0)
    np.testing.assert_allclose(ours, theirs.to_numpy(), rtol=1e-11, atol=1e-14)
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
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_every_length_gives_the_bits_of_the_plain_loop(
    beta: float, dtype: Any, corrected: bool
) -> None:
    series = numbers(np.random.default_rng(6), EDGES[-1], dtype, special=False)
    expected = plain_loop(series, beta, corrected=corrected)
    for length in {*EDGES, *AROUND_THE_SPLIT}:
        averages = schuss.ewma(series[:length], beta, bias_correction=corrected)
        assert same_bits(averages, expected[:length]), length


@every_form
@every_dtype
@pytest.mark.parametrize("beta", BETAS)
def test_every_floating_point_value_gives_the_bits_of_the_plain_loop(
    beta: float, dtype: Any, corrected: bool
) -> None:
    rng = np.random.default_rng(7)
    for length in (1, 2, 7, 30, 30, 30, 300):
        series = numbers(rng, length, dtype)
        averages = schuss.ewma(series, beta, bias_correction=corrected)
        assert same_bits(averages, plain_loop(series, beta, corrected=corrected)), length


@every_dtype
def test_a_beta_that_rounds_to_the_least_normal_number_gives_the_bits_of_the_reference(
    dtype: Any,
) -> None:
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


# A lane starts from zero within a series. It is hard to join where few or no bits change.
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
VERY_LONG = ["noise", "ends in a constant", "ends in zeros", "a NaN"]


@every_dtype
@pytest.mark.parametrize(
    ("kind", "length", "beta", "corrected"),
    [
        *((kind, 20_011, b, form) for kind in LONG for b in (0.0, 0.5, 0.9) for form in (0, 1)),
        *((kind, 200_003, 0.99, 1) for kind in VERY_LONG),
    ],
)
def test_a_long_series_gives_the_bits_of_the_plain_loop(
    kind: str, length: int, beta: float, corrected: int, dtype: Any
) -> None:
    series = LONG[kind](numbers(np.random.default_rng(8), length, dtype, special=False))
    options: dict[str, Any] = {"bias_correction": bool(corrected)}
    expected, of_reversed = (
        plain_loop(each, beta, corrected=bool(corrected)) for each in (series, series[::-1])
    )
    expected_pair = np.column_stack([expected, of_reversed])
    for threads in (1, 2, 3, 8):
        with execution(threads=threads, threshold=0):
            assert same_bits(schuss.ewma(series, beta, **options), expected)
            assert same_bits(schuss.ewma(laid_out(series, "reversed"), beta, **options), expected)
            values = series.copy()
            assert same_bits(schuss.ewma(values, beta, out=values, **options), expected)
            pair = np.column_stack([series, series[::-1]])
            assert same_bits(schuss.ewma(pair, beta, axis=0, **options), expected_pair)
            schuss.ewma(pair, beta, axis=0, out=pair, **options)
            assert same_bits(pair, expected_pair)


# In place, a series is averaged a part at a time, and what a part replaces is saved.
MANY: dict[str, Any] = {
    "noise": lambda x: x,
    "ends in a constant": lambda x: with_tail(x, 3),
    "a constant": lambda x: np.full_like(x, 1 / 3),
    "a NaN": lambda x: with_one(x, np.nan),
    "great numbers, then small ones": lambda x: with_tail(x * 1e300, 1e-3),
}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kind", MANY)
@pytest.mark.parametrize("beta", [0.75, 0.9, 0.999])
def test_many_values_are_averaged_in_place_as_in_plain_python(
    beta: float, kind: str, threads: int
) -> None:
    series = MANY[kind](np.random.default_rng(13).standard_normal(700_001))
    expected = fast_loop(series, beta)
    with execution(threads=threads, threshold=0):
        for view in (laid_out(series, "c"), laid_out(series, "reversed")):
            assert schuss.ewma(view, beta, out=view, bias_correction=False) is view
            assert same_bits(view, expected)


@every_dtype
@pytest.mark.parametrize("count", [*range(1, 14), 16, 17])
def test_each_series_of_several_has_the_bits_of_the_plain_loop(count: int, dtype: Any) -> None:
    series = numbers(np.random.default_rng(11), (count, 2500), dtype, special=False)
    series[:, 2000:] = 1
    averages = schuss.ewma(series, 0.5)
    for line, expected in zip(averages, series, strict=True):
        assert same_bits(line, plain_loop(expected, 0.5, corrected=True))
    for threads in (2, 5):
        with execution(threads=threads, threshold=0):
            assert same_bits(schuss.ewma(series, 0.5), averages)


@every_dtype
@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_any_number_of_series_side_by_side_gives_the_bits_of_the_reference(
    count: int, dtype: Any
) -> None:
    rng = np.random.default_rng(12)
    long = (2 * BLOCK + 9, min(count, 5))
    for shape, axis in [((9, count), 0), ((2, 5, count), 0), ((2, 5, count), 1), (long, 0)]:
        series = numbers(rng, shape, dtype)
        for beta in (0.5, 0.9, 1 - 1e-9):
            expected = reference.ewma(series, beta, axis=axis)
            for threads in (1, 3):
                with execution(threads=threads, threshold=0):
                    assert same_bits(schuss.ewma(series, beta, axis=axis), expected)


@every_form
@every_dtype
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("shape", [(3, 11, 20), (20, 1, 9), (1, 9, 1)], ids=str)
def test_every_layout_and_axis_gives_the_bits_of_the_reference(
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


def test_views_whose_elements_overlap_are_averaged_as_copies_of_them_are() -> None:
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


# Values of other types, and the output.


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
    averages[0] = 9  # the result is writeable


@every_form
def test_a_tensor_of_torch_is_averaged_like_an_array(corrected: bool) -> None:
    torch = pytest.importorskip("torch")
    values = np.arange(5, dtype=np.float32)
    expected = plain_loop(values, 0.5, corrected=corrected)
    averages = schuss.ewma(torch.from_numpy(values), 0.5, bias_correction=corrected)
    assert same_bits(averages, expected)
    average = schuss.ExponentialAverage(0.5, bias_correction=corrected)
    for x in values:
        average.update([torch.full((2,), float(x))])
    (value,) = average.value
    assert same_bits(value, expected[-1:].repeat(2))


@pytest.mark.parametrize("length", [5, 3000])
@pytest.mark.parametrize("shift", [-7, -1, 1, 7])
def test_out_may_overlap_the_values_elsewhere(shift: int, length: int) -> None:
    space = np.random.default_rng(17).standard_normal(length + 14)
    values, out = space[7:-7], space[7 + shift : 7 + shift + length]
    expected = plain_loop(values.copy(), 0.5, corrected=True)
    assert same_bits(schuss.ewma(values, 0.5, out=out), expected)


@pytest.mark.parametrize("shape", [(6, 6), (3000,)])
def test_out_may_be_the_values_in_another_order(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(18).standard_normal(shape)
    for view in (values[::-1], values[..., ::-1], values.T):
        expected = reference.ewma(values.copy(), 0.5)
        assert same_bits(schuss.ewma(values, 0.5, out=view), expected)


def test_only_the_elements_of_out_are_written() -> None:
    space = np.full((40, 30), -1.0)
    out = space[5:35:3, 4:24:2]
    schuss.ewma(np.ones(out.shape), 0.9, axis=0, out=out)
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
    """As float32 weights, beta and 1-beta are off by up to 3e-8, here 10,000 times in a row."""
    beta = 0.9999
    rng = np.random.default_rng(17)
    base = np.linspace(0.1, 2, 16)
    values = (base + 0.05 * rng.standard_normal((int(3 / (1 - beta)), 16))).astype(dtype)
    of_arrays = schuss.ExponentialAverage(beta)
    by_reference, exact = np.zeros(16, dtype), np.zeros(16)
    for x in values:
        of_arrays.update(x)
        reference.average(by_reference, x, beta=beta)
        exact += (1 - beta) * (x - exact)
    weight = reference.weight_of(1 - beta, len(values))
    for average in (
        of_arrays.value / 1,
        by_reference / weight,
        schuss.ewma(values, beta, axis=0)[-1],
    ):
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


def test_the_callers_arithmetic_has_subnormal_numbers_before_and_after() -> None:
    tiny = np.full(3, np.finfo(np.float64).tiny)
    assert schuss.ewma(tiny, 0.9, bias_correction=False)[0] == 0
    assert (tiny * 0.5).all()


ONES, READ_ONLY = np.ones(3), np.ones(3)
READ_ONLY.setflags(write=False)
ONE_ELEMENT_THREE_TIMES = as_strided(np.ones(3), (3,), (0,))
BAD_SETTINGS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"beta": 1.0}, ValueError, r"beta is 1\.0, expected a number in \[0, 1\)"),
    ({"beta": -0.1}, ValueError, r"beta is -0\.1, expected a number in \[0, 1\)"),
    ({"beta": np.nan}, ValueError, r"beta is nan, expected a number in \[0, 1\)"),
    ({"beta": "0.9"}, TypeError, "beta is a str, expected a number"),
    ({"beta": True}, TypeError, "beta is a bool, expected a number"),
    ({"bias_correction": 1}, TypeError, "bias_correction is 1, expected True or False"),
    ({"bias_correction": None}, TypeError, "bias_correction is None, expected True or False"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_SETTINGS)
def test_a_setting_out_of_range_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^ewma: {message}"):
        schuss.ewma([1.0], **{"beta": 0.9} | options)
    with pytest.raises(error, match=f"^ExponentialAverage: {message}"):
        schuss.ExponentialAverage(**{"beta": 0.9} | options)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ([1.0], {"axis": 1}, ValueError, "axis is 1, expected an axis of values, which has 1"),
        ([1.0], {"axis": -2}, ValueError, "axis is -2, expected an axis of values, which has 1"),
        ([1.0], {"axis": 0.0}, TypeError, "axis is a float, expected an integer"),
        ([1.0], {"axis": None}, TypeError, "axis is a NoneType, expected an integer"),
        (1.0, {}, ValueError, "axis is -1, expected an axis of values, which has 0"),
        (["a"], {}, TypeError, "values has dtype <U1, expected float32, float64, complex64 or"),
        ([None], {}, TypeError, "values has dtype object, expected float32, float64, complex64 or"),
        (ONES.astype("e"), {}, TypeError, "values has dtype float16, expected float32, "),
        (ONES.astype("g"), {}, TypeError, r"values has dtype \w+, expected float32, "),
        (ONES.astype(">f8"), {}, TypeError, "values has dtype >f8, expected native byte order"),
        ([[1.0], [1.0, 2.0]], {}, ValueError, "values is .*expected"),
        (np.ma.masked_array(ONES, ONES == 0), {}, TypeError, "values is a MaskedArray, expected"),
        (ONES, {"out": [0.0] * 3}, TypeError, "out is a list, expected a NumPy array"),
        (ONES, {"out": np.ones(4)}, ValueError, r"out has shape \(4,\), expected \(3,\)"),
        (ONES, {"out": np.ones((3, 1))}, ValueError, r"out has shape \(3, 1\), expected"),
        (
            ONES,
            {"out": ONES.astype("f")},
            TypeError,
            r"out has dtype float32, expected float64 \(the dtype of values\)",
        ),
        ([1, 2, 3], {"out": np.arange(3)}, TypeError, "out has dtype int64, expected float64"),
        (ONES, {"out": READ_ONLY}, ValueError, "out is read-only, expected a writeable"),
        (ONES, {"out": ONE_ELEMENT_THREE_TIMES}, ValueError, "out has elements that overlap"),
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


# One value after the other: ExponentialAverage.


@every_form
@pytest.mark.parametrize("beta", BETAS)
def test_numbers_one_by_one_are_averaged_like_a_series(beta: float, corrected: bool) -> None:
    series = np.random.default_rng(20).standard_normal(1500)
    series[1400] = np.nan
    average = schuss.ExponentialAverage(beta, bias_correction=corrected)
    averages = []
    for x in series.tolist():
        average.update(x)
        averages.append(average.value)
    assert type(averages[0]) is float
    assert same_bits(np.array(averages), schuss.ewma(series, beta, bias_correction=corrected))


@every_form
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beta", [0.0, 0.9, 1 - 1e-9])
def test_arrays_one_by_one_are_averaged_like_series(
    beta: float, layout: str, dtype: Any, corrected: bool
) -> None:
    series = numbers(np.random.default_rng(21), (40, 7, 19), dtype, special=False)
    series[30, 2] = np.nan
    average = schuss.ExponentialAverage(beta, bias_correction=corrected)
    expected = schuss.ewma(series, beta, bias_correction=corrected, axis=0)
    with execution(threads=3, tile=16, threshold=0):
        for i, x in enumerate(series):
            average.update(laid_out(x, layout if i else LAYOUTS[-1]))
            assert same_bits(average.value, expected[i]), i
    assert average.updates == 40


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


def test_the_average_of_any_structure_of_arrays_has_that_structure() -> None:
    def weights(t: float) -> dict[str, Any]:
        layers = [(np.full((3, 2), t, np.float32), np.full(2, -t)), [np.array(t)]]
        return {"W": np.asfortranarray(np.full((4, 3), 2 * t)), "layers": layers}

    average = schuss.ExponentialAverage(0.5)
    average.update(weights(1.0))
    average.update(OrderedDict(reversed(weights(4.0).items())))  # the order of keys does not count
    value, mean = average.value, (0.25 * 1 + 0.5 * 4) / 0.75
    assert list(value) == ["W", "layers"]
    assert type(value["layers"][0]) is tuple
    (w, b), (scalar,) = value["layers"]
    assert [a.dtype for a in (w, b, scalar)] == [np.float32, np.float64, np.float64]
    assert [a.shape for a in (value["W"], w, b, scalar)] == [(4, 3), (3, 2), (2,), ()]
    for array, factor in ((value["W"], 2), (w, 1), (b, -1), (scalar, 1)):
        np.testing.assert_allclose(array, factor * mean, rtol=1e-6)


@every_form
def test_values_are_only_read_and_what_was_read_is_the_readers_own(corrected: bool) -> None:
    average = schuss.ExponentialAverage(0.5, bias_correction=corrected)
    values = np.ones(3)
    values.setflags(write=False)
    average.update({"w": values})
    average.update({"w": np.broadcast_to(np.float64(3), 3)})
    values.setflags(write=True)
    values[:] = 100
    first, weight = average.value, 0.75 if corrected else 1.0
    assert first["w"].tolist() == [1.75 / weight] * 3
    first["w"][:] = 100
    assert average.value["w"].tolist() == [1.75 / weight] * 3


def test_any_real_number_is_a_value() -> None:
    average = schuss.ExponentialAverage(0.0)
    values: list[Any] = [2, 2.5, np.float32(2.5), np.int8(3), Fraction(1, 2), np.inf]
    for value in values:
        average.update(value)
        assert average.value == value
    assert repr(average) == "<ExponentialAverage(0.0, bias_correction=True): 6 updates>"


def trees(t: float) -> Any:
    return {"a": [np.asfortranarray(np.full((3, 2), t)), np.full(4, t, np.float32)[::-1]]}


@pytest.mark.parametrize(
    "make_copy", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
@pytest.mark.parametrize("value", [float, trees], ids=["numbers", "arrays"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_copy_continues_alike_and_independently(before: int, value: Any, make_copy: Any) -> None:
    def updated(average: Any, *values: float) -> Any:
        for t in values:
            average.update(value(t))
        return average

    def fresh() -> Any:
        return schuss.ExponentialAverage(0.9, bias_correction=False)

    average = updated(fresh(), *[1.0] * before)
    other = make_copy(average)
    assert (other.beta, other.bias_correction, other.updates) == (0.9, False, before)
    updated(average, 2.0)
    assert other.updates == before
    expected = updated(fresh(), *[1.0] * before, 2.0)
    for each in (average, updated(other, 2.0)):
        np.testing.assert_equal(each.value, expected.value)


ARRAYS = {"w": np.ones(3)}
DTYPES = "has dtype {}, expected float32, float64, float16, bfloat16, complex64 or".format


@pytest.mark.parametrize(
    ("before", "value", "error", "message"),
    [
        (None, True, TypeError, "values is a bool, expected a number"),
        (None, "1", TypeError, "values is a str, expected"),
        (None, None, TypeError, "values is a NoneType, expected"),
        (None, 1j, TypeError, "values is a complex, expected"),
        (None, [1.0, 2.0], TypeError, r"values\[0\] is a float, expected an array"),
        (None, {"w": "1"}, TypeError, r"values\['w'\] is a str, expected an array"),
        (None, {}, ValueError, "values contains no arrays, expected at least one"),
        (None, np.arange(3), TypeError, f"values {DTYPES('int64')}"),
        (None, {"w": np.ones(3, "i8")}, TypeError, rf"values\['w'\] {DTYPES('int64')}"),
        (None, np.ones(3, ">f8"), TypeError, "values has dtype >f8, expected native byte order"),
        (1.0, ARRAYS, TypeError, "values is a dict, expected a number as before"),
        (1.0, np.ones(1), TypeError, "values is a ndarray, expected a number as before"),
        (ARRAYS, 1.0, TypeError, "values is a float, expected arrays as before"),
        (ARRAYS, ONES, ValueError, "values is a ndarray, expected a mapping"),
        (ARRAYS, [ONES], ValueError, "values is a list, expected a mapping"),
        (ARRAYS, {"v": ONES}, ValueError, "values has no key 'w' .it has 'v'., expected it"),
        (ARRAYS, {"w": ONES, "v": ONES}, ValueError, "values has the key 'v', expected no"),
        (ARRAYS, {"w": np.ones(4)}, ValueError, r"values\['w'\] has shape \(4,\), expected \(3,\)"),
        (
            ARRAYS,
            {"w": ONES.astype("i8")},
            TypeError,
            r"values\['w'\] has dtype int64, expected float64",
        ),
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
        with pytest.raises(ValueError, match=r"^ExponentialAverage\.value: there is no value yet"):
            _ = average.value
        average.update(2.0)  # the first value that is accepted decides what is averaged
        assert average.value == 2.0
    else:
        np.testing.assert_equal(average.value, before)

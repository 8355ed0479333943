"""float16 and bfloat16: exact conversions, computation in float32, random rounding of state."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import (
    LAYOUTS,
    Array,
    empty_like_layout,
    equal,
    laid_out,
    numbers,
    same_bits,
)
from support.cases import CASES, Case, run
from support.optimizers import assert_same, every_variant, make_optimizer, make_reference

ml_dtypes = pytest.importorskip("ml_dtypes")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [np.dtype(np.float16), BFLOAT16]
FLOAT32 = np.dtype(np.float32)

SHAPES = [(), (0, 3), (17,), (300,), (70, 33), (9, 20, 7)]

# Formats of gradients that are widened to float64, the format of their parameters and state.
TO_FLOAT64 = [(np.dtype(np.float64), of_grad, None) for of_grad in (FLOAT32, *HALVES)]

every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def every_value(dtype: np.dtype[Any]) -> Array:
    return np.arange(1 << 16).astype(np.uint16).view(dtype)


def every_kind_of_float32() -> Array:
    """Return floats with all upper 16 bits, near the ties of both formats, and random ones."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000, 0x0FFF, 0x1001, 0x3000, 0xF000])
    bits = (high[:, None] | low.astype(np.uint32)).ravel()
    more = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    return np.concatenate([bits, more]).view(np.float32)


def without_subnormals(values: Array) -> Array:
    tiny = np.finfo(np.float32).tiny
    return np.where(np.abs(values) < tiny, np.copysign(np.float32(0), values), values)


# Conversions.


@pytest.mark.usefixtures("level")
@every_half
def test_every_value_is_read_as_it_is(dtype: np.dtype[Any]) -> None:
    grads = every_value(dtype)
    params = np.zeros(grads.shape, np.float32)
    schuss.kernels.sgd(params, grads, lr=1.0)
    with np.errstate(invalid="ignore"):
        assert same_bits(params, 0 - without_subnormals(grads.astype(np.float32)))


@pytest.mark.usefixtures("level")
@every_half
def test_a_parameter_that_is_not_changed_stays_as_it_is(dtype: np.dtype[Any]) -> None:
    params = every_value(dtype)
    with np.errstate(invalid="ignore"):
        before = without_subnormals(params.astype(np.float32)).astype(dtype)
    schuss.kernels.sgd(params, np.ones(params.shape, dtype), lr=0.0)
    assert same_bits(params, before)


@pytest.mark.usefixtures("level", "memory")
@every_half
def test_rounding_is_to_nearest_even_as_numpy_and_ml_dtypes_have_it(dtype: np.dtype[Any]) -> None:
    params = every_kind_of_float32()
    optimizer = schuss.SGD(params, lr=0.0, copies=dtype)
    optimizer.step(np.zeros_like(params))
    with np.errstate(all="ignore"):
        expected = params.astype(dtype)
    assert same_bits(optimizer.copies, expected)


@pytest.mark.usefixtures("level", "memory")
@every_half
def test_copies_at_any_address_are_written_and_nothing_else(dtype: np.dtype[Any]) -> None:
    for offset in range(34):
        params = np.arange(1.0, 168 - offset, dtype=np.float32)
        space = np.zeros(200, dtype)
        schuss.SGD(params, copies=space[offset : offset + params.size]).step(np.ones_like(params))
        expected = np.zeros_like(space)
        expected[offset : offset + params.size] = params
        assert same_bits(space, expected)


# Whole steps.


@pytest.mark.parametrize(
    ("of_param", "of_grad", "state_dtype"),
    [*product([FLOAT32, *HALVES], [FLOAT32, *HALVES], [None, "bfloat16"]), *TO_FLOAT64],
    ids=str,
)
@every_variant
@pytest.mark.usefixtures("memory")
def test_every_combination_of_formats_has_the_references_bits(
    name: str,
    options: Mapping[str, Any],
    of_param: np.dtype[Any],
    of_grad: np.dtype[Any],
    state_dtype: str | None,
) -> None:
    rng = np.random.default_rng(0)
    params = [numbers(rng, shape, of_param) for shape in SHAPES]
    options = {"average": 0.9, "clip_value": 0.7, "clear_grads": True, "seed": 3, **options}
    options |= {"maximize": of_grad == BFLOAT16, "bounds": (-1.3, 0.7)}
    options |= {"state_dtype": state_dtype, "copies": BFLOAT16 if of_param == FLOAT32 else None}
    expected = make_reference(name, [param.copy() for param in params], **options)
    optimizer = make_optimizer(name, params, **options)
    # At last a scale, and a rate, that float32 cannot represent.
    for scale, lr in ((1.0, 0.1), (0.25, 0.1), (3e-42, 0.1), (-3e-60, 0.1), (1e39, 1e-39)):
        optimizer.lr = lr
        expected.set(lr=lr)
        grads = [numbers(rng, shape, of_grad) for shape in SHAPES]
        copies = [grad.copy() for grad in grads]
        optimizer.step(grads, scale=scale)
        expected.step(copies, scale=scale)
        assert_same(optimizer, expected)
        assert equal(grads, copies)


@pytest.mark.parametrize("of_grad", [FLOAT32, *HALVES], ids=str)
@pytest.mark.parametrize("of_param", [FLOAT32, np.dtype(np.float64), *HALVES], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_have_the_references_bits_in_low_precision(
    case: Case, of_param: np.dtype[Any], of_grad: np.dtype[Any]
) -> None:
    rng = np.random.default_rng(6)
    of_param = FLOAT32 if case.rule == "average" else of_param  # an average has no parameter
    param = numbers(rng, (7, 30), of_param)
    gradients = [numbers(rng, (7, 30), of_grad) for _ in range(3)]

    def make_state(like: Array) -> Array:
        return np.zeros(like.shape, np.float64 if of_param == np.float64 else np.float32)

    copy = param.copy()
    fused = list(run(case, schuss.kernels, param, gradients, make_state))
    if case.rule == "average":
        gradients = [gradient.astype(np.float32) for gradient in gradients]
    assert equal(fused, list(run(case, reference, copy, gradients, make_state)))


@pytest.mark.usefixtures("share_all", "memory")
@pytest.mark.parametrize("of_copy", ["c", "fortran", "sliced", "unaligned"])
@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_param", LAYOUTS)
def test_low_precision_has_the_references_bits_in_every_layout(
    of_param: str, of_grad: str, of_copy: str
) -> None:
    rng = np.random.default_rng(2)
    options: dict[str, Any] = {"state_dtype": "bfloat16", "average": 0.5, "clear_grads": True}
    for shape in ((7, 131), (3, 1, 40), (130, 3)):
        param = laid_out(rng.standard_normal(shape).astype(np.float32), of_param)
        grad = laid_out(rng.standard_normal(shape).astype(BFLOAT16), of_grad)
        copies = empty_like_layout(of_copy, shape, BFLOAT16)
        # In the same layout, since the random bits depend on the index in memory.
        expected = make_reference("Adam", laid_out(param, of_param), copies=BFLOAT16, **options)
        optimizer = schuss.Adam(param, copies=copies, **options)
        assert same_bits(copies, param.astype(BFLOAT16))
        for _ in range(2):
            grad[...] = rng.standard_normal(shape)
            copy = grad.copy()
            optimizer.step(grad)
            expected.step(copy)
            assert_same(optimizer, expected)
            assert same_bits(copies, optimizer.copies)
            assert not grad.any()


# What an optimizer shows.


def ones(size: int) -> Array:
    return np.ones(size, BFLOAT16)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Adam(w)", 8),
        ("Adam(w, state_dtype='bfloat16')", 4),
        ("Adam(w, state_dtype='8bit')", 2.0625),
        ("Adam(w, state_dtype='8bit', amsgrad=True)", 3.09375),
        ("Momentum(ones(w.size), state_dtype='8bit', master='float32')", 3.03125),
        ("SGD(ones(w.size), master='float32')", 2),
        ("SGD(ones(w.size), master='float24')", 1),
        ("SGD(ones(w.size), state_dtype='8bit', round_params='random')", 0),
        ("Momentum([w, ones(w.size)], state_dtype='8bit', master='float32')", 2 * 1.03125 + 2),
    ],
)
def test_the_bytes_of_state_are_those_of_its_format(kind: str, expected: float) -> None:
    w = np.zeros(128 * 64, np.float32)
    optimizer = eval(kind, {**vars(schuss), "w": w, "ones": ones})
    assert (optimizer.state_bytes / w.size, type(optimizer.state_bytes)) == (expected, int)
    for option in ("state_dtype", "master", "round_params"):
        assert (f"{option}=" in repr(optimizer)) == (option in kind)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_in_8_bits_is_shown_as_values_that_cannot_be_written(layout: str) -> None:
    param = laid_out(np.zeros((64, 64), np.float32), layout)
    optimizer = schuss.Momentum(param, lr=0.0, beta=0.0, state_dtype="8bit")
    grad = np.full((64, 64), -1, np.float32)
    grad[3, 5] = 4
    optimizer.step(grad)
    state = optimizer.state["velocity"]
    assert (state.dtype, state.shape, state.flags.writeable) == (np.float32, (64, 64), False)
    assert np.argsort(np.abs(state.strides)).tolist() == np.argsort(np.abs(param.strides)).tolist()
    np.testing.assert_allclose(state, grad, rtol=0.02)  # a quarter is between (63/127)**2 and 64's
    assert state[3, 5] == pytest.approx(4)
    assert optimizer.state_dtype == "8bit"


def test_small_parameters_keep_state_in_float32() -> None:
    params = {"small": np.zeros((63, 65), np.float32), "large": np.zeros((64, 64), np.float32)}
    optimizer = schuss.Momentum(params, state_dtype="8bit")
    optimizer.state["velocity"]["small"][...] = 1  # a view
    assert optimizer.state["velocity"]["small"].all()
    saved = optimizer.state_dict()["state"]["velocity"]
    assert saved["small"].dtype == np.float32
    assert saved["large"].dtype.names == ("scale", "codes")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("master", ["float32", "float24"])
def test_the_values_of_masters_are_float32_in_the_structure_of_the_parameters(
    master: Any, layout: str
) -> None:
    param, w = laid_out(ones(12).reshape(4, 3), layout), np.ones(2, np.float32)
    optimizer = schuss.SGD([param, {"w": w}], lr=2**-12, master=master, average=0.5)
    for t in range(1, 4):
        optimizer.step([np.ones((4, 3), np.float32), {"w": np.ones(2, np.float32)}])
        values, others = optimizer.master[0], optimizer.master[1]["w"]
        assert (values.dtype, others.dtype) == (np.float32, np.float32)
        assert not np.shares_memory(others, w)
        assert (values == 1 - t * 2**-12).all()
        assert (others == 1 - t * 2**-12).all()
    assert (param == 1).all()
    optimizer.average = None
    optimizer.average = 0.5
    averages: Any = optimizer.average  # begin with the values
    assert (averages[0] == 1 - 3 * 2**-12).all()
    assert schuss.SGD(param).master is None


# Random rounding.


def test_the_second_moment_does_not_stall() -> None:
    """In each step v decays by less than half a unit in the last place of bfloat16."""
    params = np.zeros(10_000, np.float32)
    optimizer = schuss.Adam(params, lr=0.0, beta2=0.999, state_dtype="bfloat16")
    optimizer.state["v"][...] = 1.0
    nearest = np.ones(1, BFLOAT16)
    for _ in range(1000):
        optimizer.step(np.zeros_like(params))
        nearest = (nearest.astype(np.float32) * np.float32(0.999)).astype(BFLOAT16)
    assert nearest[0] == 1  # rounding to nearest stalls
    mean = optimizer.state["v"].astype(np.float64).mean()
    assert mean == pytest.approx(0.999**1000, rel=0.01)


def rounded(value: float, count: int, seed: int, steps: int) -> Array:
    """Return for each step and element whether the value was rounded up."""
    params = np.zeros(count, np.float32)
    optimizer = schuss.Momentum(params, lr=0.0, beta=0.0, state_dtype="bfloat16", seed=seed)
    grads = np.full(count, value, np.float32)
    ups = []
    for _ in range(steps):
        optimizer.step(grads)
        ups.append(optimizer.state["velocity"].astype(np.float32) > value)
    return np.array(ups)


@pytest.mark.parametrize("share", [1 / 256, 0.25, 0.5, 0.9])
def test_the_share_rounded_up_is_the_distance_from_the_lower_neighbour(share: float) -> None:
    """Of 400,000 draws, five standard deviations are at most 0.004."""
    ups = rounded(1 + share * 2**-7, 100_000, 0, 4)
    assert abs(ups.mean() - share) < 5 * np.sqrt(share * (1 - share) / ups.size)


def test_roundings_near_each_other_are_not_correlated() -> None:
    ups = 2.0 * rounded(1 + 2**-8, 1 << 17, 0, 8) - 1
    draws = ups.shape[1]
    for lag in (*range(1, 70), 128, 256, 1024, 4096):
        correlation = (ups[:, :-lag] * ups[:, lag:]).mean(1)
        assert np.abs(correlation).max() < 6 / np.sqrt(draws - lag), lag
    between_steps = ups @ ups.T / draws - np.eye(len(ups))
    assert np.abs(between_steps).max() < 6 / np.sqrt(draws)
    other_seed = 2.0 * rounded(1 + 2**-8, 1 << 17, 1, 8) - 1
    assert np.abs((ups * other_seed).mean(1)).max() < 6 / np.sqrt(draws)


def test_each_state_of_a_rule_is_rounded_with_its_own_bits() -> None:
    params = np.zeros(1 << 16, np.float32)
    optimizer = schuss.Adam(params, lr=0.0, beta1=0.0, beta2=0.0, state_dtype="bfloat16")
    optimizer.step(np.full(params.shape, np.sqrt(1 + 2**-8), np.float32))
    m, v = (optimizer.state[name].astype(np.float32) for name in "mv")
    ups = [2.0 * (each > each.mean()) - 1 for each in (m, v)]
    assert abs((ups[0] * ups[1]).mean()) < 6 / np.sqrt(params.size)


def test_values_that_bfloat16_can_represent_are_not_rounded() -> None:
    with np.errstate(invalid="ignore"):
        values = every_value(BFLOAT16).astype(np.float32)
    params = np.zeros_like(values)
    optimizer = schuss.Momentum(params, lr=0.0, beta=0.0, state_dtype="bfloat16")
    optimizer.step(values)
    with np.errstate(invalid="ignore"):
        expected = (without_subnormals(values) + np.float32(0)).astype(BFLOAT16)  # g + 0*v
    assert same_bits(optimizer.state["velocity"], expected)

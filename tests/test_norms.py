"""The norms of the update and of the parameters: `track_norms`."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import LAYOUTS, Array, dtype_of, laid_out, numbers
from support.execution import execution
from support.optimizers import assert_same, assert_same_outcome, make_optimizer, make_reference

F4 = np.float32


def norms(optimizer: Any) -> tuple[float | None, float | None]:
    return optimizer.last.update_norm, optimizer.last.param_norm


WORKED: list[tuple[dict[str, Any], Any, Any, float, float]] = [
    ({}, [np.array([3.0, 4.0])], [np.array([0.0, 2.0])], 2, 5),
    (
        {},
        [np.array([2.0]), np.array([[3.0, 6.0]])],
        [np.array([4.0]), np.array([[4.0, 2.0]])],
        6,
        7,
    ),
    ({"lr": 0.5}, [np.full(10_000, 0.5, F4)], [np.full(10_000, 0.25, F4)], 12.5, 50),
    ({"weight_decay": 0.5}, [np.array([6.0, 8.0])], [np.zeros(2)], 5, 10),
    ({"bounds": (0, None)}, [np.array([1.0, 1.0])], [np.array([9.0, 1.0])], 2**0.5, 2**0.5),
    ({"maximize": True, "clip_value": 3.0}, [np.array([0.0])], [np.array([9.0])], 3, 0),
    ({}, [np.array([256.0], np.float16)], [np.array([0.0625], np.float16)], 0, 256),
    ({}, [np.array([3 + 4j, 12j])], [np.array([3 + 0j, 4j])], 5, 13),
    ({}, [np.array([3e200, 4e200])], [np.array([3e200, -4e200])], 5e200, 5e200),
    ({}, [np.array([3e-200, 4e-200])], [np.array([6e-200, 8e-200])], 1e-199, 5e-200),
    ({}, [np.full(4, 1e308)], [np.zeros(4)], 0, math.inf),
    ({}, [np.array([1.0, np.inf])], [np.array([1.0, -np.inf])], math.nan, math.inf),
    ({}, [np.array([np.inf, np.nan])], [np.zeros(2)], math.nan, math.nan),
    ({}, [np.zeros((0, 3))], [np.zeros((0, 3))], 0, 0),
]


@pytest.mark.parametrize(("options", "params", "grads", "update", "param"), WORKED)
def test_the_norms_of_worked_steps(
    options: dict[str, Any], params: Any, grads: Any, update: float, param: float
) -> None:
    optimizer = schuss.SGD([p.copy() for p in params], **{"lr": 1.0, **options}, track_norms=True)
    optimizer.step(grads)
    assert norms(optimizer) == pytest.approx((update, param), rel=2**-52, nan_ok=True)


def exact_norm(values: list[float]) -> float:
    """Return the norm by exact arithmetic, rounded once."""
    total = sum(Fraction(x) ** 2 for x in values)
    with localcontext(prec=60, Emax=99999, Emin=-99999):
        return float((Decimal(total.numerator) / Decimal(total.denominator)).sqrt())


def test_the_norms_are_exact_to_the_last_place_but_one_in_any_order() -> None:
    rng = np.random.default_rng(0)
    for spread in (0, 3, 30, 300):
        before = rng.standard_normal(500) * 10.0 ** rng.integers(-spread, spread + 1, 500)
        after = before - rng.standard_normal(500)
        found = reference.update_norms([before], [after])
        expected = exact_norm((after - before).tolist()), exact_norm(before.tolist())
        assert found == pytest.approx(expected, rel=2**-51)
        order = rng.permutation(500)
        pieces = [np.split(each[order], [7, 300]) for each in (before, after)]
        assert reference.update_norms(*pieces) == found


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "complex64", "complex128"]
)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("threads", "tile"), [(1, 16384), (3, 1000), (8, 7)])
@pytest.mark.usefixtures("level")
def test_the_norms_are_the_references_in_every_layout(
    dtype: str, special: bool, threads: int, tile: int
) -> None:
    rng = np.random.default_rng(1)
    shape, kind = (30, 150), dtype_of(dtype)
    values, grads = ([numbers(rng, shape, kind, special=special) for _ in LAYOUTS] for _ in "ab")
    params = [laid_out(value, layout) for value, layout in zip(values, LAYOUTS, strict=True)]
    with execution(threads=threads, tile=tile, threshold=0):
        optimizer: Any = schuss.Adam(params, lr=0.1, track_norms=True)
        for layouts in (LAYOUTS, LAYOUTS[::-1]):
            before = [param.copy() for param in params]
            optimizer.step([laid_out(g, each) for g, each in zip(grads, layouts, strict=True)])
            expected = reference.update_norms(before, params)
            assert norms(optimizer) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


# Parameters that rest, steps that are skipped.


@pytest.mark.parametrize("layout", ["c", "reversed", "sliced", "unaligned"])
@pytest.mark.parametrize(
    "options", [{}, {"average": 0.5}, {"average": 0.5, "copies": "float16"}, {"clear_grads": True}]
)
def test_parameters_that_rest_count_where_they_are(layout: str, options: dict[str, Any]) -> None:
    values = [np.array([3.0, 4.0], F4), np.array([12.0], F4), np.array([84.0], F4)]
    params = [laid_out(value, layout) for value in values]
    groups = {"1": {"frozen": True}}.get
    optimizer: Any = schuss.SGD(params, lr=1.0, track_norms=True, groups=groups, **options)
    one = np.ones(1, F4)
    for _ in range(2):
        optimizer.step([None, one, None])
        assert norms(optimizer) == (0, 85)
    optimizer.step([np.array([0, 4], F4), one, None])
    assert norms(optimizer) == (4, 85)
    optimizer.param_groups[1]["frozen"] = False
    optimizer.step([None, 7 * one, None])
    assert norms(optimizer) == (7, (9 + 144 + 84**2) ** 0.5)
    assert [param.tolist() for param in params] == [[3, 0], [5], [84]]


def test_a_parameter_that_rests_or_is_skipped_has_no_change_even_if_it_is_infinite() -> None:
    for cls in (make_optimizer, make_reference):
        params = [np.array([np.inf, 1.0]), np.array([3.0])]
        options: dict[str, Any] = {"nonfinite": "skip", "average": 0.5, "track_norms": True}
        optimizer = cls("SGD", params, lr=1.0, **options)
        optimizer.step([None, np.array([2.0])])
        assert norms(optimizer) == (2, np.inf)
        optimizer.step([np.array([0.0, 1.0]), np.array([np.nan])])
        assert norms(optimizer) == (0, np.inf)


@pytest.mark.parametrize("layout", ["c", "fortran", "sliced", "unaligned"])
@pytest.mark.parametrize("of_state", [None, "bfloat16"])
@pytest.mark.parametrize("clear_grads", [False, True])
def test_a_skipped_step_has_the_norm_of_the_parameters_and_no_update(
    layout: str, of_state: str | None, clear_grads: bool
) -> None:
    param = laid_out(np.full((20, 30), 2, F4), layout)
    grad = laid_out(np.full((20, 30), np.inf, F4), layout)
    other = np.array([10.0], F4)
    optimizer = schuss.Adam(
        [param, other],
        nonfinite="skip",
        clear_grads=clear_grads,
        track_norms=True,
        state_dtype=None if of_state is None else dtype_of(of_state),
    )
    optimizer.step([grad, None])
    assert norms(optimizer) == (0, 50)
    assert (optimizer.skipped, param.max(), param.min(), other.tolist()) == (1, 2, 2, [10])
    assert np.array_equal(grad, np.zeros_like(grad) if clear_grads else np.full_like(grad, np.inf))


def test_a_step_that_raises_keeps_the_norms_of_the_step_before() -> None:
    optimizer = schuss.SGD(np.array([3.0]), lr=1.0, nonfinite="raise", track_norms=True)
    optimizer.step(np.array([1.0]))
    with pytest.raises(FloatingPointError):
        optimizer.step(np.array([np.nan]))
    assert norms(optimizer) == (1, 3)


def test_steps_from_accumulated_gradients_have_norms() -> None:
    a, b = np.array([3.0]), np.array([4.0])
    optimizer = schuss.SGD([a, b], lr=1.0, track_norms=True)
    for _ in range(2):
        optimizer.accumulate([np.ones(1), None])
    optimizer.step()
    assert norms(optimizer) == (2, 5)


# The option.


def test_norms_are_tracked_from_the_next_step_on_also_of_parameters_that_rest() -> None:
    a, b = np.array([3.0]), np.array([4.0])
    optimizer = schuss.SGD([a, b], lr=1.0)
    grads = [np.zeros(1), None]
    optimizer.step(grads)
    assert norms(optimizer) == (None, None)
    assert repr(optimizer.last) == "Last(grad_norm=None, clipped=False, skipped=False)"
    optimizer.track_norms = True
    assert norms(optimizer) == (None, None)
    optimizer.step(grads)
    assert norms(optimizer) == (0, 5)
    assert repr(optimizer.last) == (
        "Last(grad_norm=None, clipped=False, skipped=False, update_norm=0.0, param_norm=5.0)"
    )
    assert "track_norms=True" in repr(optimizer)
    other = schuss.SGD([a, b])
    other.load_state_dict(optimizer.state_dict())
    assert other.track_norms is True
    other.step(grads)
    assert norms(other) == (0, 5)
    optimizer.track_norms = False
    optimizer.step(grads)
    assert norms(optimizer) == (None, None)


@pytest.mark.parametrize("name", ["Adam", "Lion"])
def test_tracking_changes_no_bit_of_the_step(name: str) -> None:
    rng = np.random.default_rng(3)
    values = numbers(rng, 20_000, F4)
    options: dict[str, Any] = {"lr": 0.1, "average": 0.9, "copies": "float16"}
    optimizer = make_optimizer(name, values.copy(), track_norms=True, **options)
    model = make_reference(name, values.copy(), track_norms=True, **options)
    plain = make_optimizer(name, values.copy(), **options)
    for _ in range(3):
        grad: Array = numbers(rng, 20_000, F4)
        for each in (optimizer, model, plain):
            each.step(grad.copy())
    assert_same(optimizer, model)
    assert_same_outcome(optimizer, model)
    assert_same(plain, model)

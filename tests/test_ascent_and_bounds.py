"""`maximize` and `bounds`: steps along the gradient, and parameters that stay in a box."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import reference
from support.arrays import Array, bits, dtype_of, leaves, numbers, same_bits
from support.optimizers import every_optimizer, make_optimizer
from support.refusals import refusal

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])


def clipped(values: Array, low: float | None, high: float | None) -> Array:
    """Return what NumPy clips to, with the bounds in the array's dtype."""
    with np.errstate(over="ignore"):
        limits = [None if limit is None else values.dtype.type(limit) for limit in (low, high)]
    result: Array = np.clip(values, *limits).astype(values.dtype)  # that of bfloat16 is float32
    return result


# Ascent.


def test_maximize_changes_the_sign_of_the_gradient_before_weight_decay() -> None:
    w = np.array([1.0, 2.0])
    schuss.SGD(w, lr=0.5, weight_decay=0.25, maximize=True).step(np.array([3.0, -4.0]))
    assert w.tolist() == [1 - 0.5 * (-3 + 0.25 * 1), 2 - 0.5 * (4 + 0.25 * 2)]


@every_optimizer
def test_to_maximize_is_to_step_with_the_gradients_of_the_other_sign(name: str) -> None:
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"lr": 0.1, "clip_norm": 0.7, "clip_value": 0.3}
    ours = rng.standard_normal((2, 40)).astype(np.float32)
    theirs = ours.copy()
    up = make_optimizer(name, ours, maximize=True, **options)
    down = make_optimizer(name, theirs, **options)
    for _ in range(3):
        grad = rng.standard_normal(ours.shape).astype(np.float32)
        up.accumulate(grad)
        up.step(scale=0.5)
        down.step(-grad, scale=0.5)
        assert same_bits(ours, theirs)
        assert up.last == down.last


# Bounds.


@pytest.mark.parametrize("bounds", [(-0.3, 0.7), (None, 0.1), (0.1, None), (0.1, 0.1), (-1e6, 9.0)])
@every_dtype
def test_bounds_are_those_of_numpy_clip_in_the_dtype_of_the_parameter(
    dtype: str, bounds: tuple[float | None, float | None]
) -> None:
    rng = np.random.default_rng(0)
    w = numbers(rng, 3000, dtype_of(dtype))
    with np.errstate(all="ignore"):
        free = (w.astype(np.promote_types(dtype_of("float32"), w.dtype)) - 0.25).astype(w.dtype)
    optimizer = schuss.SGD(w, lr=0.25, bounds=bounds)
    optimizer.step(np.ones(3000, w.dtype))
    assert optimizer.bounds == bounds
    expected = clipped(free, *bounds)
    assert same_bits(w, expected)


@pytest.mark.parametrize("lr", [0.1, 0.0, 1e-41])
@every_optimizer
def test_each_step_puts_parameters_between_bounds_before_averages_and_copies(
    name: str, lr: float
) -> None:
    rng = np.random.default_rng(1)
    grad = rng.standard_normal(500).astype(np.float32)
    w = 2 * rng.standard_normal(500).astype(np.float32)
    free = w.copy()
    unbounded = make_optimizer(name, free, lr=lr)
    options: dict[str, Any] = {"average": 0.5, "copies": "float16"}
    optimizer = make_optimizer(name, w, lr=lr, bounds=(-0.5, 1), **options)
    unbounded.step(grad)
    optimizer.step(grad)
    assert same_bits(w, np.clip(free, -0.5, 1))
    assert same_bits(optimizer.average, w)
    assert same_bits(optimizer.copies, w.astype(np.float16))
    assert bits(leaves(optimizer.state)) == bits(leaves(unbounded.state))


def test_a_skipped_step_leaves_parameters_outside_their_bounds() -> None:
    w = np.array([-1.0, 3.0])
    optimizer = schuss.SGD(w, bounds=(0, 2), nonfinite="skip")
    optimizer.step(np.array([np.nan, 0.0]))
    assert w.tolist() == [-1, 3]
    optimizer.step(np.zeros(2))
    assert w.tolist() == [0, 2]


def test_kernels_put_the_parameter_between_bounds() -> None:
    w = np.array([0.5, 0.5])
    schuss.kernels.sgd(w, np.array([1.0, -1.0]), lr=1.0, bounds=(0, None))
    assert w.tolist() == [0, 1.5]


# Both are options that each group may have of its own.


def test_a_group_has_its_own_direction_and_bounds_which_can_be_set_between_steps() -> None:
    a, b = np.zeros(1), np.zeros(1)
    groups: Any = [{"params": a}, {"params": b, "maximize": True, "bounds": (None, 1.5)}]
    optimizer: Any = schuss.SGD(groups, lr=1.0)
    grads = [np.ones(1), np.ones(1)]
    optimizer.step(grads)
    assert (a.item(), b.item()) == (-1, 1)
    optimizer.step(grads)
    assert (a.item(), b.item()) == (-2, 1.5)
    assert (optimizer.maximize, optimizer.param_groups[1]["maximize"]) == (False, True)
    optimizer.maximize, optimizer.bounds = True, (0, np.inf)
    optimizer.param_groups[1]["maximize"] = False
    optimizer.step(grads)
    assert (a.item(), b.item()) == (0, 0.5)
    assert optimizer.bounds == optimizer.param_groups[0]["bounds"] == (0, None)


@pytest.mark.parametrize(
    "how",
    [
        copy.copy,
        copy.deepcopy,
        lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    ],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_keeps_both(how: Any) -> None:
    optimizer = how(schuss.SGD(np.zeros(1), maximize=True, bounds=(-1, None)))
    assert (optimizer.maximize, optimizer.bounds) == (True, (-1, None))
    assert "maximize=True, bounds=(-1.0, None)" in repr(optimizer)


def test_saved_optimizers_of_versions_without_both_have_the_defaults() -> None:
    optimizer, other = schuss.Adam(np.zeros(1)), schuss.Adam(np.zeros(1), bounds=(0, 1))
    saved, pickled = optimizer.state_dict(), optimizer.__getstate__()
    for settings in (saved["hyperparameters"], pickled["settings"]["hyperparameters"]):
        del settings["maximize"], settings["bounds"]
    other.load_state_dict(saved)
    fresh = schuss.Adam.__new__(schuss.Adam)
    fresh.__setstate__(pickled)
    for loaded in (other, fresh):
        assert (loaded.maximize, loaded.bounds) == (False, None)


BAD_BOUNDS: list[tuple[Any, type[Exception], str]] = [
    (1.0, TypeError, " is 1.0, expected (low, high) or None"),
    ("ab", TypeError, " is 'ab', expected (low, high) or None"),
    ((1.0,), ValueError, " is (1.0,), expected (low, high) or None"),
    ((0, "1"), TypeError, "[1] is a str, expected a number"),
    ((np.nan, None), ValueError, "[0] is nan, expected a number"),
    ((1, 0), ValueError, " is (1, 0), expected (low, high) with low <= high"),
    ((np.inf, None), ValueError, " is (inf, None), expected (low, high) with low <= high"),
    ((None, -1e300), ValueError, " is -1e+300, expected 0 or a magnitude from 1.2e-38 to 3.4e+38"),
    ((1e-40, 1), ValueError, " is 1e-40, expected 0 or a magnitude from 1.2e-38 to 3.4e+38"),
]


@pytest.mark.parametrize(("bounds", "error", "words"), BAD_BOUNDS)
def test_what_are_no_bounds_is_refused(bounds: Any, error: type[Exception], words: str) -> None:
    w = np.zeros(2, np.float32)
    optimizer: Any = schuss.SGD(w)
    with refusal(error, f"SGD: bounds{words}", keeps=[optimizer]):
        optimizer.bounds = bounds
    with refusal(error, f"SGD: bounds{words}", keeps=[w]):
        schuss.SGD(w, bounds=bounds)
    with refusal(error, f"kernels.sgd: bounds{words}", keeps=[w]):
        schuss.kernels.sgd(w, w.copy(), lr=0.1, bounds=bounds)
    with refusal(error, "SGD: params[1]['bounds']" if "[" in words else "SGD: ", keeps=[w]):
        schuss.SGD([{"params": np.zeros(1)}, {"params": w, "bounds": bounds}])


def test_bounds_apply_to_the_parameter_as_it_is_stored() -> None:
    """The sign of a zero that float16 rounds to is that of the reference."""
    start = np.full(2, 1e-3, np.float16)
    grad = start.astype(np.float32) + np.array([1e-9, -1e-9], np.float32)
    params = start.copy(), start.copy(), start.copy()
    schuss.SGD(params[0], lr=1.0, bounds=(0, None)).step(grad)
    reference.Optimizer("sgd", params[1], lr=1.0, bounds=(0, None)).step(grad)
    half: Any = params[2]
    reference.sgd(half, grad, lr=1.0, bounds=(0, None))
    assert same_bits(params[0], params[1])
    assert same_bits(params[0], params[2])


@pytest.mark.parametrize(
    ("dtype", "bounds"), [("float16", (70000, None)), ("float64", (5e-324, None))]
)
def test_bounds_that_the_dtype_cannot_hold_are_refused(dtype: str, bounds: Any) -> None:
    with pytest.raises(ValueError, match=r"bounds .*expected"):
        schuss.SGD(np.zeros(2, dtype), bounds=bounds)

"""Landscapes: their gradients are right, and optimizers descend them as theory says."""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import schuss
from schuss.landscapes import Landscape, bowl, descend, plateau, rosenbrock, saddle, steps_until

LANDSCAPES = [bowl(), bowl(condition=3.5), saddle(), plateau(), rosenbrock(), rosenbrock(2, 7)]
EVERY_LANDSCAPE = pytest.mark.parametrize("landscape", LANDSCAPES, ids=lambda land: land.formula)
POINTS = np.array([[0.5, -1.5], [-2.0, 0.25], [3.0, 1.0]])

# Momentum in the averaging form, and as Polyak wrote it.
FORMS = pytest.mark.parametrize("dampening", [None, 0.0], ids=["averaging", "Polyak"])


def steps_to_settle(landscape: Landscape, optimizer: Callable[..., Any], below: float) -> float:
    """Return the steps from (-10, 1) until the cost is and stays below a bound."""
    path = descend(optimizer, landscape, (-10, 1), 1000)
    steps = steps_until(path, lambda points: landscape(points) < below, for_good=True)
    return np.inf if steps is None else steps


# The surfaces.


@EVERY_LANDSCAPE
@given(st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_the_gradient_agrees_with_central_differences(
    landscape: Landscape, position: tuple[float, float]
) -> None:
    low, high = np.array(landscape.window).T
    point = low + np.array(position) * (high - low)
    h = 1e-5
    above, below = landscape(point + h * np.eye(2)), landscape(point - h * np.eye(2))
    expected = (above - below) / (2 * h)
    np.testing.assert_allclose(landscape.gradient(point), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("landscape", "point", "cost", "gradient"),
    [
        (bowl(), (-10, 1), 100, (-10, 100)),
        (bowl(condition=1), (3, 4), 12.5, (3, 4)),
        (bowl(condition=25), (1, 2), 50.5, (1, 50)),
        (saddle(), (3, 0), 9, (6, 0)),
        (saddle(), (0, 3), -9, (0, -6)),
        (plateau(), (-4, 0), 1 - np.e**-8, (-4 * np.e**-8, 0)),
        (plateau(), (1, 1), 1 - 1 / np.e, (1 / np.e, 1 / np.e)),
        (rosenbrock(), (-1.2, 1), 24.2, (-215.6, -88)),
        (rosenbrock(a=2, b=7), (1, 3), 29, (-58, 28)),
    ],
)
def test_costs_and_gradients_at_known_points(
    landscape: Landscape, point: Any, cost: float, gradient: Any
) -> None:
    assert landscape(point) == pytest.approx(cost, rel=1e-12)
    np.testing.assert_allclose(landscape.gradient(point), gradient, rtol=1e-12)


@EVERY_LANDSCAPE
def test_a_minimum_is_lower_than_all_around_it_and_a_saddle_is_not(landscape: Landscape) -> None:
    assert (landscape.minimum is None) is (landscape.name == "saddle")
    center = np.array(landscape.saddle if landscape.minimum is None else landscape.minimum)
    assert landscape.gradient(center).tolist() == [0, 0]
    assert landscape(center) == 0
    angles = np.linspace(0, 2 * np.pi, 100)
    around = landscape(center + 1e-3 * np.stack([np.cos(angles), np.sin(angles)], axis=-1))
    assert around.max() > 0
    assert bool(around.min() > 0) is (landscape.minimum is not None)
    assert all(low < c < high for c, (low, high) in zip(center, landscape.window, strict=True))


@EVERY_LANDSCAPE
@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (0,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_points_may_have_any_shape_and_float32_stays_float32(
    landscape: Landscape, dtype: Any, shape: tuple[int, ...]
) -> None:
    points = np.random.default_rng(0).integers(-2, 3, size=(*shape, 2)).astype(dtype)
    before = points.copy()
    costs, gradients = landscape(points), landscape.gradient(points)
    assert (np.shape(costs), gradients.shape) == (shape, (*shape, 2))
    assert costs.dtype == gradients.dtype == (np.float32 if dtype == np.float32 else np.float64)
    np.testing.assert_array_equal(points, before)
    for i in np.ndindex(shape):
        assert costs[i] == landscape(points[i])
        np.testing.assert_array_equal(gradients[i], landscape.gradient(points[i]))


def test_a_cost_may_be_the_same_everywhere() -> None:
    flat = Landscape("flat", "3", lambda x, y: 3.0, lambda x, y: (0, 0), ((-1, 1), (-1, 1)))  # type: ignore[arg-type, return-value]
    costs = flat(POINTS.astype(np.float32))
    assert (costs.tolist(), costs.dtype) == ([3, 3, 3], np.float32)
    assert (flat([1, 2]), np.shape(flat([1, 2]))) == (3, ())


def test_what_is_too_far_away_for_floating_point_is_no_error_in_any_errstate_of_numpy() -> None:
    with np.errstate(all="raise"):
        assert plateau().gradient([38.0, 0.0])[0] == pytest.approx(0, abs=1e-300)
        assert bowl()([1e200, 0.0]) == np.inf


def test_a_landscape_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        bowl().name = "hill"  # type: ignore[misc]


# Paths of descent.


def test_gradient_descent_takes_the_path_that_theory_gives() -> None:
    path = descend(partial(schuss.SGD, lr=0.019), bowl(condition=100), (-10, 1), 50)
    t = np.arange(51)
    expected = np.stack([-10 * (1 - 0.019) ** t, (1 - 1.9) ** t], axis=1)
    assert path.dtype == np.float64
    np.testing.assert_allclose(path, expected, rtol=1e-12)
    assert path[0].tolist() == [-10, 1]


def test_the_start_is_not_modified_and_begins_the_path() -> None:
    start = np.array([-10.0, 1.0])
    path = descend(schuss.Adam, bowl(), start, 3)
    assert start.tolist() == [-10, 1] == path[0].tolist()
    assert not np.shares_memory(path, start)
    assert descend(schuss.SGD, saddle(), [1, 2], 0).tolist() == [[1, 2]]


def test_any_object_with_a_step_descends() -> None:
    class Signs:
        def __init__(self, params: Any) -> None:
            self.params = params

        def step(self, grads: Any) -> None:
            self.params -= np.sign(grads)

    assert descend(Signs, bowl(), (-2, 1), 3).tolist() == [[-2, 1], [-1, 0], [0, 0], [0, 0]]


def test_a_path_that_diverges_warns_of_nothing() -> None:
    path = descend(partial(schuss.SGD, lr=1.0), bowl(), (-10, 1), 1000)
    assert np.abs(path[150]).max() > 1e290
    assert not np.isfinite(path[-1, 1])
    assert not np.isfinite(bowl()(path)[150:]).any()


@pytest.mark.parametrize("condition", [100, 1000])
@FORMS
def test_momentum_beats_gradient_descent_on_the_elongated_bowl(
    dampening: float | None, condition: float
) -> None:
    # Each has the best of many rates, up to rates that diverge; beta is 0.9.
    land = bowl(condition)
    reach = 1 / (1 - 0.9) if dampening is None else 1.0
    plain = min(
        steps_to_settle(land, partial(schuss.SGD, lr=lr), below=1e-2)
        for lr in np.linspace(0.1, 2, 77) / condition
    )
    momentum = min(
        steps_to_settle(land, partial(schuss.Momentum, lr=reach * lr, dampening=dampening), 1e-2)
        for lr in np.linspace(0.1, 3.8, 75) / condition
    )
    assert momentum < plain / 2


def test_at_the_rates_of_theory_momentum_beats_gradient_descent_by_the_root_of_the_condition() -> (
    None
):
    # Polyak 1964: a step at best keeps (k - 1)/(k + 1) of the distance, and with momentum, in the
    # long run, (sqrt(k) - 1)/(sqrt(k) + 1).
    k, root = 100.0, 10.0
    plain = steps_to_settle(bowl(k), partial(schuss.SGD, lr=2 / (1 + k)), below=1e-2)
    assert plain == np.ceil(np.log(1e-2 / 100) / np.log((99 / 101) ** 2))  # the cost starts at 100
    beta = ((root - 1) / (root + 1)) ** 2
    polyak = partial(schuss.Momentum, lr=4 / (1 + root) ** 2, beta=beta, dampening=0.0)
    averaging = partial(schuss.Momentum, lr=4 / (1 + root) ** 2 / (1 - beta), beta=beta)
    assert steps_to_settle(bowl(k), polyak, below=1e-2) < plain / 4
    assert steps_to_settle(bowl(k), averaging, below=1e-2) < plain / 4


@pytest.mark.parametrize("adaptive", [schuss.RMSprop, schuss.Adam])
def test_rmsprop_and_adam_leave_the_plateau_sooner_and_stay_in_the_valley(adaptive: Any) -> None:
    def in_the_valley(points: Any) -> Any:
        return plateau()(points) < 0.5

    path = descend(partial(adaptive, lr=0.05), plateau(), (-5, 1), 5000)
    steps = steps_until(path, in_the_valley, for_good=True)
    assert steps is not None
    # The others have rates up to those that diverge in the valley, where the curvature is 1:
    # 2 for gradient descent and 2 (1 + beta) for momentum. Lower rates only take longer.
    others: list[Callable[..., Any]] = [
        *(partial(schuss.SGD, lr=lr) for lr in (0.05, 1, 2)),
        *(partial(schuss.Momentum, lr=lr) for lr in (0.05, 10, 38)),
        *(partial(schuss.Momentum, lr=lr, dampening=0.0) for lr in (0.05, 1, 3.8)),
    ]
    for other in others:
        slow = steps_until(descend(other, plateau(), (-5, 1), 3 * steps), in_the_valley)
        assert slow is None


@pytest.mark.parametrize(
    "optimizer",
    [
        schuss.SGD,
        schuss.Momentum,
        partial(schuss.Momentum, dampening=0.0),
        schuss.RMSprop,
        schuss.Adam,
        schuss.AdamW,
    ],
)
@pytest.mark.parametrize("offset", [1e-9, -1e-3])
def test_all_optimizers_leave_the_saddle_from_just_off_its_ridge(
    optimizer: Callable[..., Any], offset: float
) -> None:
    path = descend(partial(optimizer, lr=0.05), saddle(), (-1, offset), 500)
    steps = steps_until(path, lambda points: points[:, 1] * np.sign(offset) > 1, for_good=True)
    assert steps is not None
    assert saddle()(path[-1]) < -0.5


def test_gradient_descent_that_starts_on_the_ridge_stays_there_for_ever() -> None:
    path = descend(partial(schuss.SGD, lr=0.05), saddle(), (-1, 0), 20_000)
    assert not path[:, 1].any()
    # The last step changed nothing, so no further step will.
    assert path[-1].tolist() == path[-2].tolist()
    assert abs(path[-1, 0]) < 1e-300


def test_adam_and_momentum_find_the_end_of_rosenbrocks_valley() -> None:
    for optimizer in partial(schuss.Adam, lr=0.02), partial(schuss.Momentum, lr=0.005):
        path = descend(optimizer, rosenbrock(), (-1.2, 1), 20_000)
        np.testing.assert_allclose(path[-1], [1, 1], atol=1e-3)


# Counting steps.


def within_one(points: Any) -> Any:
    return np.abs(points[:, 0]) <= 1


@pytest.mark.parametrize(
    ("xs", "first", "for_good"),
    [
        ([4, 3, 1, 0], 2, 2),
        ([1, 3, 1, 0], 0, 2),
        ([4, 1, 3, 4], 1, None),
        ([4, 3, 3, 1], 3, 3),
        ([0, 0, 0], 0, 0),
        ([4], None, None),
        ([1], 0, 0),
        ([4, np.nan, 1], 2, 2),
    ],
)
def test_steps_until_counts_to_the_first_time_and_for_good_to_the_last_return(
    xs: list[float], first: int | None, for_good: int | None
) -> None:
    path = np.stack([xs, np.full(len(xs), 9.0)], axis=1)
    assert steps_until(path, within_one) == first
    assert steps_until(path, within_one, for_good=True) == for_good


# Refusals.


class NoMethod:
    """An optimizer whose `step` cannot be called."""

    step = 3

    def __init__(self, params: Any) -> None: ...


AN_OPTIMIZER = "expected a function that makes an optimizer, like schuss.Adam"
REFUSED = {
    ValueError: {
        "bowl(0.5)": "condition is 0.5, expected a finite number >= 1",
        "rosenbrock(nan)": "a is nan, expected a finite number >= 0",
        "rosenbrock(1, -1.0)": "b is -1.0, expected a finite number >= 0",
        "bowl()([1, 2, 3])": "points has shape (3,), expected (..., 2)",
        "bowl()([[1, 2], [3]])": "points is not an array (",
        "bowl().gradient(3)": "points has shape (), expected (..., 2)",
        "descend(SGD, bowl(), [1, [2]], 3)": "start is not an array (",
        "descend(SGD, bowl(), (1, 2, 3), 3)": "start has shape (3,), expected (2,)",
        "descend(SGD, bowl(), (1, inf), 3)": "start is [1.0, inf], expected two finite numbers",
        "descend(SGD, bowl(), (1, 2), -1)": "steps is -1, expected an integer >= 0",
        "steps_until([1, 2], within_one)": "path has shape (2,), expected (steps + 1, 2)",
        "steps_until(ones((0, 2)), within_one)": "path has shape (0, 2), expected (steps + 1, 2)",
        "steps_until(POINTS, lambda p: p > 1)": (
            "condition returns bool of shape (3, 2), expected bool of shape (3,)"
        ),
    },
    TypeError: {
        "bowl('9')": "condition is a str, expected a number",
        "bowl()(['a', 'b'])": "points has dtype <U1, expected real numbers",
        "descend(NoMethod, bowl(), (1, 2), 3)": f"optimizer makes a NoMethod, {AN_OPTIMIZER}",
        "descend(SGD(ones(2)), bowl(), (1, 2), 3)": f"optimizer is of type SGD, {AN_OPTIMIZER}",
        "descend(sum, bowl(), (1, 2), 3)": f"optimizer makes a float64, {AN_OPTIMIZER}",
        "descend(SGD, bowl, (1, 2), 3)": (
            "landscape is a function, expected a Landscape like bowl()"
        ),
        "descend(SGD, bowl(), (1j, 2), 3)": "start has dtype complex128, expected real numbers",
        "descend(SGD, bowl(), (1, 2), 2.0)": "steps is a float, expected an integer",
        "steps_until(POINTS, 3)": "condition is a int, expected a function of points",
        "steps_until(POINTS, within_one, for_good=1)": "for_good is 1, expected True or False",
    },
}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [(call, error, words) for error, calls in REFUSED.items() for call, words in calls.items()],
)
def test_an_error_names_the_call_the_argument_what_it_was_and_what_was_expected(
    call: str, error: type[Exception], words: str
) -> None:
    name = call.partition("(")[0]
    names = {**vars(np), **globals(), "SGD": schuss.SGD}
    with pytest.raises(error, match=f"^{re.escape(f'{name}: {words}')}"):
        eval(call, names)

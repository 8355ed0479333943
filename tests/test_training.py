"""Training: the plain loop's bits, the history, when it stops, and Ctrl-C at any moment."""

import builtins
import copy
import io
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from inspect import unwrap
from itertools import count, islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import schuss
from schuss import _stepping, schedules
from support.interruption import Interruption

M, BATCH = 23, 8
NAN, INF = float("nan"), float("inf")
SIZES = [8, 8, 7]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((M, 3))
Y = X @ np.array([[2.0], [-1.0], [0.5]]) + 3 + 0.1 * RNG.standard_normal((M, 1))
WEIGHTS = RNG.random(M)
BATCHES: dict[str, Any] = {"batch_size": BATCH, "rng": 0}


def line_start() -> dict[str, npt.NDArray[Any]]:
    return {"W": np.zeros((3, 1)), "b": np.zeros(1)}


def line(params: Any, x: Any, y: Any, *weights: Any) -> tuple[float, Any]:
    """Linear regression: half the mean square of the error, each example with its weight."""
    error = x @ params["W"] + params["b"] - y
    weighted = error * (weights[0][:, None] if weights else 1)
    loss = float((weighted * error).sum()) / 2 / len(x)
    return loss, {"W": x.T @ weighted / len(x), "b": weighted.sum(axis=0) / len(x)}


def mean_start() -> npt.NDArray[Any]:
    return np.zeros(3)


def mean(params: Any, x: Any) -> tuple[float, Any]:
    """The mean of the examples: the point with the least squared distance to them."""
    error = params - x
    return float((error**2).sum()) / 2 / len(x), error.mean(axis=0)


def bits(tree: Any) -> list[bytes]:
    leaves = tree.values() if isinstance(tree, dict) else tree if type(tree) is list else [tree]
    return [leaf.tobytes() for leaf in leaves]


def fit_line(params: Any, optimizer: Any, **options: Any) -> schuss.History:
    return schuss.fit(line, params, optimizer, X, Y, **BATCHES | options)


def fitted(lr: float = 0.1, **options: Any) -> tuple[Any, Any, schuss.History]:
    params = line_start()
    optimizer = schuss.Momentum(params, lr=lr)
    return params, optimizer, fit_line(params, optimizer, **options)


def fit_with(
    costs: Any, w: Any, examples: int, *, lr: float = 1.0, grad: Any = None, **options: Any
) -> schuss.History:
    """Train with these costs, one after the other, and with the same gradient at each step."""
    cost, grad = iter(costs), -np.ones_like(w) if grad is None else grad
    return schuss.fit(
        lambda w, x: (next(cost), grad), w, schuss.SGD(w, lr=lr), np.zeros(examples), **options
    )


def plain_loop(steps: int | None = None, epochs: int = 3) -> tuple[Any, list[float]]:
    """Return the parameters and costs of the loop that users write themselves."""
    params = line_start()
    costs: list[float] = []
    optimizer = schuss.Momentum(params, lr=0.1)
    batches = schuss.minibatches(X, Y, **BATCHES)
    for _ in range(epochs):
        for x, y in batches:
            if len(costs) == steps:
                return params, costs
            loss, grads = line(params, x, y)
            optimizer.step(grads)
            costs.append(loss)
    return params, costs


class OwnBatches(schuss.MiniBatches[Any]):
    """A user's subclass of mini-batches."""

    def __init__(self) -> None:
        vars(self).update(vars(schuss.minibatches(X, Y, **BATCHES)))


class Stepper:
    """The least that is an optimizer."""

    def __init__(self, params: Any) -> None:
        self._params = params

    def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
        for name, param in self._params.items():
            param -= 0.1 * grads[name]


# The loop.


@pytest.mark.parametrize(
    ("loss_and_grad", "start", "x", "y", "options"),
    [
        (line, line_start, X, Y, {}),
        (line, line_start, X, Y, {"shuffle": False, "batch_size": None}),
        (line, line_start, X, Y, {"drop_last": True, "prefetch": 2}),
        (line, line_start, (X, Y), None, {"batch_size": "auto"}),
        (line, line_start, (X, Y, WEIGHTS), None, {"batch_size": 1}),
        (mean, mean_start, X, None, {}),
        (lambda p, x: mean(p, x.T), mean_start, X.T, None, {"axis": 1}),
    ],
    ids=["pairs", "whole", "drop_last", "tuple", "weights", "x alone", "columns"],
)
@pytest.mark.parametrize("ready", [False, True])
def test_it_gives_the_very_bits_of_the_plain_loop(
    loss_and_grad: Any, start: Any, x: Any, y: Any, options: dict[str, Any], ready: bool
) -> None:
    options = {"batch_size": BATCH, "rng": 5} | options
    expected, costs = start(), []
    optimizer = schuss.Adam(expected, lr=0.1)
    batches = schuss.minibatches(x, y, **options)
    for _ in range(3):
        for batch in batches:
            loss, grads = loss_and_grad(expected, *(batch if type(batch) is tuple else (batch,)))
            optimizer.step(grads)
            costs.append(loss)
    params = start()
    optimizer = schuss.Adam(params, lr=0.1)
    if ready:
        batches = schuss.minibatches(x, y, **options)
        history = schuss.fit(loss_and_grad, params, optimizer, batches, epochs=3)
    else:
        history = schuss.fit(loss_and_grad, params, optimizer, x, y, epochs=3, **options)
    assert bits(params) == bits(expected)
    np.testing.assert_array_equal(history.cost, costs)
    assert (history.steps, history.epochs) == (3 * len(batches), 3)
    assert history.stopped == "finished"


def test_a_second_fit_continues_with_the_same_optimizer() -> None:
    rng = np.random.default_rng(0)
    params, optimizer, first = fitted(epochs=1, rng=rng)
    second = fit_line(params, optimizer, epochs=2, rng=rng)
    expected, costs = plain_loop(epochs=3)
    assert bits(params) == bits(expected)
    np.testing.assert_array_equal(np.r_[first.cost, second.cost], costs)
    assert (first.steps, second.steps, optimizer.steps) == (3, 6, 9)


def test_mini_batches_of_ones_own_may_be_any_iterator() -> None:
    class Batches(OwnBatches):
        def __iter__(self) -> Iterator[Any]:
            return map(tuple, super().__iter__())

    params = line_start()
    schuss.fit(line, params, schuss.Momentum(params, lr=0.1), Batches(), epochs=3)
    assert bits(params) == bits(plain_loop()[0])


@pytest.mark.parametrize(
    ("number", "words"), [(2, "yields 2 batches in an epoch, expected 3"), (4, "more than 3 batc")]
)
def test_mini_batches_of_ones_own_have_their_length(number: int, words: str) -> None:
    class Batches(OwnBatches):
        def __iter__(self) -> Iterator[Any]:
            return iter([(X[:8], Y[:8])] * number)

    params = line_start()
    with pytest.raises(ValueError, match=f"^fit: x yields .*{words.removeprefix('yields ')}"):
        schuss.fit(line, params, schuss.SGD(params), Batches())


def peak_of(call: Callable[[], object]) -> int:
    """Return the most bytes that the call used at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_few_steps_over_many_mini_batches_take_little_memory() -> None:
    w, grad = np.zeros(1), np.zeros(1)
    batches = schuss.minibatches(np.zeros(1_000_000, np.int8), batch_size=1, shuffle=False)
    stop: Any = {"on_step": lambda h: True}
    peak = peak_of(lambda: schuss.fit(lambda w, x: (0.0, grad), w, schuss.SGD(w), batches, **stop))
    assert peak < 1_000_000


class Duck:
    """An optimizer whose params, steps and lr_now are other things than schuss means by them."""

    params: ClassVar[dict[str, float]] = {"lr": 0.1}
    lr_now = None

    def steps(self) -> int:
        return 0

    def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
        pass


def test_any_object_with_a_step_is_an_optimizer_of_any_parameters() -> None:
    class Model(Duck):
        w = 1.0

        def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
            if self.w == 1 / 8:
                raise KeyboardInterrupt
            self.w -= grads / 2

    model: Any = Model()
    history = schuss.fit(lambda m, x: (0.0, m.w), model, model, np.zeros(2), epochs=4)
    assert (model.w, history.steps, history.stopped) == (1 / 8, 3, "interrupted")
    assert np.isnan(history.lr).all()


def test_losses_and_gradients_may_be_those_of_jax() -> None:
    jax = pytest.importorskip("jax")

    def loss(params: Any, x: Any, y: Any) -> Any:
        return ((x @ params["W"] + params["b"] - y) ** 2).mean() / 2

    def fit(loss_and_grad: Any) -> tuple[Any, schuss.History]:
        params = {name: array.astype(np.float32) for name, array in line_start().items()}
        x, y, optimizer = X.astype(np.float32), Y.astype(np.float32), schuss.SGD(params, lr=0.1)
        return params, schuss.fit(loss_and_grad, params, optimizer, x, y, epochs=3, **BATCHES)

    (params, theirs), (expected, ours) = fit(jax.value_and_grad(loss)), fit(line)
    np.testing.assert_allclose(theirs.cost, ours.cost, rtol=1e-4)
    np.testing.assert_allclose(params["W"], expected["W"], rtol=1e-4)


# Several mini-batches a step.


@pytest.mark.parametrize("k", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"nesterov": True}], ids=str)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_step_of_several_mini_batches_uses_the_mean_of_their_gradients(
    k: int, options: dict[str, Any], prefetch: int
) -> None:
    expected, costs, weights = line_start(), list[float](), list[int]()
    optimizer: Any = schuss.Momentum(expected, lr=0.1, **options)
    batches = schuss.minibatches(X, Y, batch_size=4, rng=0)
    for _ in range(2):
        for group in batched(batches, k):  # of 6 mini-batches: the last group may be smaller
            losses = [line(expected, x, y) for x, y in group]
            for _, grads in losses:
                optimizer.accumulate(grads)
            optimizer.step(scale=1 / len(group))
            costs.append(sum(loss for loss, _ in losses) / len(group))
            weights.append(sum(len(x) for x, _ in group))
    params = line_start()
    ours: Any = schuss.Momentum(params, lr=0.1, **options)
    options = {"batch_size": 4, "epochs": 2, "accumulate": k, "prefetch": prefetch}
    history = fit_line(params, ours, **options)
    assert (bits(params), ours.accumulated) == (bits(expected), 0)
    assert history.steps == ours.steps == 2 * -(-6 // k)
    np.testing.assert_allclose(history.cost, costs, rtol=1e-15)
    half = history.steps // 2
    by_hand = [np.average(costs[i : i + half], weights=weights[:half]) for i in (0, half)]
    np.testing.assert_allclose(history.epoch_cost, by_hand, rtol=1e-14)


def batched(values: Any, size: int) -> Iterator[list[Any]]:
    values = iter(values)
    while group := list(islice(values, size)):
        yield group


def test_the_mean_of_several_mini_batches_is_that_of_a_larger_one() -> None:
    options: dict[str, Any] = {"shuffle": False, "drop_last": True, "epochs": 5}
    larger, _, history = fitted(batch_size=10, **options)
    params, _, ours = fitted(batch_size=5, accumulate=2, **options)
    np.testing.assert_allclose(params["W"], larger["W"], rtol=1e-12)
    np.testing.assert_allclose(ours.cost, history.cost, rtol=1e-12)


def test_schedules_and_functions_count_the_steps_and_l2_is_that_of_each_mini_batch() -> None:
    ones, zeros, steps = np.ones((1, 1)), np.zeros((1, 1)), list[int]()
    history = schuss.fit(
        lambda w, x: (0.0, zeros),
        ones,
        schuss.SGD(ones, lr=1.0),
        np.zeros((12, 1)),
        batch_size=2,
        epochs=2,
        accumulate=4,  # 4 and 2 mini-batches
        l2=0.5,
        schedule=lambda epoch: 1.0 / epoch,
        schedule_by="epoch",
        on_step=lambda h: steps.append(h.steps),
    )
    assert steps == [1, 2, 3, 4]
    assert history.lr.tolist() == [1, 1, 0.5, 0.5]
    assert ones.item() == 0.75 * 0.75 * 0.875 * 0.875
    np.testing.assert_allclose(history.cost[:2], [0.125, 0.125 * 0.75**2], rtol=1e-15)


def test_accumulated_gradients_are_cleared_too_and_those_of_before_are_refused() -> None:
    w, grad = np.zeros((1, 1)), np.zeros((1, 1))
    optimizer = schuss.SGD(w, lr=0.5, clear_grads=True)

    def loss_and_grad(w: Any, x: Any) -> Any:
        grad[:] += 1
        return 0.0, grad

    schuss.fit(loss_and_grad, w, optimizer, np.zeros(4), batch_size=1, accumulate=2, l2=1.0)
    assert (w.item(), grad.item()) == (-0.5 - 0.5 * (1 - 0.5), 0)
    optimizer.accumulate(grad)
    for accumulate in (1, 2):
        with pytest.raises(ValueError, match=r"^fit: optimizer has 1 accumulated grad.*zero_grad"):
            schuss.fit(loss_and_grad, w, optimizer, np.zeros(4), accumulate=accumulate)


# A scaled loss.


@pytest.mark.parametrize("k", [1, 3])
def test_a_loss_scale_is_undone_by_the_step(k: int) -> None:
    expected, _, unscaled = fitted(epochs=3, accumulate=k, l2=0.5)

    def scaled(params: Any, x: Any, y: Any) -> tuple[float, Any]:
        loss, grads = line(params, x, y)
        return loss, {name: 1024 * grad for name, grad in grads.items()}

    for loss_scale in (1024, schuss.DynamicLossScale(1024.0)):
        params = line_start()
        options: dict[str, Any] = {"epochs": 3, "accumulate": k, "l2": 0.5} | BATCHES
        history = schuss.fit(
            scaled, params, schuss.Momentum(params, 0.1), X, Y, loss_scale=loss_scale, **options
        )
        assert bits(params) == bits(expected)  # a power of two rounds nothing
        np.testing.assert_array_equal(history.cost, unscaled.cost)
        assert not history.skipped.any()


@pytest.mark.parametrize("k", [1, 2])
def test_a_dynamic_loss_scale_skips_steps_and_changes_as_in_the_loop_by_hand(k: int) -> None:
    def start() -> Any:
        scaler = schuss.DynamicLossScale(2.0**8, growth_interval=2)
        w = np.ones((2, 1), np.float32)
        return w, schuss.Momentum(w, lr=0.01, clip_norm=1.0), scaler

    def halves(w: Any, x: Any, scaler: Any) -> tuple[float, Any]:
        with np.errstate(over="ignore"):
            return float(x.sum()), (x[:, None] * scaler.value).astype(np.float16)

    x = np.array([[1.0, 2], [100, 3], [1, 1], [2, 1], [300, 1], [1, 2], [1, 4], [5, 5]])
    x = np.tile(x, (3, 1))
    expected, theirs, by_hand = start()
    scales, skipped = [], []
    for group in batched(x, k):
        for each in group:
            theirs.accumulate(halves(expected, each, by_hand)[1])
        skipped.append(not by_hand.step(theirs, scale=1 / k))
        by_hand.update()
        scales.append(by_hand.value)
    w, optimizer, scaler = start()
    ours: list[float] = []
    history = schuss.fit(
        lambda w, x: halves(w, x[0], scaler),
        w,
        optimizer,
        x,
        batch_size=1,
        shuffle=False,
        accumulate=k,
        loss_scale=scaler,
        on_step=lambda h: ours.append(scaler.value),
    )
    assert ours == scales
    assert bits(w) == bits(expected)
    assert 0 < sum(skipped) == optimizer.skipped < history.steps == len(x) // k
    assert history.skipped.tolist() == skipped
    assert f"{optimizer.skipped} skipped" in repr(history)


# The L2 cost.


def l2_of(params: Any, strength: float, examples: int = 1, **options: Any) -> tuple[float, Any]:
    """Return the L2 cost of parameters, and its gradients."""
    zeros = copy.deepcopy(params)
    for zero in zeros.values() if isinstance(zeros, dict) else zeros:
        zero[...] = 0
    loss_and_grad = schuss.with_l2(lambda p, x: (0.0, zeros), strength, **options)
    return loss_and_grad(params, np.zeros((examples, 1)))


def test_the_l2_cost_has_the_worked_numbers() -> None:
    # ||W||^2 = 25, b = 10: J gains 0.5/20 * 25 = 0.625, and dW gains 0.5/10 * W.
    params = {"W": np.array([[3.0, 4.0]]), "b": np.array([5.0, 6.0])}
    grads = {"W": np.ones((1, 2)), "b": np.ones(2)}
    loss, with_l2 = schuss.with_l2(lambda p, x: (2.0, grads), 0.5)(params, np.zeros((10, 3)))
    assert loss == 2.625
    np.testing.assert_allclose(with_l2["W"], [[1.15, 1.2]], rtol=1e-15)
    np.testing.assert_array_equal(with_l2["b"], [1.0, 1.0])
    np.testing.assert_array_equal(grads["W"], [[1.0, 1.0]])


SINGLES = [np.dtype(dtype) for dtype in (np.float32, np.float16, ml_dtypes.bfloat16)]


@pytest.mark.parametrize(
    ("dtype", "of_grad"),
    [(np.dtype(np.float64), np.dtype(np.float64)), *product(SINGLES, SINGLES)],
    ids=str,
)
def test_on_whole_batches_l2_is_the_weight_decay_of_l2_by_b_to_the_bit(
    dtype: np.dtype[Any], of_grad: np.dtype[Any]
) -> None:
    def loss_and_grad(w: Any, x: Any) -> tuple[float, Any]:
        w = w.astype(np.float64)
        return 0.0, (x.T @ (x @ w - 1) / len(x)).astype(of_grad)

    ours: Any = np.ones((3, 1), dtype)
    theirs: Any = ours.copy()
    options: dict[str, Any] = {"batch_size": None, "epochs": 20, "shuffle": False}
    schuss.fit(loss_and_grad, ours, schuss.SGD(ours, lr=0.1), X, l2=0.6, **options)
    decaying = schuss.SGD(theirs, lr=0.1, weight_decay=0.6 / M)
    schuss.fit(loss_and_grad, theirs, decaying, X, **options)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("dtype", "weight", "strength", "cost", "grad"),
    [
        (np.float16, 300.0, 2.0, 3.6e5, 600.0),
        (np.float16, 6e4, 2e3, 1.44e13, 1.2e8),
        (np.float16, 2.0**-24, 2.0**-20, 2.0**-67, 2.0**-44),
        (np.float32, 1e30, 1e-42, 2e18, 1e-12),  # float32 cannot hold the strength
        (np.float64, 1e160, 1e-20, 2e300, 1e140),  # float64 cannot hold the squares
        (np.float64, 1e-170, 1e300, 2e-40, 1e130),
        (np.float64, 1e200, 1.0, INF, 1e200),
        (np.float64, NAN, 1.0, NAN, NAN),
        (np.float32, 0.0, 1.0, 0.0, 0.0),
    ],
)
def test_the_l2_cost_is_right_where_floating_point_ends(
    dtype: type, weight: float, strength: float, cost: float, grad: float
) -> None:
    with np.errstate(all="raise"):
        loss, grads = l2_of([np.full((2, 2), weight, dtype)], strength)
    assert loss == pytest.approx(cost, rel=1e-6, nan_ok=True)
    np.testing.assert_allclose(grads[0], np.full((2, 2), grad, grads[0].dtype), rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_errors_that_numpy_raises_on_request_do_not_stop_a_training(accumulate: int) -> None:
    costs = [INF, -INF, 1e308, 1.5e308, 1e308, 1.5e308, 1.0, 1.0]
    w, grad = np.full((2, 1, 1), 1e-7, np.float16)
    with np.errstate(all="raise"):
        options: dict[str, Any] = {"batch_size": 2, "epochs": 2, "accumulate": accumulate}
        history = fit_with(costs, w, 8, lr=0.01, grad=grad, l2=1e-7, **options)
    if accumulate == 1:
        np.testing.assert_array_equal(history.cost, costs)
    assert np.isnan(history.epoch_cost[0])
    assert history.epoch_cost[1] == pytest.approx(0.625e308)


class Scaled:
    """An optimizer that divides gradients by a scale which `fit` does not know."""

    def __init__(self, optimizer: schuss.SGD, scaler: schuss.DynamicLossScale) -> None:
        self.optimizer, self.scaler = optimizer, scaler

    def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
        self.scaler.step(self.optimizer, grads)
        self.scaler.update()


def test_the_l2_cost_of_scaled_gradients_is_scaled_or_refused() -> None:
    scaler = schuss.DynamicLossScale(1024.0, growth_interval=2)
    w = {"W": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}
    start = copy.deepcopy(w)
    optimizer = schuss.SGD(w, lr=1.0)

    def loss_and_grad(p: Any, x: Any) -> tuple[float, Any]:
        half = (np.full(each.shape, 2.0**-14 * scaler.value, np.float16) for each in p.values())
        return 3.0, dict(zip(p, half, strict=True))

    x = np.zeros((2, 1))
    with pytest.raises(
        ValueError,
        match=r"^DynamicLossScale.step: grads have the l2 of fit, which is not scaled, expected "
        r"fit\(..., optimizer, loss_scale=scaler\), which scales it$",
    ):
        schuss.fit(loss_and_grad, w, Scaled(optimizer, scaler), x, l2=0.5)
    assert (optimizer.steps, bits(w)) == (0, bits(start))
    with_l2 = schuss.with_l2(loss_and_grad, 0.5, loss_scale=scaler)
    history = schuss.fit(with_l2, w, Scaled(optimizer, scaler), x, epochs=3)
    assert scaler.value == 2048
    expected = 1.0
    for cost in history.cost:
        assert cost == 3 + 0.5 / 4 * 4 * expected**2
        expected -= 0.25 * expected + 2.0**-14
    np.testing.assert_array_equal(w["W"], np.full((2, 2), expected))
    np.testing.assert_array_equal(w["b"], np.full(2, 1 - 3 * 2.0**-14))
    by_number = schuss.with_l2(loss_and_grad, 0.5, loss_scale=2.0)(w, x)[1]["W"]
    np.testing.assert_array_equal(by_number, 0.5 * w["W"] + 0.125)
    ones, grad = np.ones((1, 1)), np.zeros((1, 1))
    unscaled = Scaled(schuss.SGD(ones, 1.0), schuss.DynamicLossScale(1.0))
    schuss.fit(lambda w, x: (0.0, grad), ones, unscaled, X, l2=M / 2)  # a scale of 1 is allowed
    assert ones.tolist() == [[0.5]]


def test_gradients_with_an_l2_cost_are_cleared_too() -> None:
    w = {"W": np.zeros((1, 1)), "b": np.zeros(1)}
    grads = copy.deepcopy(w)

    def loss_and_grad(params: Any, x: Any) -> tuple[float, Any]:
        for grad in grads.values():
            grad += 1
        return 0.0, grads

    optimizer = schuss.SGD(w, lr=0.5, clear_grads=True)
    schuss.fit(loss_and_grad, w, optimizer, np.zeros(2), batch_size=1, l2=1.0)
    assert bits(grads) == bits(line_start()["b"]) * 2
    assert (w["W"].item(), w["b"].item()) == (-0.5 - 0.5 * (1 - 0.5), -1)
    grads["W"].flags.writeable = False
    with pytest.raises(ValueError, match=r"^fit: a gradient is read-only, expected w"):
        schuss.fit(lambda p, x: (0.0, grads), w, optimizer, np.zeros(2), l2=1.0)
    assert optimizer.steps == 2
    optimizer.clear_grads = False
    schuss.fit(lambda p, x: (0.0, grads), w, optimizer, np.zeros(2), l2=1.0)


@pytest.mark.parametrize("by", ["options", "mini-batches", "with_l2"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_l2_cost_counts_the_examples_of_each_batch(axis: int, by: str) -> None:
    def loss_and_grad(params: Any, x: Any) -> tuple[float, Any]:
        return 0.0, {"W": np.zeros((2, 2)), "b": np.zeros(2)}

    params = {"W": np.ones((2, 2)), "b": np.ones(2)}
    options: dict[str, Any] = {"batch_size": BATCH, "axis": axis, "l2": 3.0}
    data: Any = X.T if axis else X
    if by == "mini-batches":
        data = schuss.minibatches(data, batch_size=options.pop("batch_size"), axis=axis)
        del options["axis"]
    elif by == "with_l2":
        loss_and_grad = schuss.with_l2(loss_and_grad, options.pop("l2"), axis=axis)
    history = schuss.fit(loss_and_grad, params, schuss.SGD(params, 0.0), data, **options)
    np.testing.assert_allclose(history.cost, [3 / (2 * b) * 4 for b in SIZES], rtol=1e-15)


def test_weights_are_chosen_by_name_in_any_structure() -> None:
    params: Any = {
        "layers": [{"W": np.ones(2)}, (np.ones((2, 2)), np.array(1.0))],
        3: np.ones((1, 1)),
    }
    grads = copy.deepcopy(params)
    names = []

    def weights(name: str) -> bool:
        names.append(name)
        return name in ("layers/0/W", "layers/1/1")

    loss_and_grad = schuss.with_l2(lambda p, x: (0.0, grads), 2.0, weights=weights)
    loss, result = loss_and_grad(params, np.zeros(4))
    assert names == ["layers/0/W", "layers/1/0", "layers/1/1", "3"]
    assert loss == 2 / 8 * 3
    np.testing.assert_array_equal(result["layers"][0]["W"], [1.5, 1.5])
    np.testing.assert_array_equal(result["layers"][1][0], np.ones((2, 2)))
    np.testing.assert_array_equal(result["layers"][1][1], 1.5)
    np.testing.assert_array_equal(result[3], [[1.0]])
    assert type(result["layers"][1][1]) is np.ndarray
    schuss.SGD(params).step(result)


def test_by_default_weights_have_two_axes_or_more_in_any_layout_and_frozen_too() -> None:
    fortran, frozen = np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.broadcast_to(2.0, (3, 2))
    params = [fortran, np.ones((4, 4))[::2, ::-2], frozen, np.ones(3), np.array(1.0)]
    loss, grads = l2_of(params, 2.0, examples=2)
    assert loss == 2 / 4 * (55 + 4 + 24)
    for param, grad, factor in zip(params, grads, [1, 1, 1, 0, 0], strict=True):
        np.testing.assert_array_equal(grad, factor * param)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_the_l2_cost_of_float32_is_summed_as_in_float64(scale: float) -> None:
    w = (scale * np.random.default_rng(0).random((1000, 1001))).astype(np.float32)
    exact = np.square(w.astype(np.float64)).sum() / 2
    for layout in (w, np.asfortranarray(w), w[::-1]):
        assert l2_of([layout], 1.0)[0] == pytest.approx(exact, rel=1e-13)


def test_the_l2_cost_of_float32_takes_no_copy_in_float64() -> None:
    w = np.ones((1000, 1000), np.float32)
    grad = np.ones_like(w)
    loss_and_grad = schuss.with_l2(lambda w, x: (0.0, grad), 1.0)
    peak = peak_of(lambda: loss_and_grad(w, np.zeros((1, 1))))
    assert peak < 1.5 * w.nbytes  # the gradient with the L2 cost is one array


def test_one_function_with_l2_serves_parameters_of_any_structure_in_turn() -> None:
    loss_and_grad = schuss.with_l2(lambda p, x: (0.0, copy.deepcopy(p)), 1.0)
    for params in ([np.ones((2, 2))], {"W": np.ones((3, 3))}, [np.ones((2, 2), "f"), np.ones(3)]):
        for _ in range(2):
            loss, grads = loss_and_grad(params, np.zeros(1))
            weight: Any = params["W"] if isinstance(params, dict) else params[0]
            assert loss == weight.size / 2
            assert type(grads) is type(params)
            assert len(grads) == len(params)


def test_the_optimizer_and_l2_may_have_some_of_the_arrays_in_another_structure() -> None:
    params = {"V": np.ones((3, 1))} | line_start()
    optimizer = schuss.Momentum([params["b"], params["W"]], lr=0.1)

    def loss_and_grad(p: Any, x: Any, y: Any) -> tuple[float, Any]:
        loss, grads = line(p, x, y)
        return loss, [grads["b"], grads["W"]]

    costs = schuss.fit(loss_and_grad, params, optimizer, X, Y, l2=0.5, **BATCHES).cost
    expected, _, history = fitted(l2=0.5)
    np.testing.assert_array_equal(costs, history.cost)
    assert bits([params["W"], params["b"]]) == bits([expected["W"], expected["b"]])
    assert params["V"].tolist() == [[1], [1], [1]]


def test_the_recorded_cost_has_the_l2_cost_and_the_validation_has_not() -> None:
    params = line_start()
    params["W"][:] = 2.0
    history = fit_line(params, schuss.SGD(params, lr=0.0), l2=4.0, validation=(X, Y))
    bare = fit_line(params, schuss.SGD(params, lr=0.0), epochs=2)
    np.testing.assert_allclose(history.cost - bare.cost[:3], [4 / (2 * b) * 12 for b in SIZES])
    assert history.validation[0] == line(params, X, Y)[0]
    # The cost of an epoch is the mean over its examples.
    np.testing.assert_allclose(bare.epoch_cost, [history.validation[0]] * 2, rtol=1e-14)
    assert bare.epoch_cost[0] != bare.cost[:3].mean()


# The learning rate.


@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize(
    "schedule",
    [schedules.InverseTime(0.2), lambda t: 1 / t, 0.25],
    ids=["class", "function", "number"],
)
def test_a_schedule_becomes_the_optimizers_rate_also_in_a_second_fit(
    schedule: Any, by: str
) -> None:
    params, optimizer, first = fitted(epochs=2, schedule=schedule, schedule_by=by)
    second = fit_line(params, optimizer, epochs=2)
    t = np.arange(1, 13) if by == "step" else np.repeat(np.arange(1, 5), 3)
    expected = [schedule if schedule == 0.25 else schedule(int(each)) for each in t]
    np.testing.assert_array_equal([*first.lr, *second.lr], expected)
    assert by == "epoch" or callable(schedule) is False or optimizer.lr is schedule


def plateau(lr: float) -> schedules.ReduceOnPlateau:
    return schedules.ReduceOnPlateau(lr, factor=0.5, patience=0)


class Plateau(schedules.ReduceOnPlateau):
    """A plateau that keeps the values it gets."""

    values: ClassVar[list[float]] = []

    def update(self, cost: float) -> None:
        self.values.append(cost)
        super().update(cost)


@pytest.mark.parametrize(
    "options", [{}, {"schedule_by": "epoch"}, None], ids=["by step", "by epoch", "as lr"]
)
def test_a_plateau_gets_the_validation_or_else_the_cost_of_each_epoch(
    options: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(**more: Any) -> schuss.History:
        monkeypatch.setattr(Plateau, "values", [])
        lr = Plateau(0.1, factor=0.5, patience=0)
        params = line_start()
        optimizer = schuss.SGD(params, lr=lr if options is None else 1.0)
        more |= {} if options is None else {"schedule": lr} | options
        return fit_line(params, optimizer, epochs=4, **more)

    values = iter([3.0, 3.0, 3.0, 2.0])
    history = trained(validation=lambda params: next(values))
    assert Plateau.values == [3.0, 3.0, 3.0, 2.0]
    np.testing.assert_array_equal(history.lr[::3], [0.1, 0.1, 0.05, 0.025])
    history = trained()
    assert Plateau.values == history.epoch_cost.tolist()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_must_have_the_mode_of_the_training(mode: str) -> None:
    other = {"min": "max", "max": "min"}[mode]
    fitting, wrong = (schedules.ReduceOnPlateau(0.1, mode=each) for each in (mode, other))
    words = rf"^fit: mode is '{mode}' and a ReduceOnPlateau in use has mode '{other}', expected"
    for lr in (wrong, schedules.WarmUp(wrong, 1), schedules.chain([1.0, wrong], [2])):
        cases: list[tuple[schuss.SGD, dict[str, Any]]] = [
            (in_groups(lr, None), {}),
            (in_groups(None, lr=lr), {}),
            (in_groups(None), {"schedule": lr}),
            (in_groups(None), {"schedule": lr, "schedule_by": "epoch"}),
        ]
        for optimizer, options in cases:
            before = optimizer.lr
            with pytest.raises(ValueError, match=words):
                fit_groups(optimizer, mode=mode, **options)
            assert (optimizer.steps, optimizer.lr) == (0, before)
    fit_groups(in_groups(None, lr=wrong), schedule=fitting, mode=mode)  # the rate that it replaces


def in_groups(*rates: Any, **options: Any) -> schuss.SGD:
    params: Any = [
        {"params": np.zeros(1)} | ({} if rate is None else {"lr": rate}) for rate in rates
    ]
    return schuss.SGD(params, **options)


def fit_groups(optimizer: schuss.SGD, **options: Any) -> schuss.History:
    grads = [np.ones(1) for _ in optimizer.params]
    return schuss.fit(lambda p, x: (1.0, grads), optimizer.params, optimizer, np.ones(4), **options)


def test_each_plateau_of_groups_gets_the_cost_once() -> None:
    shared, inner, of_all, unused = plateau(1.0), plateau(2.0), plateau(4.0), plateau(8.0)
    rates = (shared, schedules.WarmUp(inner, 1), schedules.chain([shared, inner], [2]), None)
    optimizer = in_groups(*rates, lr=of_all)
    history = fit_groups(optimizer, epochs=4)
    assert [shared.lr, inner.lr, of_all.lr] == [0.125, 0.25, 0.5]
    assert history.lr.tolist() == [4, 4, 2, 1]
    optimizer = in_groups(plateau(1.0), plateau(2.0), lr=unused)
    history = fit_groups(optimizer, epochs=4)
    assert [param.item() for param in optimizer.params] == [-2.75, -5.5]
    assert history.lr.tolist() == [1, 1, 0.5, 0.25]  # that of the first group
    assert unused.best == INF
    own, lone = Duck(), Duck()
    vars(own).update(lr=plateau(1.0), param_groups=[{"lr": plateau(2.0)}, {"lr": 3.0}])
    vars(lone).update(lr=plateau(4.0), param_groups="none")
    for duck in (own, lone):
        fit_line(line_start(), duck, epochs=3)
    assert [vars(own)["lr"].lr, vars(own)["param_groups"][0]["lr"].lr] == [1.0, 0.5]
    assert vars(lone)["lr"].lr == 1.0


def test_a_schedule_is_for_groups_without_a_rate_of_their_own() -> None:
    optimizer = in_groups(1.0, None)
    history = fit_groups(optimizer, epochs=2, schedule=lambda t: 0.5 / t)
    assert [param.item() for param in optimizer.params] == [-2, -0.75]
    assert history.lr.tolist() == [0.5, 0.25]
    optimizer = in_groups(1.0, 2.0)
    with pytest.raises(
        ValueError,
        match=r"^fit: schedule is given where each of the 2 groups of the optimizer has an lr of "
        r"its own, expected None \(give the schedule to groups: ",
    ):
        fit_groups(optimizer, schedule=0.5)
    assert (optimizer.steps, optimizer.params) == (0, [0, 0])
    optimizer = in_groups(1.0)  # with one group, the optimizer's rate is the group's
    fit_groups(optimizer, schedule=0.5)
    assert optimizer.params == [-0.5]


def test_the_history_has_the_rates_that_were_used_and_asks_for_each_once() -> None:
    rates = np.random.default_rng(0).random(7)
    lr = iter(rates)
    w, values = np.zeros(1), [0.0]
    options: dict[str, Any] = {"batch_size": 1, "on_step": lambda h: values.append(w[0])}
    history = fit_with([0.0] * 7, w, 7, schedule=lambda t: next(lr), **options)
    np.testing.assert_array_equal(history.lr, rates)
    np.testing.assert_allclose(np.diff(values), rates)


# Validation, the best epoch, and stopping early.


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "epochs", "best"),
    [
        ([3, 2, 1, 0], 1, 0.0, 4, 4),
        ([3, 2, 2, 1], 1, 0.0, 3, 2),
        ([3, 2, 2, 1], 2, 0.0, 4, 4),
        ([3, 2, 4, 5, 6, 1], 3, 0.0, 5, 2),
        ([3, 2.5, 2, 1.5], 2, 0.5, 4, 3),
        ([3, 2.75, 2.5, 0], 2, 0.5, 3, 1),
        ([3, 2.75, 2.25, 0], 2, 0.5, 4, 4),
        ([3, NAN, 2, NAN, NAN, 1], 2, 0.0, 5, 3),
        ([NAN, NAN, 1], 2, 0.0, 2, None),
        ([INF, -INF, -INF], 1, 0.0, 1, None),
        ([3, 4, 5], None, 0.0, 3, 1),
    ],
)
def test_it_stops_when_no_epoch_within_patience_improves_by_more_than_min_delta(
    values: list[float], patience: int | None, min_delta: float, epochs: int, best: int | None
) -> None:
    value = iter(values)
    options: dict[str, Any] = {"patience": patience, "min_delta": min_delta}
    history = fitted(epochs=len(values), validation=lambda params: next(value), **options)[2]
    assert (history.epochs, history.best_epoch) == (epochs, best)
    assert history.stopped == ("finished" if epochs == len(values) else "early")
    np.testing.assert_array_equal(history.validation, values[:epochs])


def test_validation_is_the_loss_on_examples_or_the_result_of_a_function_or_the_cost() -> None:
    seen: list[float] = []
    params, _, history = fitted(
        epochs=3, validation=(X[:5], Y[:5]), callbacks=lambda h: seen.append(h.validation[-1])
    )
    assert history.validation.tolist() == seen
    assert history.validation[-1] == line(params, X[:5], Y[:5])[0]
    by_function = fitted(epochs=3, validation=lambda p: np.float32(p["b"].item()))[2]
    assert by_function.validation[-1] == np.float32(params["b"].item())
    assert len(by_function.validation) == 3
    still = schuss.SGD(params, lr=0.0)
    history = fit_line(params, still, epochs=9, patience=2, shuffle=False)
    assert (history.epochs, history.best_epoch, history.stopped) == (3, 1, "early")
    assert history.validation.shape == (0,)


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([1, 2, 3, 2, 2, 9], {"patience": 2}, 5, 3),
        ([1, 2, 2.5, 3.75, 3, 3, 9], {"patience": 2, "min_delta": 1.0}, 6, 4),
        ([-INF, 1, NAN, INF, 2, INF, 3], {"patience": 2}, 6, 4),
        ([9, 8, 1, 2, 1, 1, 3], {"patience": 2, "start_from_epoch": 2}, 6, 4),
        ([9, 1, 1], {"patience": 1, "start_from_epoch": 2}, 3, 3),
        ([9, 1, 1], {"start_from_epoch": 3}, 3, None),
        ([1, 9, 2, 3, 4], {"patience": 1, "start_from_epoch": 2, "mode": "min"}, 4, 3),
    ],
)
def test_it_stops_on_a_maximum_and_from_an_epoch_on(
    values: list[float], options: dict[str, Any], epochs: int, best: int | None
) -> None:
    value, after, p = iter(values), list[Any](), line_start()
    options = {"mode": "max", "restore_best": True, "epochs": len(values)} | options
    options |= {"validation": lambda p: next(value), "callbacks": lambda h: after.append(bits(p))}
    history = fit_line(p, schuss.Momentum(p, lr=0.1), **options)
    assert (history.epochs, history.best_epoch) == (epochs, best)
    assert history.stopped == ("finished" if epochs == len(values) else "early")
    assert bits(p) == after[(best or epochs) - 1]


def test_restore_best_brings_back_the_masters_of_the_best_epoch(tmp_path: Path) -> None:
    value, after = iter([3.0, 1.0, 2.0, 2.0]), list[Any]()
    w: Any = np.ones(3, ml_dtypes.bfloat16)
    optimizer: Any
    options: dict[str, Any] = {"restore_best": True, "checkpoint": tmp_path / "c"}
    options["callbacks"] = lambda h: after.append(optimizer.master.tolist())
    options["validation"] = lambda p: next(value)
    for epochs in (3, 4):  # the second resumes from the first
        optimizer = schuss.SGD(w, lr=2**-10, master="float32")
        schuss.fit(lambda p, x: (0.0, np.ones_like(p)), w, optimizer, X, epochs=epochs, **options)
        assert optimizer.master.tolist() == after[1] != after[2]
    assert len(after) == 4


@pytest.mark.parametrize(("restore", "frozen"), [(False, False), (True, False), (True, True)])
def test_restore_best_brings_back_the_parameters_of_the_best_epoch_but_not_the_frozen(
    restore: bool, frozen: bool
) -> None:
    value, after = iter([3.0, 1.0, 2.0, 2.0]), []
    params = line_start()
    params["W"].flags.writeable = not frozen
    addresses = [array.ctypes.data for array in params.values()]
    optimizer = schuss.Momentum([params["b"]] if frozen else params, lr=0.1)

    def loss_and_grad(p: Any, x: Any, y: Any) -> tuple[float, Any]:
        loss, grads = line(p, x, y)
        return loss, [grads["b"]] if frozen else grads

    options: dict[str, Any] = {"epochs": 4, "restore_best": restore} | BATCHES
    options["callbacks"] = lambda h: after.append(bits(params))
    options["validation"] = lambda p: next(value)
    history = schuss.fit(loss_and_grad, params, optimizer, X, Y, **options)
    assert history.best_epoch == 2
    assert bits(params) == after[1 if restore else 3]
    assert after[1] != after[3]
    assert addresses == [array.ctypes.data for array in params.values()]
    assert optimizer.steps == 12


@pytest.mark.parametrize("second", [1.0, 5.0])
def test_an_epoch_that_a_function_on_step_ends_is_judged_by_its_cost(second: float) -> None:
    w = np.zeros(1)
    options: dict[str, Any] = {"on_step": lambda h: h.steps == 2, "restore_best": True}
    history = fit_with([3.0, second], w, 4, batch_size=None, epochs=5, **options)
    best = 2 if second < 3 else 1
    assert (history.epochs, history.best_epoch, w[0]) == (2, best, best)


@pytest.mark.parametrize(
    "replace", [np.copy, lambda w: np.broadcast_to(w, 2), lambda w: w[:1].copy(), np.float32]
)
def test_the_best_parameters_are_restored_where_the_user_has_them_now(replace: Any) -> None:
    params, values = {"w": np.zeros(2)}, iter([1.0, 2.0])

    def validation(now: Any) -> float:
        if (value := next(values)) == 2:
            now["w"] = replace(now["w"])
        return value

    options: dict[str, Any] = {"validation": validation, "restore_best": True, "epochs": 2}
    optimizer, grads = schuss.SGD(params, lr=1.0), {"w": np.ones(2)}

    def fit() -> schuss.History:
        return schuss.fit(lambda p, x: (0.0, grads), params, optimizer, np.zeros(4), **options)

    if replace is np.copy:
        assert (fit().best_epoch, params["w"].tolist()) == (1, [-1.0, -1.0])
    else:
        with pytest.raises(ValueError, match=r"^fit: params have an array that became read-only"):
            fit()


# Callbacks.


def test_callbacks_are_called_after_each_epoch_and_each_step_in_their_order() -> None:
    calls: list[tuple[str, int, int]] = []

    def recorder(name: str) -> Callable[[schuss.History], None]:
        return lambda history: calls.append((name, history.steps, history.epochs))

    callbacks, on_step = [recorder("a"), recorder("b")], (recorder("c"),)
    fitted(epochs=2, batch_size=16, callbacks=callbacks, on_step=on_step)
    assert calls == [
        *[("c", 1, 0), ("c", 2, 0), ("a", 2, 1), ("b", 2, 1)],
        *[("c", 3, 1), ("c", 4, 1), ("a", 4, 2), ("b", 4, 2)],
    ]


@pytest.mark.parametrize("answer", [None, False, 1, "stop", np.False_, np.ones(1, np.bool_)])
def test_only_true_stops_the_training(answer: object) -> None:
    _, _, history = fitted(epochs=2, callbacks=lambda h: answer, on_step=lambda h: answer)
    assert (history.steps, history.stopped) == (6, "finished")


@pytest.mark.parametrize(
    ("option", "function", "steps", "epochs"),
    [
        ("callbacks", lambda h: h.epoch_cost[-1] < INF, 3, 1),
        ("callbacks", lambda h: h.epochs == 2, 6, 2),
        ("on_step", lambda h: h.cost[-1] == h.cost[0], 1, 0),
        ("on_step", lambda h: h.steps == 4, 4, 1),
        ("on_step", lambda h: h.steps == 6, 6, 2),
    ],
)
def test_a_function_that_returns_true_stops_at_once_when_all_were_called(
    option: str, function: Callable[[schuss.History], object], steps: int, epochs: int
) -> None:
    after: list[int] = []
    functions: dict[str, Any] = {option: [function, lambda h: after.append(h.steps)]}
    params, optimizer, history = fitted(epochs=5, validation=lambda p: 1.0, **functions)
    assert bits(params) == bits(plain_loop(steps)[0])
    assert (history.steps, optimizer.steps, after[-1]) == (steps, steps, steps)
    assert (history.epochs, history.stopped) == (epochs, "callback")
    # The epoch that a function on step stops is not validated, even after its last step.
    validated = history.epochs if option == "callbacks" else (steps - 1) // 3
    np.testing.assert_array_equal(history.validation, ([1.0] * validated + [NAN])[:epochs])


# Ctrl-C.


def raise_interrupt(*args: object) -> Any:
    raise KeyboardInterrupt


class FakeBar:
    def __init__(self, **options: Any) -> None:
        pass

    def close(self) -> None:
        raise KeyboardInterrupt

    set_description = set_postfix_str = refresh = lambda *args, **options: None


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"validation": raise_interrupt}, 3),
        ({"callbacks": [lambda h: None, raise_interrupt]}, 3),
        ({"on_step": [lambda h: None, raise_interrupt]}, 1),
        ({"progress": True}, 9),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None,
)
def test_ctrl_c_returns_a_history_of_every_step_made(
    options: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqdm.tqdm", FakeBar)
    params, optimizer, history = fitted(epochs=3, **options)
    assert (history.steps, history.stopped) == (steps, "interrupted")
    check_consistent(history, optimizer, params)


def test_a_step_that_was_skipped_before_ctrl_c_is_in_the_history() -> None:
    class Interrupted(schuss.SGD):
        def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
            super().step(grads, scale=scale)
            if self.skipped:
                raise KeyboardInterrupt

    w, grads = np.zeros(1), iter([np.ones(1), np.array([NAN])])
    optimizer = Interrupted(w, nonfinite="skip")
    history = schuss.fit(lambda w, x: (0.0, next(grads)), w, optimizer, np.zeros(9), batch_size=1)
    assert (history.skipped.tolist(), history.stopped) == ([False, True], "interrupted")


def check_consistent(history: schuss.History, optimizer: Any, params: Any) -> None:
    """Every step made is in the history, and nothing else."""
    expected, costs = plain_loop(optimizer.steps)
    assert history.steps == optimizer.steps
    assert history.epochs == history.steps // 3
    np.testing.assert_array_equal(history.cost, costs)
    np.testing.assert_array_equal(history.lr, [0.1] * history.steps)
    for seconds in (history.loss_seconds, history.step_seconds):
        assert len(seconds) == history.steps
        assert ((seconds >= 0) & (seconds < 3600)).all()  # on any machine
    if history.best_epoch is None:
        assert bits(params) == bits(expected)
    assert repr(history)
    assert len({len(history.to_dict()[name]) for name in ("cost", "lr", "step_seconds")}) == 1


# Python looks for signals at calls and loops. `fit` only assigns once training has begun, and the
# function that checks the names of its arguments only returns.
FIT = schuss.fit.__code__, unwrap(schuss.fit).__code__


@pytest.mark.parametrize(
    ("sign", "best"), [(-1, 2), (1, 1), (0, 2)], ids=["last is best", "first is", "by cost"]
)
def test_ctrl_c_at_any_line_leaves_history_optimizer_and_parameters_consistent(
    sign: int, best: int
) -> None:
    class Batches(OwnBatches):
        def __iter__(self) -> Iterator[Any]:
            interruption.armed = True
            return super().__iter__()

    reached = set()
    for n in count(1):
        interruption = Interruption(n, skip=FIT, armed=False)
        params = line_start()
        optimizer = schuss.Momentum(params, lr=0.2)
        options: dict[str, Any] = {"schedule": 0.1, "callbacks": lambda h: None}
        options |= {"epochs": 2, "restore_best": True}
        if sign:
            options["validation"] = lambda p, of=optimizer: sign * of.steps
        with interruption:
            history = schuss.fit(line, params, optimizer, Batches(), **options)
        check_consistent(history, optimizer, params)
        # Once an epoch was judged, the parameters are those of the best. By its cost, each is.
        if not sign:
            assert history.best_epoch == (history.epochs or None)
        if history.best_epoch is not None:
            assert bits(params) == bits(plain_loop(3 * history.best_epoch)[0])
        if not interruption.sent:
            break
        assert history.stopped == "interrupted"
        reached.add(history.steps)
    assert reached == set(range(7))
    assert (history.steps, history.best_epoch, history.stopped) == (6, best, "finished")


def restored(interruption: Interruption) -> tuple[Any, ...]:
    """Train, restore the best parameters, and return everything that has a copy of them."""
    values = iter([3.0, 1.0, 2.0, 5.0])

    def validation(w: Any) -> float:
        value = next(values)
        interruption.armed = value == 5
        return value

    w, copies = np.zeros(2, np.float32), np.zeros(2, np.float16)
    optimizer = schuss.SGD(w, lr=1.0, copies=copies, average=0.5)
    other = schuss.SGD([w[1:]], copies="float16")  # another optimizer of the same memory
    options: dict[str, Any] = {"validation": validation, "restore_best": True}
    grad = -np.ones(2, np.float32)
    with interruption:
        schuss.fit(lambda w, x: (0.0, grad), w, optimizer, np.zeros(2), epochs=4, **options)
    return w, copies, optimizer, other


def test_copies_of_the_best_parameters_are_restored_with_them_even_under_ctrl_c() -> None:
    for n in count(1):
        interruption = Interruption(n, skip=FIT, armed=False)
        w, copies, optimizer, other = restored(interruption)
        assert [w.tolist(), copies.tolist(), optimizer.copies.tolist()] == [[2, 2]] * 3
        assert other.copies[0] == 2
        assert optimizer.average[0] == 4 - 1 + 2**-3  # the average stays that of the last step
        if not interruption.sent:
            break
    assert n > 10


@pytest.mark.parametrize("option", ["callbacks", "on_step", "validation"])
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, StopIteration])
def test_other_exceptions_pass_through_and_close_the_bar_and_the_mini_batches(
    error: type[BaseException], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(FakeBar, "close", lambda bar: closed.append("bar"))
    monkeypatch.setattr("tqdm.tqdm", FakeBar)

    class Batches(OwnBatches):
        def __iter__(self) -> Iterator[Any]:
            try:
                yield from super().__iter__()
            finally:
                closed.append("mini-batches")

    def fail(*args: object) -> None:
        raise error

    params, options = line_start(), dict[str, Any]({option: fail, "progress": True})
    with pytest.raises(error) as raised:  # it keeps the frames and what they hold
        schuss.fit(line, params, schuss.SGD(params), Batches(), **options)
    assert sorted(closed) == ["bar", "mini-batches"]
    del raised


# The bar.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


CLOSED = io.StringIO()
CLOSED.close()


@pytest.mark.parametrize(
    ("progress", "error", "drawn"),
    [
        (None, io.StringIO(), False),
        (True, io.StringIO(), True),
        (None, Terminal(), True),
        (False, Terminal(), False),
        # A stream may have only what print needs, be closed, or be missing.
        *product([None, False], [SimpleNamespace(write=None, flush=None), CLOSED, None], [False]),
    ],
)
def test_a_bar_of_epoch_steps_and_smoothed_cost_is_drawn_on_a_terminal_or_if_asked_for(
    progress: bool | None, error: Any, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", error)
    history = fitted(epochs=3, progress=progress)[2]
    assert history.steps == 9
    text = error.getvalue() if isinstance(error, io.StringIO) and not error.closed else ""
    assert bool(text) == drawn
    if drawn:
        smoothed = np.average(history.cost, weights=0.98 ** np.arange(8, -1, -1))
        shown = text.rstrip("\n").rpartition("\r")[2]
        assert not [p for p in ("epoch 3/3", "9/9", f"cost {smoothed:.4g}") if p not in shown]
        assert text.endswith("\n")


@pytest.mark.parametrize(
    ("costs", "shown", "hidden"),
    [([INF, 2.0, NAN], "cost 2", ("nan", "inf")), ([NAN, INF, INF], "3/3", ("nan", "inf", "cost"))],
)
def test_the_smoothed_cost_is_that_of_finite_costs(
    costs: Any, shown: str, hidden: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    fit_with(costs, np.zeros(1), 3, batch_size=1, progress=True)
    last = capsys.readouterr().err.rstrip("\n").rpartition("\r")[2]
    assert shown in last
    assert not [word for word in hidden if word in last]


def test_without_tqdm_or_matplotlib_only_what_is_asked_for_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    normal = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] in ("tqdm", "matplotlib"):
            raise ImportError(name)
        return normal(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    error = Terminal()
    monkeypatch.setattr(sys, "stderr", error)
    history = fitted()[2]
    assert error.getvalue() == ""
    with pytest.raises(ImportError, match=r"^fit: tqdm is not installed.*schuss\[demo\]"):
        fitted(progress=True)
    with pytest.raises(ImportError, match=r"^History\.plot: matplotlib is not.*schuss\[demo\]"):
        history.plot()


# The history.


def test_the_cost_of_an_epoch_of_one_batch_is_that_of_its_step() -> None:
    costs = np.random.default_rng(0).random(50)
    history = fit_with(costs, np.zeros(1), 49, epochs=50)  # c * 49 / 49 is not always c
    np.testing.assert_array_equal(history.epoch_cost, costs)


def test_the_times_are_those_spent_in_the_loss_and_in_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(_stepping, "perf_counter", lambda: now[0])

    def slow_loss(*args: Any) -> Any:
        now[0] += 2
        return line(*args)

    class Slow(Stepper):
        def step(self, grads: Any = None, *, scale: float = 1.0) -> None:
            now[0] += 3

    def wait(*args: object) -> float:
        now[0] += 5
        return 0.0

    params = line_start()
    waits: dict[str, Any] = dict.fromkeys(("callbacks", "on_step", "validation"), wait)
    history = schuss.fit(slow_loss, params, Slow(params), X, Y, batch_size=BATCH, **waits)
    np.testing.assert_array_equal(history.loss_seconds, [2.0] * 3)
    np.testing.assert_array_equal(history.step_seconds, [3.0] * 3)


def test_long_trainings_are_recorded_whole_and_arrays_that_were_read_do_not_change() -> None:
    costs, read = np.arange(5000.0), []

    def keep(history: schuss.History) -> None:
        if history.steps % 100 == 0:
            read.append(history.cost)

    history = fit_with(costs.tolist(), np.zeros(1), 5000, batch_size=1, on_step=keep)
    np.testing.assert_array_equal(history.cost, costs)
    for cost, steps in zip(read, range(100, 5001, 100), strict=True):
        np.testing.assert_array_equal(cost, costs[:steps])


def test_the_history_is_read_only_and_its_dict_and_its_pickle_are_copies() -> None:
    history = fitted(epochs=2, validation=(X, Y))[2]
    as_dict, again = history.to_dict(), pickle.loads(pickle.dumps(history))
    assert repr(again) == repr(history)
    assert {name: array.shape for name, array in as_dict.items()} == {
        **dict.fromkeys(("cost", "lr", "skipped", "loss_seconds", "step_seconds"), (6,)),
        **dict.fromkeys(("epoch_cost", "validation"), (2,)),
    }
    for name, array in as_dict.items():
        assert array.dtype == (bool if name == "skipped" else np.float64)
        np.testing.assert_array_equal(array, getattr(history, name))
        array[:] = 0
        np.testing.assert_array_equal(getattr(again, name), getattr(history, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(history, name)[0] = 0


def test_repr_shows_how_far_the_training_came() -> None:
    value = iter([0.5, 0.25, 0.75])
    history = fitted(epochs=3, validation=lambda p: next(value))[2]
    cost = f"cost {history.epoch_cost[2]:.4g}"
    for part in ("3 epochs, 9 steps", cost, "0.75", "0.25 in epoch 2", "finished"):
        assert part in repr(history)
    auto = schuss.fit(mean, np.zeros(3), Duck(), np.zeros((2500, 3)), batch_size="auto")
    assert auto.batch_size == 1024
    assert "1 epoch, 3 steps in batches of 1,024" in repr(auto)


def test_it_draws_cost_validation_and_rate_however_little_there_is(tmp_path: Path) -> None:
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    value = iter([0.5, 0.25, 0.75])
    history = fitted(epochs=3, validation=lambda p: next(value))[2]
    cost, lr = history.plot().axes
    lines: dict[Any, Any] = {drawn.get_label(): drawn for drawn in cost.get_lines()}
    curves: list[tuple[str, Any, Any]] = [
        ("each mini-batch", np.arange(9) / 3, history.cost),
        ("mean of the epoch", [0.5, 1.5, 2.5], history.epoch_cost),
        ("validation", [1, 2, 3], [0.5, 0.25, 0.75]),
    ]
    for label, x, y in curves:
        np.testing.assert_allclose(lines[label].get_xdata(), x)
        np.testing.assert_array_equal(lines[label].get_ydata(), y)
    assert list(lines["best epoch"].get_xdata()) == [2, 2]
    np.testing.assert_array_equal(lr.get_lines()[0].get_ydata(), history.lr)
    for little in [
        fit_line(line_start(), Duck(), on_step=raise_interrupt),
        schuss.fit(raise_interrupt, np.zeros(1), Duck(), X, Y),
        fitted(epochs=3, validation=lambda p: NAN)[2],
    ]:
        figure = matplotlib_figure.Figure()
        assert little.plot(figure) is figure
        figure.savefig(tmp_path / "history.png")
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


# Refusals.

READY = schuss.minibatches(X, Y, batch_size=BATCH)
TOO_FEW = {"x": X, "y": Y, "drop_last": True}
BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"epochs": 0}, ValueError, "epochs is 0, expected an integer >= 1"),
    ({"epochs": 2.0}, TypeError, "epochs is a float, expected an integer"),
    ({"loss_and_grad": 3}, TypeError, "loss_and_grad is a int, expected a function"),
    ({"optimizer": {}}, TypeError, r"optimizer is a dict, expected an object with step\(grads"),
    ({"optimizer": schuss.Adam}, TypeError, "optimizer is the class Adam, expected an object"),
    ({"schedule": "fast"}, TypeError, "schedule is a str, expected a number"),
    ({"schedule": -1.0}, ValueError, "schedule is -1.0, expected a finite number >= 0"),
    ({"schedule_by": "week"}, ValueError, "schedule_by is 'week', expected 'step' or 'epoch'"),
    ({"l2": -0.5}, ValueError, "l2 is -0.5, expected a finite number >= 0"),
    ({"l2": None}, TypeError, "l2 is a NoneType, expected a number"),
    ({"validation": X}, TypeError, "validation is a ndarray, expected a tuple of arrays, a"),
    ({"patience": 0}, ValueError, "patience is 0, expected an integer >= 1"),
    ({"accumulate": 0}, ValueError, "accumulate is 0, expected an integer >= 1"),
    ({"accumulate": 2, "optimizer": Stepper({}), "schedule": None}, TypeError, "optimizer is a St"),
    ({"loss_scale": 1.0, "optimizer": Stepper({}), "schedule": None}, TypeError, "optimizer is a"),
    ({"loss_scale": 0}, ValueError, "loss_scale is 0, expected a finite number > 0"),
    ({"loss_scale": 1e300}, ValueError, r"loss_scale is 1e\+300, expected a number in \[2\*\*-126"),
    ({"mode": "auto"}, ValueError, "mode is 'auto', expected 'min' or 'max'"),
    ({"start_from_epoch": -1}, ValueError, "start_from_epoch is -1, expected an integer >= 0"),
    ({"state": RNG}, ValueError, "state is a Generator without checkpoint, expected both"),
    ({"min_delta": NAN}, ValueError, "min_delta is nan, expected a finite number >= 0"),
    ({"restore_best": "yes"}, TypeError, "restore_best is 'yes', expected True or False"),
    ({"callbacks": 3}, TypeError, "callbacks is a int, expected a function or a sequence"),
    ({"callbacks": [print, 3]}, TypeError, r"callbacks\[1\] is a int, expected a function"),
    ({"on_step": "say"}, TypeError, "on_step is a str, expected a function or a sequence"),
    ({"progress": 1}, TypeError, "progress is 1, expected True or False"),
    ({"x": READY, "y": Y}, ValueError, "y is a ndarray, expected it to be unset, as x is a M"),
    ({"x": READY, "y": [0] * 9999}, ValueError, "y is a list, expected it to be unset"),
    ({"x": READY, "batch_size": 64}, ValueError, "batch_size is 64, expected it to be unset"),
    ({"x": READY, "shuffle": True}, ValueError, "shuffle is True, expected it to be unset"),
    ({"x": READY, "batch_size": 4}, ValueError, "batch_size is 4, expected it to be unset"),
    ({"x": READY, "shuffle": False}, ValueError, "shuffle is False, expected it to be unset"),
    ({"x": READY, "rng": 0}, ValueError, "rng is 0, expected it to be unset"),
    ({"x": READY, "axis": 1}, ValueError, "axis is 1, expected it to be unset"),
    ({"x": READY, "drop_last": True}, ValueError, "drop_last is True, expected it to be unset"),
    ({"x": READY, "prefetch": 1}, ValueError, "prefetch is 1, expected it to be unset"),
    (TOO_FEW, ValueError, "x has 23 examples and drop_last .*, expected at least one batch of 64"),
    ({"schedule": 0.5, "optimizer": Stepper({})}, TypeError, "optimizer is a Stepper without"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_ARGUMENTS)
def test_an_error_names_the_argument_and_changes_nothing(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    params = line_start()
    optimizer = schuss.Momentum(params, lr=0.1)
    rng = np.random.default_rng(0)
    given = {"loss_and_grad": line, "optimizer": optimizer, "x": X, "params": params}
    arguments: dict[str, Any] = given | options
    if arguments["x"] is X:
        arguments = {"y": Y, "rng": rng, "schedule": 0.5} | arguments
    with pytest.raises(error, match=f"^fit: {message}"):
        schuss.fit(**arguments)
    assert (optimizer.steps, optimizer.lr) == (0, 0.1)
    assert bits(params) == bits(line_start())
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_an_optimizer_of_other_parameters_or_of_other_views_of_them_is_refused() -> None:
    params, others = line_start(), line_start()
    w = np.zeros((3, 2))
    cases: list[tuple[Any, Any]] = [([w], [view]) for view in (w[:2], w.reshape(2, 3), w[0])]
    cases += [(params, others), (params, {"W": params["W"], "b": others["b"]})]
    for given, stepped in cases:
        with pytest.raises(ValueError, match=r"^fit: optimizer\.params are other arrays, expected"):
            schuss.fit(raise_interrupt, given, schuss.SGD(stepped, lr=0.1), X)


PAIR = "loss_and_grad returned a {}, expected a pair"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, PAIR.format("float")),
        ((1.0,), PAIR.format("tuple of length 1")),
        (np.zeros(2), PAIR.format("ndarray")),
        (("low", {}), "the loss is a str, expected a number"),
        ((np.zeros(1), {}), "the loss is a ndarray, expected a number"),
    ],
)
def test_the_loss_must_return_a_number_and_gradients(returned: Any, message: str) -> None:
    params = line_start()
    optimizer = schuss.SGD(params)
    with pytest.raises(TypeError, match=f"^fit: {message}"):
        schuss.fit(lambda *args: returned, params, optimizer, X, Y)
    assert optimizer.steps == 0
    with pytest.raises(TypeError, match=f"^with_l2: {message}"):
        schuss.with_l2(lambda *args: returned, 0.1)(params, X)


def returning(w: Any, *others: Any) -> Callable[..., Any]:
    return lambda *args: (0.0, dict(zip("Wb", (w, *others), strict=False)))


W = np.zeros((3, 1))
ZEROS, WHOLE = returning(W, np.zeros(1)), returning(W.astype("i"), np.zeros(1))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            {"W": np.ones((2, 2), int)},
            TypeError,
            r"params\['W'\] has dtype int64, expected float32",
        ),
        ({"W": np.ones((2, 2), ">f8")}, TypeError, r"params\['W'\] has dtype >f8, expected native"),
        ({"W": X, "V": X}, ValueError, r"params\['V'\] is the same array as params\['W'\]"),
        ({"W": X, "V": X[1:]}, ValueError, r"params\['V'\] shares memory with params\['W'\]"),
    ],
)
def test_with_l2_takes_the_parameters_that_an_optimizer_takes(
    params: dict[str, Any], error: type[Exception], message: str
) -> None:
    loss_and_grad = schuss.with_l2(lambda p, x: (0.0, copy.deepcopy(p)), 1.0)
    with pytest.raises(error, match=f"^with_l2: {message}"):
        loss_and_grad(params, X)


@pytest.mark.parametrize(
    ("options", "batch", "error", "message"),
    [
        ({"loss_and_grad": 3}, (X, Y), TypeError, "loss_and_grad is a int, expected a function"),
        ({"strength": -1}, (X, Y), ValueError, "strength is -1, expected a finite number >= 0"),
        ({"loss_scale": 0}, (X, Y), ValueError, "loss_scale is 0, expected a finite number > 0"),
        ({"loss_scale": None}, (X, Y), TypeError, "loss_scale is a NoneType, expected a number"),
        ({"weights": ["W"]}, (X, Y), TypeError, "weights is a list, expected a function"),
        ({"weights": lambda name: 1}, (X, Y), TypeError, r"weights\('W'\) is 1, expected True or"),
        ({"axis": 2}, (X, Y), ValueError, "axis is 2, expected an axis of x, which has 2"),
        ({"loss_and_grad": returning(W)}, (X,), ValueError, "grads has no key 'b', expected it"),
        ({"loss_and_grad": WHOLE}, (X,), TypeError, r"grads\['W'\] has dtype int32, expected"),
        ({"loss_and_grad": ZEROS}, (), TypeError, "x is missing, expected an array of examples"),
        ({"loss_and_grad": ZEROS}, ([[1.0]],), TypeError, "x is a list, expected an array$"),
        ({"loss_and_grad": ZEROS}, (X[:0],), ValueError, "x has no examples along axis 0, exp"),
    ],
)
def test_with_l2_names_an_argument_or_a_batch_that_it_does_not_take(
    options: dict[str, Any], batch: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"loss_and_grad": line, "strength": 1.0} | options
    with pytest.raises(error, match=f"^with_l2: {message}"):
        schuss.with_l2(**arguments)(line_start(), *batch)


def test_the_rate_may_be_set_by_hand_while_training() -> None:
    params = line_start()
    optimizer = schuss.SGD(params, lr=0.1)

    def halve(history: schuss.History) -> None:
        optimizer.lr /= 2  # type: ignore[operator]

    history = fit_line(params, optimizer, epochs=3, callbacks=halve)
    np.testing.assert_array_equal(history.lr, np.repeat([0.1, 0.05, 0.025], 3))

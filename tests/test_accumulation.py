"""Gradients that are added up before a step: `accumulate`, then `step` without gradients."""

import copy
import pickle
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import LAYOUTS, dtype_of, laid_out, numbers, same_bits
from support.optimizers import assert_same, make_reference
from support.threads import in_threads, step_under_way


def sgd(*grads: float, **options: Any) -> Any:
    """Return an SGD of a parameter that is zero, which has accumulated these gradients."""
    optimizer = schuss.SGD(np.zeros(1), **{"lr": 1.0, **options})
    for grad in grads:
        optimizer.accumulate(np.array([grad]))
    return optimizer


# The sum.


@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize("of_grad", LAYOUTS)
def test_gradients_of_every_layout_are_added_up(of_param: str, of_grad: str) -> None:
    rng = np.random.default_rng(2)
    values, *grads = (numbers(rng, (13, 7, 60), np.float32) for _ in range(3))
    optimizer = schuss.SGD(laid_out(values, of_param), lr=0.5)
    expected = make_reference("SGD", values, lr=0.5)
    for grad, scale in zip(grads, (1.0, 0.3), strict=True):
        optimizer.accumulate(laid_out(grad, of_grad), scale=scale)
        expected.accumulate(grad, scale=scale)
    optimizer.step()
    expected.step()
    assert_same(optimizer, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_gradients_in_half_precision_are_not_lost_in_the_sum(dtype: str) -> None:
    # In float16, 2048 + 1 is 2048.
    optimizer = schuss.SGD(np.zeros(1, np.float32), lr=1.0)
    for grad in (2048, *[1] * 100):
        optimizer.accumulate(np.array([grad]).astype(dtype_of(dtype)))
    optimizer.step()
    assert optimizer.params.tolist() == [-2148.0]


def test_a_negative_zero_stays_one() -> None:
    # The first gradient is not added to zeros: 0 + -0 would be 0.
    optimizer = schuss.Momentum(np.zeros(1), lr=1.0, dampening=0.0, beta=0.0)
    optimizer.state["velocity"][...] = -0.0
    optimizer.accumulate(np.array([-0.0]))
    optimizer.step()
    assert np.signbit(optimizer.state["velocity"]).all()


def test_a_schedule_is_called_once_for_the_step_and_not_for_gradients() -> None:
    calls: list[int] = []
    optimizer = sgd(lr=lambda t: calls.append(t) or 0.5)  # type: ignore[func-returns-value]
    for _ in range(2):
        for _ in range(3):
            optimizer.accumulate(np.ones(1))
        optimizer.step()
    assert calls == [1, 2]
    assert optimizer.params.tolist() == [-3.0]


def test_accumulated_gradients_of_torch_give_its_step() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    param = rng.standard_normal((5, 7))
    theirs = torch.nn.Parameter(torch.from_numpy(param.copy()))
    other, ours = torch.optim.Adam([theirs], lr=0.1), schuss.Adam(param, lr=0.1)
    for _ in range(4):
        for _ in range(3):
            x = rng.standard_normal((11, 5))
            (((torch.from_numpy(x) @ theirs) ** 2).mean() / 3).backward()
            ours.accumulate(2 / 77 * x.T @ (x @ param), scale=1 / 3)
        other.step()
        other.zero_grad()
        ours.step()
        np.testing.assert_allclose(param, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)


# With the other options.


def test_gradients_that_overflow_in_the_sum_are_not_finite() -> None:
    optimizer = schuss.SGD(np.zeros(1, np.float32), nonfinite="skip")
    for _ in range(2):
        optimizer.accumulate(np.array([3e38], np.float32))
    optimizer.step()
    assert optimizer.skipped == 1


def test_a_sum_takes_memory_only_where_gradients_are_accumulated() -> None:
    n = 100_000
    optimizer = schuss.SGD(np.zeros(n))
    optimizer.step(np.ones(n))
    optimizer.zero_grad()
    grad = np.ones(n)
    tracemalloc.start()
    try:
        optimizer.step(grad)
        assert tracemalloc.get_traced_memory()[1] < n
        optimizer.accumulate(grad)
        optimizer.step()
        before = tracemalloc.get_traced_memory()[0]
        assert before < 1.5 * grad.nbytes
        tracemalloc.reset_peak()
        for _ in range(3):
            optimizer.accumulate(grad)
            optimizer.step()
        assert tracemalloc.get_traced_memory()[1] < before + n
    finally:
        tracemalloc.stop()


# Refusals.


def test_a_step_takes_the_gradients_that_are_given_or_those_that_wait() -> None:
    optimizer = sgd()
    message = r"^SGD\.step: there are no gradients, expected grads, or some accumulated$"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    optimizer.accumulate(np.ones(1))
    message = (
        r"^SGD\.step: grads are given while others are accumulated, expected only one of them$"
    )
    with pytest.raises(ValueError, match=message):
        optimizer.step(np.full(1, 10.0))
    assert (optimizer.steps, optimizer.accumulated) == (0, 1)
    optimizer.step()
    assert optimizer.params.tolist() == [-1.0]


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("others_before", [False, True])
def test_gradients_in_the_optimizers_own_memory_are_not_added(
    clear: bool, others_before: bool
) -> None:
    optimizer = schuss.Adam(np.ones(4, np.float32), clear_grads=clear, copies="float16")
    if others_before:
        optimizer.accumulate(np.ones(4, np.float32))
        optimizer.zero_grad()
    optimizer.amsgrad, optimizer.average = True, 0.5
    optimizer.step(np.ones(4, np.float32))
    own = {"params": optimizer.params, "average": optimizer.average, "copies": optimizer.copies}
    own |= {f"state['{name}']": optimizer.state[name] for name in ("m", "v_max")}
    for name, array in own.items():
        before = array.copy()
        message = re.escape(f"Adam.accumulate: grads shares memory with {name}, expected")
        with pytest.raises(ValueError, match=f"^{message}"):
            optimizer.accumulate(array)
        assert same_bits(array, before)
        assert (optimizer.steps, optimizer.accumulated) == (1, 0)


def test_a_step_from_the_sum_that_is_refused_leaves_it() -> None:
    params = [np.zeros(1)]
    optimizer = schuss.SGD(params, lr=1.0)
    optimizer.accumulate([np.ones(1)])
    original, params[0] = params[0], np.zeros(1)
    with pytest.raises(ValueError, match=r"params\[0\] was replaced"):
        optimizer.step()
    params[0] = original
    optimizer.lr = lambda t: -1.0
    with pytest.raises(ValueError, match=r"^SGD\.step: lr is -1"):
        optimizer.step()
    assert (optimizer.accumulated, optimizer.steps) == (1, 0)
    optimizer.lr = 1.0
    optimizer.step()
    assert params[0].tolist() == [-1.0]


# Saving.


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_gradients_that_wait_are_copied_and_then_belong_to_the_copy(
    how: Callable[[Any], Any],
) -> None:
    optimizer = sgd(1.0)
    other = how(optimizer)
    other.accumulate(np.full(1, 4.0))
    assert (optimizer.accumulated, other.accumulated) == (1, 2)
    other.step()
    assert (other.params.tolist(), other.accumulated, optimizer.accumulated) == ([-5.0], 0, 1)


# Several threads.


def test_no_gradient_is_lost_between_threads_that_accumulate_and_one_that_steps() -> None:
    n = 20_000
    optimizer = schuss.SGD(np.zeros(n), lr=1.0)
    added = [0, 0]
    messages: set[str] = set()

    def work(i: int) -> None:
        grad = np.full(n, 128.0**i)
        while added[i] < 60 if i < 2 else min(added) < 60:
            try:
                if i < 2:
                    optimizer.accumulate(grad)
                    added[i] += 1
                else:
                    optimizer.step()
            except (RuntimeError, ValueError) as error:
                messages.add(str(error))

    in_threads(3, work)
    assert messages <= {
        "SGD.accumulate: another call of SGD is under way, expected one at a time",
        "SGD.step: another call of SGD is under way, expected one at a time",
        "SGD.step: there are no gradients, expected grads, or some accumulated",
    }
    if optimizer.accumulated:
        optimizer.step()
    assert (optimizer.params == -60.0 * (1 + 128)).all()


@pytest.mark.parametrize("name", ["accumulate", "step", "zero_grad", "state_dict"])
def test_what_would_meet_an_accumulation_is_refused(name: str) -> None:
    optimizer = sgd(1.0)
    arguments = [np.ones(1)] * (name == "accumulate")
    message = rf"^SGD\.{name}: another call of SGD is under way, expected one at a time$"
    with (
        step_under_way(optimizer.accumulate, np.full(1, 2.0)),
        pytest.raises(RuntimeError, match=message),
    ):
        getattr(optimizer, name)(*arguments)
    assert (optimizer.accumulated, optimizer.steps) == (2, 0)
    optimizer.step()
    assert optimizer.params.tolist() == [-3.0]


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except (RuntimeError, ValueError):
        return True
    return False


@pytest.mark.parametrize("grad", [1.0, np.nan])
def test_two_steps_that_begin_together_do_not_both_take_the_sum(grad: float) -> None:
    optimizer = sgd(grad, nonfinite="skip")
    calls: list[int] = []
    refused: list[bool] = []

    def rate(t: int) -> float:  # called after the step has found that there are gradients
        calls.append(t)
        if len(calls) == 1:
            refused.append(is_refused(optimizer.step))
        return 1.0

    optimizer.lr = rate
    refused.append(is_refused(optimizer.step))
    assert sum(refused) == 1
    assert optimizer.params.tolist() == [-1.0 if grad == 1 else 0.0]
    assert optimizer.steps + optimizer.skipped == 1
    assert optimizer.accumulated == 0


def test_a_gradient_that_comes_while_a_step_begins_is_not_lost() -> None:
    optimizer = sgd()
    refused: list[bool] = []

    def rate(t: int) -> float:  # called after the step has found that nothing is accumulated
        refused.append(is_refused(lambda: optimizer.accumulate(np.full(1, 10.0))))
        return 1.0

    optimizer.lr = rate
    refused.append(is_refused(lambda: optimizer.step(np.ones(1))))
    optimizer.lr = 1.0
    if optimizer.accumulated:
        optimizer.step()
    # What was refused raised an error, and what was not refused is in the parameters.
    assert optimizer.params.tolist() in ([[-1.0], [-10.0]] if any(refused) else [[-11.0]])

"""A step works without the interpreter's lock: what may happen meanwhile, and what may not."""

import copy
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import Array, equal, same_bits
from support.processes import ends_well
from support.threads import in_threads, step_under_way

LARGE = 1 << 20

pytestmark = pytest.mark.usefixtures("switch_often")


def after_steps(steps: int, grad: Array) -> list[Array]:
    optimizer = schuss.Adam(np.zeros_like(grad))
    for _ in range(steps):
        optimizer.step(grad)
    return [optimizer.params, *optimizer.state.values()]


def test_threads_that_step_one_optimizer_lose_no_step(rounds: Iterator[int]) -> None:
    grad = np.random.default_rng(0).standard_normal(LARGE, dtype=np.float32)
    busy = "Adam.step: another call of Adam is under way, expected one at a time"

    def step(optimizer: Any, made: list[int], refused: list[str], i: int) -> None:
        while made[i] < 2 or not refused:
            try:
                optimizer.step(grad)
                made[i] += 1
            except RuntimeError as error:
                refused.append(str(error))

    for _ in rounds:
        optimizer, made, refused = schuss.Adam(np.zeros_like(grad)), [0] * 8, list[str]()
        in_threads(8, partial(step, optimizer, made, refused))
        assert {*refused} == {busy}
        assert optimizer.steps == sum(made)
        expected = after_steps(optimizer.steps, grad)
        assert equal([optimizer.params, *optimizer.state.values()], [*expected])


def changes(optimizer: Any) -> dict[str, Callable[[], object]]:
    """Calls that do not wait, and that must not run during a step."""
    saved = optimizer.state_dict()
    return {
        "step": lambda: optimizer.step(np.ones(3)),
        "accumulate": lambda: optimizer.accumulate(np.ones(3)),
        "zero_grad": optimizer.zero_grad,
        "state_dict": optimizer.state_dict,
        "__getstate__": lambda: pickle.dumps(optimizer),
        "__copy__": lambda: copy.copy(optimizer),
        "load_state_dict": lambda: optimizer.load_state_dict(saved),
        "amsgrad": lambda: setattr(optimizer, "amsgrad", True),
        "beta1": lambda: setattr(optimizer, "beta1", 0.5),
        "clip_norm": lambda: setattr(optimizer, "clip_norm", 1.0),
        "average": lambda: setattr(optimizer, "average", 0.5),
        "param_groups[0]['beta1']": lambda: optimizer.param_groups[0].update(beta1=0.5),
    }


@pytest.mark.parametrize("call", changes(schuss.Adam(np.zeros(3))))
def test_what_would_meet_a_step_under_way_is_refused(call: str) -> None:
    grad = np.array([1.0, -2.0, 3.0])
    optimizer = schuss.Adam(np.zeros(3))
    optimizer.step(grad)
    change = changes(optimizer)[call]
    name = re.escape(call)
    message = rf"^Adam\.{name}: another call of Adam is under way, expected one at a time$"
    with step_under_way(optimizer.step, grad), pytest.raises(RuntimeError, match=message):
        change()
    assert (optimizer.steps, optimizer.amsgrad, optimizer.beta1) == (2, False, 0.9)
    assert (optimizer.clip_norm, optimizer.average, optimizer.accumulated) == (None, None, 0)
    for ours, expected in zip(
        (optimizer.params, *optimizer.state.values()), after_steps(2, grad), strict=True
    ):
        assert same_bits(ours, expected)
    change()


def test_an_average_is_not_read_within_a_step_or_an_update() -> None:
    optimizer = schuss.SGD(np.zeros(3), lr=1.0, average=0.5, average_bias_correction=True)
    average = schuss.ExponentialAverage(0.5)
    # After two: (1/2 * -2 + 1/4 * -1) / (1/2 + 1/4), and the mean of ones.
    cases: list[tuple[Any, Any, str, float]] = [
        (optimizer, optimizer.step, "SGD.average", -5 / 3),
        (average, average.update, "ExponentialAverage.value", 1),
    ]
    for of, update, name, expected in cases:
        update(np.ones(3))
        call, _, attribute = name.partition(".")
        message = f"^{name}: another call of {call} is under way, expected one at a time$"
        with step_under_way(update, np.ones(3)), pytest.raises(RuntimeError, match=message):
            getattr(of, attribute)
        np.testing.assert_allclose(getattr(of, attribute), expected, rtol=1e-15)
    assert average.updates == 2


def test_the_rate_may_be_set_while_a_step_is_under_way() -> None:
    optimizer = schuss.SGD(np.zeros(3), lr=1.0)
    with step_under_way(optimizer.step, np.ones(3)):
        optimizer.lr = 5.0
    assert optimizer.params.tolist() == [-1, -1, -1]
    optimizer.step(np.ones(3))
    assert optimizer.params.tolist() == [-6, -6, -6]


def test_two_first_updates_of_an_average_are_not_taken_for_one() -> None:
    average = schuss.ExponentialAverage(0.5)
    errors = []

    def update(values: Any) -> None:
        try:
            average.update(values)
        except RuntimeError as error:
            errors.append(str(error))

    with step_under_way(update, np.ones(3)):
        average.update(np.full(3, 7.0))
    assert errors == [
        "ExponentialAverage.update: another call of ExponentialAverage is under way, expected one "
        "at a time"
    ]
    assert average.updates == 1
    assert average.value.tolist() == [7, 7, 7]


def test_a_step_is_never_made_with_the_rate_of_another() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def rate(t: int) -> float:
        if threading.current_thread() is not threading.main_thread():
            asked.set()
            assert go_on.wait(600)
        return float(t)

    optimizer = schuss.SGD(np.zeros(1), lr=rate)
    errors = []

    def step() -> None:
        try:
            optimizer.step(np.ones(1))
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=step)
    thread.start()
    assert asked.wait(600)
    optimizer.step(np.ones(1))
    optimizer.step(np.ones(1))
    go_on.set()
    thread.join()
    assert errors == ["SGD.step: another call of SGD is under way, expected one at a time"]
    assert (optimizer.steps, optimizer.lr_now, optimizer.params.tolist()) == (2, 2.0, [-3.0])


def test_kernels_of_several_threads_do_not_meet() -> None:
    rng = np.random.default_rng(3)
    grads = rng.standard_normal((4, 300_000))
    arrays = np.zeros((4, 3, 300_000))

    def step(i: int) -> None:
        for t in range(1, 6):
            schuss.kernels.adam(arrays[i, 0], grads[i], arrays[i, 1], arrays[i, 2], step=t)

    in_threads(4, step)
    for i in range(4):
        param, m, v = np.zeros((3, 300_000))
        for t in range(1, 6):
            schuss.reference.adam(param, grads[i], m, v, step=t)
        assert same_bits(arrays[i, 0], param)


def test_threadpoolctl_sees_and_limits_the_threads() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def ours() -> list[dict[str, Any]]:
        return [each for each in threadpoolctl.threadpool_info() if each["user_api"] == "schuss"]

    before = schuss.num_threads()
    (info,) = ours()
    assert (info["num_threads"], info["version"]) == (before, schuss.__version__)
    with threadpoolctl.threadpool_limits({"schuss": 5}):
        assert schuss.num_threads() == ours()[0]["num_threads"] == 5
        with threadpoolctl.threadpool_limits(1):
            assert schuss.num_threads() == 1
        with threadpoolctl.threadpool_limits(2, user_api="blas"):
            assert schuss.num_threads() == 5
    assert schuss.num_threads() == before


def test_schuss_does_without_threadpoolctl() -> None:
    code = "import sys; sys.modules['threadpoolctl'] = None; import schuss; print('fine')"
    assert ends_well(code) == "fine\n"

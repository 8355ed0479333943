"""A step works without the interpreter's lock: what may happen meanwhile, and what may not."""

import contextlib
import copy
import os
import pickle
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import Array, same_bits
from support.processes import ends_well, fork
from support.threads import in_threads, step_under_way

LARGE = 1 << 20


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def after_steps(steps: int, grad: Array) -> tuple[Array, Array, Array]:
    optimizer = schuss.Adam(np.zeros_like(grad))
    for _ in range(steps):
        optimizer.step(grad)
    return optimizer.params, optimizer.state["m"], optimizer.state["v"]


def test_two_threads_that_step_one_optimizer_lose_no_step() -> None:
    grad = np.random.default_rng(0).standard_normal(LARGE, dtype=np.float32)
    optimizer = schuss.Adam(np.zeros_like(grad))
    made, refused = [0, 0, 0], [0, 0, 0]
    messages: set[str] = set()

    def step(i: int) -> None:
        while made[i] < 5 or sum(refused) == 0:
            try:
                optimizer.step(grad)
                made[i] += 1
            except RuntimeError as error:
                refused[i] += 1
                messages.add(str(error))

    in_threads(3, step)
    assert messages == {"Adam.step: another call of Adam is under way, expected one at a time"}
    assert optimizer.steps == sum(made)
    expected = after_steps(optimizer.steps, grad)
    assert same_bits(optimizer.params, expected[0])
    assert same_bits(optimizer.state["m"], expected[1])
    assert same_bits(optimizer.state["v"], expected[2])


def test_other_threads_run_during_a_step() -> None:
    grad = np.ones(LARGE, np.float32)
    optimizer = schuss.SGD(np.zeros_like(grad))
    done = threading.Event()

    def step() -> None:
        while not done.is_set():
            with contextlib.suppress(RuntimeError):
                optimizer.step(grad)

    thread = threading.Thread(target=step)
    thread.start()
    inside = False
    while not inside:
        try:
            optimizer.step(grad)
        except RuntimeError:  # only while the other thread is within a step
            inside = True
    done.set()
    thread.join()


def changes(optimizer: Any) -> dict[str, Callable[[], object]]:
    """What waits for nobody, and must not meet a step."""
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


def test_a_corrected_average_is_not_read_within_a_step() -> None:
    optimizer = schuss.SGD(np.zeros(3), lr=1.0, average=0.5, average_bias_correction=True)
    optimizer.step(np.ones(3))
    message = "^SGD.average: another call of SGD is under way, expected one at a time$"
    with (
        step_under_way(optimizer.step, np.ones(3)),
        pytest.raises(RuntimeError, match=message),
    ):
        _ = optimizer.average
    # (1/2 * -2 + 1/4 * -1) / (1/2 + 1/4)
    np.testing.assert_allclose(optimizer.average, -5 / 3, rtol=1e-15)


def test_the_rate_may_be_set_while_a_step_is_under_way() -> None:
    optimizer = schuss.SGD(np.zeros(3), lr=1.0)
    with step_under_way(optimizer.step, np.ones(3)):
        optimizer.lr = 5.0
    assert optimizer.params.tolist() == [-1, -1, -1]
    optimizer.step(np.ones(3))
    assert optimizer.params.tolist() == [-6, -6, -6]


def test_an_average_is_not_read_within_an_update() -> None:
    average = schuss.ExponentialAverage(0.5)
    average.update(np.ones(3))
    message = "^ExponentialAverage.value: another call of ExponentialAverage is under way"
    with step_under_way(average.update, np.ones(3)), pytest.raises(RuntimeError, match=message):
        _ = average.value
    assert average.updates == 2
    assert average.value.tolist() == [1, 1, 1]


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


@fork
def test_the_child_of_a_fork_need_not_wait_for_a_step_that_it_does_not_have() -> None:
    optimizer = schuss.SGD(np.zeros(3), lr=1.0)
    optimizer.step(np.ones(3))
    with step_under_way(optimizer.step, np.ones(3)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork beside threads: Python warns, and so does JAX
        child = os.fork()
        if child == 0:
            optimizer.step(np.ones(3))
            good = optimizer.params.tolist() == [-2, -2, -2] and optimizer.steps == 2
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert optimizer.params.tolist() == [-2, -2, -2]


@fork
def test_the_child_of_a_fork_need_not_wait_for_a_first_update_that_it_does_not_have() -> None:
    code = """
    import os, signal, threading
    import numpy as np, schuss
    class Slow(schuss.ExponentialAverage):
        @property
        def updates(self):
            calls.append(None)
            if len(calls) == 2:  # before the update is made, and before it counts
                reached.set()
                assert let_go.wait(600)
            return super().updates
    calls, reached, let_go = [], threading.Event(), threading.Event()
    slow = Slow(0.5)
    thread = threading.Thread(target=slow.update, args=[np.ones(3)])
    thread.start()
    assert reached.wait(600)
    child = os.fork()
    if child == 0:
        signal.alarm(500)
        averages = schuss.ExponentialAverage(0.5), slow
        for average in averages: average.update(np.ones(3))
        os._exit(0 if all(average.value.tolist() == [1, 1, 1] for average in averages) else 1)
    status = os.waitpid(child, 0)[1]
    let_go.set(); thread.join()
    print(status, slow.value)
    """
    assert ends_well(code) == "0 [1. 1. 1.]\n"


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


@fork
@pytest.mark.parametrize("size", [100, 20_000, 3_000_000])
def test_a_fork_finds_a_step_of_another_thread_whole(size: int) -> None:
    code = f"""
    import os, sys, threading, time
    import numpy as np, schuss
    schuss.set_num_threads(3)
    grad = np.random.default_rng(0).standard_normal({size}, dtype=np.float32)
    optimizer = schuss.Adam(np.zeros_like(grad))
    done = threading.Event()
    def step():
        while not done.is_set(): optimizer.step(grad)
    thread = threading.Thread(target=step)
    thread.start()
    def whole():
        other = schuss.Adam(np.zeros_like(grad))
        for _ in range(optimizer.steps): other.step(grad)
        pairs = [(optimizer.params, other.params)]
        pairs += [(optimizer.state[name], other.state[name]) for name in "mv"]
        return all(a.tobytes() == b.tobytes() for a, b in pairs)
    for _ in range({3 if size > 1_000_000 else 20}):
        steps = optimizer.steps
        while optimizer.steps == steps: time.sleep(0.0001)
        child = os.fork()
        if child == 0:
            good = whole()
            optimizer.step(grad)
            os._exit(0 if good and whole() else 1)
        assert os.waitpid(child, 0)[1] == 0
        if optimizer.steps * {size} > 10_000_000:  # so that no child has much to do
            done.set(); thread.join()
            optimizer = schuss.Adam(np.zeros_like(grad)); done.clear()
            thread = threading.Thread(target=step); thread.start()
    done.set(); thread.join()
    print("whole")
    """
    assert ends_well(code) == "whole\n"


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


def test_the_interpreter_ends_while_a_daemon_is_within_a_large_step() -> None:
    code = """
    import threading, time
    import numpy as np, schuss
    grad = np.ones(30_000_000, np.float32)
    optimizer = schuss.Adam(np.zeros_like(grad))
    def step():
        while True: optimizer.step(grad)
    threading.Thread(target=step, daemon=True).start()
    while optimizer.steps == 0: time.sleep(0.001)
    """
    for _ in range(3):
        ends_well(code, SCHUSS_NUM_THREADS=str(len(os.sched_getaffinity(0))))

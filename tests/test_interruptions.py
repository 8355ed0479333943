"""Signals: a call that a handler interrupts has finished or has changed nothing."""

import os
import random
import signal
import sys
import tempfile
from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import _interrupts, cli, reference
from support.arrays import Array, equal, same_bits
from support.changes import after_one_more_step, changes
from support.interruption import Interruption

Interrupt = Callable[[float], object]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there is no such timer")

OPTIONS: dict[str, Any] = {"clip_norm": 500.0, "average": 0.9}


def arrays_of(optimizer: Any) -> list[Array]:
    averages = [] if optimizer.average is None else [optimizer.average]
    return [optimizer.params, *optimizer.state.values(), *averages]


def met(call: Callable[[], object], interrupt: Interrupt, seconds: float) -> bool:
    """Return whether Ctrl-C, pressed after `seconds`, interrupted the call."""
    interrupt(seconds)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        interrupt(0)  # or the report of a failure would be interrupted
    return False


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["step", "clip, step, average"])
def test_a_step_that_ctrl_c_meets_was_made_or_was_not(
    options: dict[str, Any], interrupt: Interrupt, rounds: Iterator[int]
) -> None:
    grad = np.random.default_rng(0).standard_normal(500_000, dtype=np.float32)
    for seed in rounds:
        optimizer = schuss.Adam(np.zeros_like(grad), **options)
        expected = reference.Optimizer("adam", np.zeros_like(grad), lr=0.001, **options)
        chance, interrupted = random.Random(seed), 0
        with schuss.threads(2):
            while interrupted < 10:
                step = partial(optimizer.step, grad)
                interrupted += met(step, interrupt, chance.uniform(1e-6, 1e-3))
                if optimizer.steps == expected.steps + 1:
                    expected.step(grad)
                assert optimizer.steps == expected.steps
                assert equal(arrays_of(optimizer), arrays_of(expected))


def test_a_gradient_whose_accumulation_ctrl_c_meets_was_added_or_was_not(
    interrupt: Interrupt,
) -> None:
    grad = np.random.default_rng(0).standard_normal(500_000, dtype=np.float32)
    optimizer = schuss.SGD(np.zeros_like(grad), lr=1.0)
    expected, chance, interrupted = np.zeros_like(grad), random.Random(0), 0
    while interrupted < 25:
        total, added = np.zeros_like(grad), 0
        for _ in range(4):
            add = partial(optimizer.accumulate, grad)
            interrupted += met(add, interrupt, chance.uniform(1e-6, 1e-3))
            if optimizer.accumulated == added + 1:
                total, added = total + grad, added + 1
            assert optimizer.accumulated == added
        steps = optimizer.steps
        while added and optimizer.steps == steps:
            interrupted += met(optimizer.step, interrupt, chance.uniform(1e-6, 1e-3))
            assert optimizer.accumulated == (added if optimizer.steps == steps else 0)
        expected -= total
        assert same_bits(optimizer.params, expected)


LOSES_CTRL_C = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function _PooledBuffer:pytest.PytestUnraisableExceptionWarning"
)


@LOSES_CTRL_C
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_training_that_ctrl_c_meets_is_the_plain_loop_up_to_there(
    prefetch: int, interrupt: Interrupt, rounds: Iterator[int]
) -> None:
    x = np.random.default_rng(0).standard_normal((60, 8), dtype=np.float32)

    def loss_and_grad(params: Array, batch: Array) -> tuple[float, Array]:
        return float(batch[0, 0]), params * batch.mean()

    # What the library imports late, it has: an import that Ctrl-C meets leaves its file open.
    one = np.ones(1)
    schuss.fit(loss_and_grad, one, schuss.SGD(one), x, prefetch=prefetch)
    chance = random.Random(0)
    options: dict[str, Any] = {"batch_size": 8, "epochs": 3, "rng": 0, "prefetch": prefetch}
    for _ in rounds:
        params = np.ones(300_000, np.float32)
        optimizer = schuss.Momentum(params, lr=0.1)
        begun: list[schuss.History] = []
        try:
            interrupt(chance.uniform(1e-3, 0.03))
            schuss.fit(loss_and_grad, params, optimizer, x, on_step=begun.append, **options)
            interrupt(0)
        except KeyboardInterrupt:  # before the training began, or when it was over
            pass
        if not begun:
            continue
        history = begun[0]
        expected = reference.Optimizer("momentum", np.ones_like(params), lr=0.1)
        costs: list[float] = []
        batches = schuss.minibatches(x, batch_size=8, rng=0)
        for batch in islice(chain(batches, batches, batches), optimizer.steps):
            cost, grad = loss_and_grad(expected.params, batch)
            expected.step(grad)
            costs.append(cost)
        assert optimizer.steps == history.steps
        assert history.cost.tolist() == costs
        assert equal(arrays_of(optimizer), arrays_of(expected))


@pytest.mark.parametrize("change", changes(schuss.Adam({"W": np.ones(3)}), {"W": np.ones(3)}))
def test_ctrl_c_at_any_line_of_a_change_finds_it_made_or_not(change: str) -> None:
    grad = {"W": np.array([1.0, -2.0, 3.0]), "b": np.array([0.5])}

    def fresh() -> Any:
        optimizer = schuss.Adam({"W": np.ones(3), "b": np.ones(1)}, lr=0.1)
        optimizer.step(grad)
        return optimizer

    as_before, changed = fresh(), fresh()
    changes(changed, grad)[change]()
    allowed = [after_one_more_step(optimizer, grad) for optimizer in (as_before, changed)]
    for n in count(1):
        optimizer = fresh()
        if not Interruption(n).meets(changes(optimizer, grad)[change]):
            break
        assert after_one_more_step(optimizer, grad) in allowed, n
    assert n > 2


def test_ctrl_c_at_any_line_finds_lr_now_that_of_the_schedule_in_use() -> None:
    before, after = (schuss.schedules.Linear(rate, 0.0, 10) for rate in (0.1, 0.3))
    for n in count(1):
        optimizer = schuss.SGD(np.ones(2), lr=before)
        optimizer.step(np.ones(2))
        interrupted = Interruption(n).meets(partial(setattr, optimizer, "lr", after))
        schedule: Any = optimizer.lr
        assert optimizer.lr_now == schedule(1), n
        if not interrupted:
            break
    assert n > 2


def test_ctrl_c_at_any_line_of_an_update_finds_the_average_as_before_or_after() -> None:
    for n in count(1):
        average = schuss.ExponentialAverage(0.5)
        average.update(np.array([1.0, 2.0]))
        if not Interruption(n).meets(lambda a=average: a.update(np.array([3.0, 6.0]))):  # type: ignore[misc]
            break
        expected = [1, 2] if average.updates == 1 else [(1 + 2 * 3) / 3, (2 + 2 * 6) / 3]
        np.testing.assert_allclose(average.value, expected, rtol=1e-15)
    assert n > 2


def test_signals_that_come_again_and_again_do_not_cut_what_is_done_whole() -> None:
    ended: list[int] = []
    handled: list[int] = []

    def time_is_up(number: int, _: FrameType | None) -> None:
        handled.append(number)
        raise TimeoutError

    def work() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR2)
        ended.append(len(handled))

    numbers = signal.SIGUSR1, signal.SIGUSR2
    before = [signal.signal(number, time_is_up) for number in numbers]
    with pytest.raises(TimeoutError):
        _interrupts.defer_signals(work)
    assert ended == [0]
    assert handled == [signal.SIGUSR1, signal.SIGUSR2]
    for number, handler in zip(numbers, before, strict=True):
        assert signal.signal(number, handler) is time_is_up


class TooLong(TimeoutError, ValueError):
    """What a handler raises, of kinds that are caught where calls raise them."""


def pressed(result: Any) -> Any:
    """Return it; meanwhile a signal comes."""
    signal.raise_signal(signal.SIGUSR1)
    return result


class Pressing(UserDict[str, Array]):
    """Parameters, and a signal when they are looked at first."""

    looks = 0

    def look(self) -> None:
        self.looks += 1
        if self.looks == 1:
            pressed(None)

    def __iter__(self) -> Iterator[str]:
        self.look()
        return super().__iter__()

    def __getitem__(self, key: str) -> Array:
        self.look()
        return super().__getitem__(key)


class Stepper:
    """An optimizer that is not of schuss."""

    lr = 0.1

    def __init__(self) -> None:
        self.params = Pressing({"w": np.ones(3)})

    def step(self, grads: Any) -> None:
        raise AssertionError


def fit_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: pressed(False)))
    w = np.ones(3)
    schuss.fit(lambda p, x: (0.0, np.ones(3)), w, schuss.SGD(w), np.ones((4, 3)))


def fit_with_another_optimizer(_: pytest.MonkeyPatch) -> None:
    schuss.fit(lambda p, x: (0.0, p), {"w": np.ones(3)}, Stepper(), np.ones((4, 3)))


def l2_of_the_same_again(_: pytest.MonkeyPatch) -> None:
    plain = {"w": np.ones((3, 3))}
    loss = schuss.with_l2(lambda p, x: (0.0, plain), 0.1)
    loss(plain, np.ones((4, 3)))
    loss(Pressing(plain), np.ones((4, 3)))


def demo_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("schuss.demo", reason="needs schuss[demo]")
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda *a, **options: pressed(mkdir(*a, **options)))
    monkeypatch.setattr("schuss.demo.run", lambda **_: 0)
    cli.main(["demo", "--out", tempfile.mkdtemp()])


@pytest.mark.parametrize(
    "call",
    [fit_on_a_terminal, fit_with_another_optimizer, l2_of_the_same_again, demo_elsewhere],
)
def test_what_a_handler_raises_is_not_taken_for_what_a_call_raises(
    call: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_is_up(*_: object) -> None:
        raise TooLong

    handler = signal.signal(signal.SIGUSR1, time_is_up)
    try:
        with pytest.raises(TooLong):
            call(monkeypatch)
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGUSR1, handler)


def test_every_timeout_while_a_checkpoint_is_saved_or_loaded_is_raised(
    tmp_path: Path, rounds: Iterator[int]
) -> None:
    path, chance = tmp_path / "c", random.Random(0)
    optimizer = schuss.Adam(np.ones(100_000))
    optimizer.step(np.ones(100_000))
    schuss.save(path, optimizer.params, optimizer)
    path.chmod(0o600)
    sent = raised = 0

    def time_is_up(*_: object) -> None:
        nonlocal sent
        sent += 1
        raise TimeoutError("too long")

    before = signal.signal(signal.SIGALRM, time_is_up)
    for number in (10 * n + i for n in rounds for i in range(10)):
        call = schuss.load if number % 2 else schuss.save
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 0.02))
            call(path, optimizer.params, optimizer)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeoutError:
            raised += 1
        assert raised == sent
        assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == ["c"]
    signal.signal(signal.SIGALRM, before)

"""Training with `fit` that was stopped anywhere goes on with the same bits, or says why not."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import schedules
from support.arrays import bits
from support.checkpoints import snapshot
from support.files import (
    paths_in,
    read_arrays,
    read_settings,
    rewrite,
    set_at,
    value_at,
    with_settings,
    write_arrays,
)
from support.interruption import Interruption

pytestmark = pytest.mark.filterwarnings("ignore:fit. there is nothing left to do")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

X = np.random.default_rng(0).standard_normal((100, 5))
Y = X @ np.arange(5.0) + 1


UNSET, RNG = object(), np.random.default_rng(0)


def loss_and_grad(params: Any, x: Any, y: Any) -> tuple[float, Any]:
    error = x @ params["w"] + params["b"] - y
    grads = {"w": x.T @ error / len(y), "b": error.mean(keepdims=True)}
    return float((error**2).mean() / 2), grads


def start() -> dict[str, Any]:
    return {"w": np.zeros(5), "b": np.zeros(1)}


# Arguments of mini-batches that `fit` does not cut itself.
OWN_BATCHES: dict[str, Any] = {"x": [(X, Y)], "y": None, "batch_size": UNSET, "rng": UNSET}


def fit(optimizer: Any, loss: Any = None, **options: Any) -> schuss.History:
    arguments: dict[str, Any] = {"x": X, "y": Y, "batch_size": 16, "rng": 3} | options
    arguments = {name: value for name, value in arguments.items() if value is not UNSET}
    return schuss.fit(loss or loss_and_grad, optimizer.params, optimizer, **arguments)


class Crash(Exception):
    """The end of a process, for tests."""


FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validated": {"validation": (X[:10], Y[:10]), "patience": 3, "restore_best": True},
    "best": {"restore_best": True, "patience": 1, "min_delta": 1.0, "drop_last": True},
    "plateau": {"schedule": schedules.ReduceOnPlateau(0.1, patience=0), "prefetch": 1},
    "by epoch": {"schedule": schedules.Exponential(0.1, 0.9), "schedule_by": "epoch"},
    "own": {"schedule": lambda t: 0.1 / t, "schedule_by": "epoch", "shuffle": False},
    "accumulated": {"accumulate": 3, "l2": 0.1, "prefetch": 2, "validation": (X, Y), "mode": "max"},
    "scaled": {"loss_scale": schuss.DynamicLossScale(4.0, growth_interval=3), "accumulate": 2},
    "from": {"start_from_epoch": 2, "patience": 1, "restore_best": True},
}


def trained(
    kind: str, stop_at: int | None = None, how: type[BaseException] = Crash, **options: Any
) -> tuple[Any, schuss.History]:
    def stop(history: schuss.History) -> None:
        if history.steps == stop_at:
            raise how

    optimizer = schuss.Adam(start(), lr=0.1, average=0.9)
    return optimizer, fit(optimizer, epochs=4, on_step=stop, **deepcopy(FITS[kind]), **options)


def record(history: schuss.History) -> list[Any]:
    arrays = [history.cost, history.lr, history.epoch_cost, history.validation]
    return [*bits(arrays), history.steps, history.epochs, history.best_epoch, history.stopped]


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("every", [None, 1, 4])
@pytest.mark.parametrize("how", [Crash, KeyboardInterrupt])
def test_fit_goes_on_with_the_bits_of_a_training_that_was_not_stopped(
    kind: str, every: int | None, how: Any, tmp_path: Path
) -> None:
    expected, history = trained(kind)
    for stop_at in range(1, history.steps + 1, 2):
        options: dict[str, Any] = {"checkpoint": tmp_path / f"{stop_at}", "checkpoint_every": every}
        if how is Crash:
            with pytest.raises(Crash):
                trained(kind, stop_at, how, **options)
        else:
            _, interrupted = trained(kind, stop_at, how, **options)
            assert (interrupted.steps, interrupted.stopped) == (stop_at, "interrupted")
        for _ in range(2):  # to the end, and from there
            optimizer, resumed = trained(kind, **options)
            assert record(resumed) == record(history)
            assert snapshot(optimizer) == snapshot(expected)
            if how is KeyboardInterrupt:  # no step is made twice
                assert len(resumed.loss_seconds) == history.steps


def noisy(rng: Any, calls: Any, stop_at: int | None, how: type[BaseException]) -> Any:
    """Return a loss that draws random numbers, and stops at a call, then."""

    def loss(params: Any, x: Any, y: Any) -> tuple[float, Any]:
        noise = rng.standard_normal(len(y))
        if next(calls) == stop_at:
            raise how
        return loss_and_grad(params, x, y + noise)

    return loss


class Counter:
    """An object with a state that changes in place."""

    def __init__(self) -> None:
        self.seen = np.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        if not np.isfinite(state["seen"]).all():
            raise ZeroDivisionError
        self.seen[:] = state["seen"]


def random_training(own: bool, path: Path | None, stop_at: int | None, how: Any, seed: int) -> Any:
    """Train with everything random: the loss, and mini-batches that draw from the same generator.

    The state has two generators and a counter, and replaces the seed. It stops after a step if
    `stop_at` is negative, or else within the loss of a mini-batch.
    """
    rng, others, counter = np.random.default_rng(seed), np.random.default_rng(seed), Counter()
    optimizer = schuss.Adam(start(), lr=0.1)

    def batches() -> Any:
        for _ in range(7):
            chosen = rng.integers(0, 100, size=16)
            yield X[chosen], Y[chosen]

    def on_step(history: Any) -> None:
        counter.seen[0] += history.cost[-1] * others.random()
        if history.steps == -(stop_at or 0):
            raise how

    def loss(*arguments: Any) -> Any:
        counter.seen[1] += 1
        return with_noise(*arguments)

    def load(new: Any) -> None:
        others.bit_generator.state = new

    pair = (lambda: others.bit_generator.state, load)
    state: dict[str, Any] = {"rng": rng, "others": pair, "counter": counter}
    options: dict[str, Any] = {"epochs": 3, "accumulate": 3, "on_step": on_step}
    options |= {"checkpoint": path, "checkpoint_every": 2, "state": state} if path else {}
    data: Any = (batches,) if own else (schuss.minibatches(X, Y, batch_size=16, rng=rng),)
    with_noise = noisy(rng, count(1), stop_at, how)
    history = schuss.fit(loss, optimizer.params, optimizer, *data, **options)
    return [*snapshot(optimizer), *record(history), counter.seen.tobytes()]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("how", [Crash, KeyboardInterrupt])
def test_with_a_state_random_training_goes_on_from_any_mini_batch(
    own: bool, how: Any, tmp_path: Path
) -> None:
    expected = random_training(own, None, None, how, 0)
    for stop_at in range(-9, 22):
        path = tmp_path / f"{stop_at}"
        with suppress(Crash):
            random_training(own, path, stop_at, how, 0)
        seed = 1 if own else 0  # `fit` refuses another seed of mini-batches that it cuts
        assert random_training(own, path, None, how, seed) == expected


def test_a_state_that_an_object_refuses_changes_nothing(tmp_path: Path) -> None:
    path, counter, rng = tmp_path / "c", Counter(), np.random.default_rng(0)

    def train(optimizer: Any, epochs: int, **options: Any) -> None:
        fit(optimizer, epochs=epochs, checkpoint=path, state={"a": rng, "b": counter}, **options)

    train(schuss.Adam(start(), lr=0.1), 1)
    good, before = path.read_bytes(), rng.bit_generator.state
    counter.seen[:] = np.nan
    path.unlink()
    train(schuss.Adam(start(), lr=0.1), 1)
    bad = path.read_bytes()
    counter.seen[:] = 5
    rng.random()
    drawn = rng.bit_generator.state
    optimizer = schuss.Adam(start(), lr=0.1)
    unloaded = snapshot(optimizer)
    with pytest.raises(ZeroDivisionError):
        train(optimizer, 2)
    assert (snapshot(optimizer), counter.seen.tolist()) == (unloaded, [5, 5])
    assert rng.bit_generator.state == drawn
    for content, change, words in [
        (
            good,
            lambda s: s["extra"].update(other=s["extra"].pop("state")),
            "holds no state, expected to find it",
        ),
        (good, lambda s: s["extra"]["state"].pop("a"), "state has the keys ['b'], expected"),
        (good, lambda s: s["extra"]["state"]["a"].pop("uinteger"), "state['a'] has the keys ['bi"),
        (good, lambda s: s["optimizer"]["hyperparameters"].update(lr=-1), "lr is -1, expected"),
    ]:
        path.write_bytes(content)
        rewrite(path, change)
        with pytest.raises(ValueError, match=r"^fit: '.*c' ?") as caught:
            train(optimizer, 2)
        assert words in str(caught.value)
        assert (counter.seen.tolist(), rng.bit_generator.state) == ([5, 5], drawn)
    path.write_bytes(good)
    train(optimizer, 1)
    assert (counter.seen.tolist(), rng.bit_generator.state) == ([0, 0], before)
    assert schuss.load(path, start())["state"]["b"]["seen"].tolist() == [0, 0]
    assert bad != good


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (3, "state is a int, expected an object with state_dict"),
        ((print, 3), "state is a tuple, expected an object with state_dict"),
        (Counter, "state is a type, expected an object with state_dict"),
        ({"a": RNG, "b": {}}, r"state\['b'\] is a dict, expected an object with"),
        ({3: RNG}, "state has the key 3, expected a str"),
        ((lambda: {1}, print), "state holds a set, expected what JSON can hold"),
    ],
)
def test_a_state_that_cannot_be_saved_is_refused_at_once(
    state: Any, words: str, tmp_path: Path
) -> None:
    optimizer = schuss.SGD(start())
    with pytest.raises(TypeError, match=f"^fit: {words}"):
        fit(optimizer, state=state, checkpoint=tmp_path / "c")
    assert (optimizer.steps, os.listdir(tmp_path)) == (0, [])


def test_where_nothing_is_left_to_do_fit_says_so(tmp_path: Path) -> None:
    def train(path: Path, epochs: int, **options: Any) -> schuss.History:
        return fit(schuss.SGD(start()), checkpoint=path, epochs=epochs, **options)

    train(tmp_path / "c", 2)
    with pytest.warns(
        UserWarning, match=r"nothing left to do: checkpoint '.*c' holds 2 epochs, an"
    ):
        history = train(tmp_path / "c", 2)
    assert (history.steps, history.resumed_steps, history.stopped) == (14, 14, "finished")
    assert "14 of them from a checkpoint" in repr(history)
    history = train(tmp_path / "c", 3)
    assert (history.steps, history.resumed_steps) == (21, 14)
    options: Any = {"validation": lambda p: 1.0, "patience": 2}
    assert train(tmp_path / "early", 9, **options).stopped == "early"
    with pytest.warns(
        UserWarning, match=r"holds 3 epochs, of which the last 2 were no improvement"
    ):
        history = train(tmp_path / "early", 9, **options)
    assert (history.resumed_steps, history.stopped) == (21, "early")


def test_fit_goes_on_to_more_epochs(tmp_path: Path) -> None:
    def train(epochs: int, **options: Any) -> Any:
        optimizer = schuss.Adam(start(), lr=0.1)
        history = fit(optimizer, epochs=epochs, **options)
        return snapshot(optimizer), record(history)

    for epochs in (1, 3, 5):
        assert train(epochs, checkpoint=tmp_path / "c") == train(epochs)


def test_fit_goes_on_with_the_objects_that_it_was_given_before(tmp_path: Path) -> None:
    """The optimizer, its schedules and the generator: as they are after a crash, or fresh."""

    def given() -> tuple[Any, Any]:
        plateau, other = (schedules.ReduceOnPlateau(lr, 0.5, patience=0) for lr in (0.1, 0.5))
        adam = schuss.Adam(start(), plateau, groups=lambda k: {"lr": other} if k == "b" else None)
        return adam, np.random.default_rng(3)

    def train(optimizer: Any, rng: Any, stop_at: int | None = None, **options: Any) -> Any:
        options = {"epochs": 6, "patience": 2, "checkpoint_every": 10, "rng": rng} | options
        options |= {"on_step": lambda history: 1 / 0 if history.steps == stop_at else None}
        return fit(optimizer, validation=lambda p: 1.0, **options)

    expected, rng = given()
    history = train(expected, rng, patience=None, checkpoint=tmp_path / "whole")
    path = tmp_path / "c"
    optimizer, rng = given()
    for stop_at in (9, 13, 20):
        with pytest.raises(ZeroDivisionError):
            train(optimizer, rng, stop_at, checkpoint=path)
    assert train(optimizer, rng, checkpoint=path, patience=3).stopped == "early"
    fresh = given()[0]
    assert train(fresh, None, checkpoint=path, patience=3, epochs=5).stopped == "early"
    assert train(optimizer, None, checkpoint=path, patience=None, epochs=5).epochs == 5
    for each in (optimizer, fresh):
        resumed = train(each, None, checkpoint=path, patience=None)
        assert record(resumed) == record(history)
        assert bits(list(each.params.values())) == bits(list(expected.params.values()))
        for group, expected_group in zip(each.param_groups, expected.param_groups, strict=True):
            assert group["lr"] == expected_group["lr"]
            assert group["lr"].best == 1.0


def test_fit_saves_every_n_steps_or_after_each_epoch(tmp_path: Path) -> None:
    path = tmp_path / "c"
    for every, expected in [(None, [0, 7, 14]), (1, range(15)), (5, [0, 5, 10, 14])]:
        saved: list[int] = []

        def note(history: Any, saved: list[int] = saved) -> None:
            steps = safetensors_numpy.load_file(path)["training/steps"].shape[1]
            saved.extend([steps] if steps not in saved else [])

        path.unlink(missing_ok=True)
        options: Any = {"checkpoint": path, "checkpoint_every": every, "on_step": note}
        fit(schuss.SGD(start()), epochs=2, **options)
        note(None)
        assert saved == [*expected]


# Signals while it loads.


def test_ctrl_c_while_fit_loads_finds_the_rate_loaded_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, seen = tmp_path / "c", os.stat, set()

    def load(interruption: Interruption) -> Any:
        def stat(*arguments: Any, **options: Any) -> os.stat_result:
            interruption.armed = True
            return real(*arguments, **options)

        monkeypatch.setattr(os, "stat", stat)
        optimizer = schuss.SGD(start())
        lower: Any = lambda history: setattr(optimizer, "lr", 0.25)  # noqa: E731
        interruption.meets(lambda: fit(optimizer, checkpoint=path, schedule=0.5, callbacks=lower))
        return optimizer

    never = Interruption(10**9, armed=False)
    initial, saved = snapshot(schuss.SGD(start())), snapshot(load(never))
    for n in count(1, 4):
        interruption = Interruption(n, armed=False)
        optimizer = load(interruption)
        seen.add(optimizer.lr)
        assert snapshot(optimizer) == (saved if optimizer.lr == 0.25 else initial)
        if not interruption.sent:
            break
    assert seen == {0.01, 0.25}


@pytest.mark.usefixtures("quick_disk")
@pytest.mark.parametrize("own", [False, True])
def test_ctrl_c_at_any_line_loses_and_repeats_no_mini_batch(own: bool, tmp_path: Path) -> None:
    def train(path: Path, interruption: Interruption | None = None) -> Any:
        rng = np.random.default_rng(0)
        scaler = schuss.DynamicLossScale(4.0, growth_interval=2)
        optimizer = schuss.Adam(start(), lr=0.1)
        options: dict[str, Any] = {"accumulate": 2, "loss_scale": scaler, "state": rng}
        options |= {"checkpoint": path, "epochs": 2, "batch_size": 40}
        if own:
            options |= OWN_BATCHES | {"x": [(X[i::3], Y[i::3]) for i in range(3)]}
        loss = noisy(rng, count(1), None, Crash)
        if interruption is None:
            return [fit(optimizer, loss, **options), optimizer, scaler.state_dict(), rng]
        history: list[Any] = []
        interruption.meets(lambda: history.append(fit(optimizer, loss, **options)))
        for each in history:  # otherwise it was interrupted before the first step
            assert (each.steps, optimizer.accumulated) == (optimizer.steps, 0)
        return None

    def values(history: Any, optimizer: Any, scale: Any, rng: Any) -> list[Any]:
        return [record(history), snapshot(optimizer), scale, rng.bit_generator.state]

    expected = values(*train(tmp_path / "whole"))
    for n in count(1 + own, 41):
        interruption = Interruption(n)
        train(tmp_path / f"{n}", interruption)
        assert values(*train(tmp_path / f"{n}")) == expected
        if not interruption.sent:
            break


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such signals")
def test_a_timeout_while_fit_looks_for_its_checkpoint_does_not_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, looks = tmp_path / "c", os.stat, count()
    trained("plain", 5, KeyboardInterrupt, checkpoint=path)
    before = path.read_bytes()

    def slow(*arguments: Any, **options: Any) -> os.stat_result:
        if arguments[0] == str(path) and next(looks) == 0:
            signal.raise_signal(signal.SIGUSR1)
        return real(*arguments, **options)

    def time_is_up(*_: object) -> None:
        raise TimeoutError

    handler = signal.signal(signal.SIGUSR1, time_is_up)
    monkeypatch.setattr(os, "stat", slow)
    with pytest.raises(TimeoutError):
        trained("plain", checkpoint=path)
    monkeypatch.undo()
    signal.signal(signal.SIGUSR1, handler)
    assert path.read_bytes() == before


# Refusals before the first step.


class Own:
    params, lr = start(), 0.1

    def step(self, grads: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("optimizer", "path", "every", "error", "words"),
    [
        (Own, "c", None, TypeError, "optimizer is a Own, expected an optim"),
        (schuss.SGD, 7, None, TypeError, "checkpoint is a int"),
        (schuss.SGD, "no/c", None, FileNotFoundError, "no"),
        (schuss.SGD, None, 3, ValueError, "checkpoint_every is 3 without"),
        (schuss.SGD, "c", 0, ValueError, "checkpoint_every is 0, expected an integer >= 1"),
    ],
)
def test_fit_refuses_at_once_what_it_could_not_save(
    optimizer: Any, path: Any, every: int | None, error: type[Exception], words: str, tmp_path: Path
) -> None:
    given = Own() if optimizer is Own else optimizer(start())
    checkpoint = tmp_path / path if isinstance(path, str) else path
    with pytest.raises(error, match=words):
        fit(given, checkpoint=checkpoint, checkpoint_every=every)
    assert os.listdir(tmp_path) == []


def test_fit_that_cannot_go_on_leaves_the_optimizer_its_rate(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("no checkpoint")
    schuss.save(tmp_path / "saved", start())
    for name, words in (
        ("c", "is cut short, or is not a saf"),
        ("saved", "saved by schuss.save, exp"),
    ):
        optimizer = schuss.SGD(start(), lr=0.5)
        with pytest.raises(ValueError, match=f"^fit: '.*' .*{words}"):
            fit(optimizer, checkpoint=tmp_path / name, schedule=1)
        assert optimizer.lr == 0.5


def test_fit_refuses_mini_batches_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    batches = schuss.minibatches(X, Y, batch_size=16, rng=0)
    epoch = iter(batches)
    next(epoch)
    schuss.save(tmp_path / "c", np.ones(3), batches=batches)
    schuss.load(tmp_path / "c", np.ones(3), batches=batches)
    optimizer = schuss.SGD(start(), lr=0.5)
    with pytest.raises(ValueError, match=r"^fit: x is in the middle of an epoch, after 1 batches"):
        schuss.fit(loss_and_grad, optimizer.params, optimizer, batches, schedule=0.1)
    assert (optimizer.steps, optimizer.lr) == (0, 0.5)
    list(batches)
    assert schuss.fit(loss_and_grad, optimizer.params, optimizer, batches).steps == 7


# Checkpoints of another training.


def adam(lr: Any = 0.1, average: Any = 0.9, **options: Any) -> Callable[[Any], Any]:
    return lambda p: schuss.Adam(p, lr, average=average, **options)


OTHER_X = X + (np.arange(X.size).reshape(X.shape) == 3)  # one number differs
FALLING = {"schedule": schedules.Linear(0.1, 0, steps=2), "schedule_by": "epoch"}
PER_EPOCH = "expected PerEpoch(schedule=Linear(start=0.1, end=0.0, steps=2), steps=7), as"
B_FASTER = adam(groups=lambda name: {"lr": 0.5} if name == "b" else None)
OTHER_TRAININGS: dict[str, tuple[Callable[[Any], Any], dict[str, Any], str]] = {
    "validation": (adam(), {"validation": None}, "with validation, expected one without"),
    "epochs": (
        adam(),
        {"epochs": 3},
        "epochs is 3, expected at least 4, the number of epochs that checkpoint",
    ),
    "batch_size": (adam(), {"batch_size": 10}, "began with batch_size 16, expected 10"),
    "shuffle": (adam(), {"shuffle": False}, "began with shuffle True, expected False"),
    "drop_last": (adam(), {"drop_last": True}, "began with drop_last False, expected True"),
    "rng": (adam(), {"rng": 4}, "began with rng PCG64 (sha256 "),
    "MT19937": (adam(), {"rng": np.random.Generator(np.random.MT19937(3))}, ", expected MT19937"),
    "x": (adam(), {"x": OTHER_X}, f"began with x float64 of shape {X.shape} (sha256 "),
    "dtype": (adam(), {"x": X.astype("f")}, "expected float32 of shape"),
    "y": (adam(), {"y": -Y}, f"began with y float64 of shape {Y.shape} (sha256 "),
    "no y": (adam(), {"x": (X, Y), "y": None}, f", expected {X.dtype} of shape {X.shape}"),
    "measured": (adam(), {"validation": (OTHER_X, Y)}, "began with validation[0] float64 of shape"),
    "listed": (adam(), {"validation": [(X, Y)]}, "a tuple of 2 arrays, expected a list of 1 ba"),
    "l2": (adam(), {"l2": 0.5}, "began with l2 0.0, expected 0.5"),
    "patience": (adam(), {"patience": 2}, "began with patience 3, expected 2"),
    "min_delta": (adam(), {"min_delta": 0.5}, "began with min_delta 0.0, expected 0.5"),
    "best": (adam(), {"restore_best": False}, "began with restore_best True, expected False"),
    "schedule": (adam(), {"schedule": 0.2}, "began with the learning rate 0.1, expected 0.2"),
    "falling": (adam(), FALLING, PER_EPOCH),
    "function": (adam(), {"schedule": lambda t: 0.1}, "rate 0.1, expected a function, as this"),
    "class": (schuss.SGD, {}, "began with optimizer Adam, expected SGD"),
    "lr": (adam(0.01), {}, "rate 0.1, expected 0.01, as this"),
    "beta1": (adam(beta1=0.5), {}, "optimizer.beta1 0.9, ex"),
    "average": (adam(average=None), {}, "optimizer.average 0.9, expected None"),
    "groups": (B_FASTER, {}, "optimizer.param_groups[1]['lr'] None, expected 0.5"),
    "accumulate": (adam(), {"accumulate": 2}, "began with accumulate 1, expected 2"),
    "mode": (adam(), {"mode": "max"}, "began with mode 'min', expected 'max'"),
    "from": (adam(), {"start_from_epoch": 1}, "began with start_from_epoch 0, expected 1"),
    "scale": (adam(), {"loss_scale": 8}, "began with loss_scale None, expected 8.0"),
    "scaler": (adam(), {"loss_scale": schuss.DynamicLossScale()}, "None, expected DynamicLossS"),
    "state": (
        adam(),
        {"state": {"rng": RNG}},
        "state None, expected the state of 'rng'",
    ),
    "iterable": (adam(), OWN_BATCHES, ", expected a list of 1 batches (sha256 "),
}


@pytest.mark.parametrize("name", OTHER_TRAININGS)
def test_fit_says_when_its_checkpoint_is_of_another_training(name: str, tmp_path: Path) -> None:
    make, options, words = OTHER_TRAININGS[name]
    path = tmp_path / "c"
    given = {"epochs": 4, "rng": None, "checkpoint": path} | FITS["validated"]
    trained("validated", checkpoint=path)
    before, optimizer = path.read_bytes(), make(start())
    unloaded = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"^fit: ") as caught:
        fit(optimizer, **given | options)
    assert words in str(caught.value)
    assert snapshot(optimizer) == unloaded
    assert path.read_bytes() == before


def test_a_training_goes_on_only_with_the_formats_that_it_began_with(tmp_path: Path) -> None:
    def train(**options: Any) -> None:
        w: Any = np.zeros(2, ml_dtypes.bfloat16)
        optimizer, path = schuss.Adam(w, **options), tmp_path / "c"
        schuss.fit(lambda w, x: (0.0, w.copy()), w, optimizer, X, epochs=1, rng=0, checkpoint=path)

    ml_dtypes = pytest.importorskip("ml_dtypes")
    train(state_dtype="8bit", master="float32")
    for options, words in (
        ({"state_dtype": "8bit"}, r"optimizer\.master 'float32', expected None"),
        ({"master": "float32"}, r"optimizer\.state_dtype '8bit', expected None"),
        (
            {"state_dtype": "8bit", "round_params": "random"},
            r"optimizer\.round_params None, expected 'random'",
        ),
    ):
        with pytest.raises(ValueError, match=rf"^fit: .* began with .*{words}"):
            train(**options)


def fit_one(x: Any, path: Path, rng: Any = 0, epochs: int = 1) -> int:
    w = np.zeros(1)
    options: dict[str, Any] = {"rng": rng, "epochs": epochs, "checkpoint": path}
    return schuss.fit(lambda w, x: (0.0, 0 * w), w, schuss.SGD(w), x, **options).steps


def test_other_large_data_is_refused_if_a_sample_or_the_last_element_differs(
    tmp_path: Path,
) -> None:
    path, shape = tmp_path / "c", (16, (1 << 20) + 3000)  # more than is read whole
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)[:] = 1
    x = np.load(tmp_path / "x.npy", mmap_mode="r+")
    assert fit_one(x, path) == fit_one(x, path) == 1
    x[:, ::2] = 2
    with pytest.raises(ValueError, match=r"^fit: '.*' holds a training that began with x float32"):
        fit_one(x, path)
    x[:, ::2] = 1
    assert fit_one(x, path) == 1
    x[-1, -1] = 2
    with pytest.raises(ValueError, match="began with x"):
        fit_one(x, path)


def test_other_masks_of_the_data_and_another_seed_are_refused_at_once(tmp_path: Path) -> None:
    def train(masked: int, seed: int, epochs: int = 10**9) -> int:
        x = np.ma.masked_array(np.arange(6.0), mask=np.arange(6) == masked)
        rng = np.random.Generator(np.random.MT19937(seed))
        return fit_one(x, tmp_path / "c", rng, epochs)

    assert train(1, 1, epochs=2) == train(1, 1, epochs=2) == 2
    with pytest.raises(ValueError, match=r"began with x float64 of shape \(6,\), masked as bool"):
        train(2, 1)
    with pytest.raises(ValueError, match="holds a training that began with rng MT19937"):
        train(1, 2)


# A file can be whole, with the right digest, and have values that no training has.

SCHEDULE = {"schuss.schedule": "Constant", "number": 0, "lr": 0.1}
WRONG: list[Any] = [
    *(None, True, 7, -1, 0.5, "x", [], {"a": 1}, 2**53, 10**400, float("nan"), SCHEDULE),
    *({"schuss.same": 0}, {"schuss.array": "params"}),
]
# The fields that may have these values. The integers are indices: the weights of averages.
REALS = {
    "lr",
    "after",
    "start",
    "weight_decay",
    "eps",
    "eps_root",
    "eps_hat",
    "clip_norm",
    "clip_value",
    0,
    1,
}
COUNTS = {"steps", "skipped", "seed", "number", "state", "inc", "uinteger"}
ALSO_RIGHT: dict[str, set[Any]] = {
    "True": {"clear_grads", "average_bias_correction", "maximize", "track_norms"},
    "'left out'": {"maximize", "bounds", "eps_hat", "rested", "track_norms", "master", "blocks"},
    "7": REALS | COUNTS,
    "0.5": REALS | {"beta1", "beta2"},
    "{'a': 1}": {"extra"},
    str(2**53): REALS | {"state"},
    str(SCHEDULE): {"lr", "after"},
}


def fitted(path: Path, epochs: int) -> Any:
    """Train from the checkpoint if there is one, and return the optimizer.

    A refusal changes nothing.
    """
    optimizer = schuss.Adam(start(), lr=schedules.WarmUp(0.1, 2), average=0.5)
    options: dict[str, Any] = {"batch_size": 50, "epochs": epochs, "rng": 0, "patience": 9}
    options |= {"validation": (X, Y), "restore_best": True, "checkpoint": path}
    try:
        fit(optimizer, **options)
    except ValueError as error:
        if not str(error).startswith((f"fit: {str(path)!r}", "fit: lr is ")):
            raise AssertionError from error
        assert optimizer.steps == 0
        assert not optimizer.params["w"].any()
        raise
    return optimizer


LEFT_OUT = "left out"


def test_a_field_of_a_checkpoint_is_of_its_type_and_range_or_refused(tmp_path: Path) -> None:
    """Or it is another value that it may have: with that, training goes on to its end."""
    path = tmp_path / "c"
    fitted(path, 1)
    content, settings = path.read_bytes(), read_settings(path)
    accepted: dict[str, set[Any]] = {}
    for field in paths_in(settings):
        was = value_at(settings, field)
        for value in [*WRONG, LEFT_OUT]:
            # Arguments are texts that are compared, and None where they are missing.
            if "arguments" in field[:-1] or (type(value) is type(was) and value == was):
                continue

            def put(settings: Any, field: Any = field, value: Any = value) -> None:
                set_at(settings, field, deepcopy(value))
                if value is LEFT_OUT:
                    del value_at(settings, field[:-1])[field[-1]]

            path.write_bytes(with_settings(content, put))
            try:
                optimizer = fitted(path, 2)
            except ValueError:
                continue
            assert optimizer.steps in (4, 9)  # 7 is a number of steps too
            accepted.setdefault(repr(value), set()).add(field[-1])
    assert accepted == ALSO_RIGHT


# Fields of the settings, other values, and what the message says.
IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("validated", False, "is of a training without validation, expected one"),
    ("validated", 1, "training['validated'] is 1, expected True or False"),
    ("best_epoch", 1, "training best_epoch 1, expected 2 to 2"),
    ("best_epoch", None, "training best_epoch 0, expected 2 to 2"),
    ("best/epoch", 3, "training best['epoch'] 3, expected 0 to 2"),
    ("best/epoch", 0, "['epoch'] is 0, expected an integer >= 1"),
    ("best/epoch", None, "training best_epoch 2, expected 0 to 0"),
    ("best/waited", 1, "training best['waited'] 1, expected 0 to 0"),
    ("best/value", 0.5, "training best['value'] 0.5, expected 14.9"),
    ("arguments", None, "training['arguments'] is None, expected a mapping of texts"),
    ("arguments", [], "training['arguments'] is [], expected a mapping of texts"),
    ("arguments", {"l2": 0.0}, "training['arguments'] is {'l2': 0.0}, expected a mapping of"),
    ("arguments", {"l2": [""]}, "training['arguments'] is {'l2': ['']}, expected a mapping"),
]
# Arrays, other shapes, and what the message says.
IMPOSSIBLE_ARRAYS: list[tuple[str, Any, str]] = [
    ("steps", (2, 8), "training/steps in F64 of shape (2, 8), expected F64 of shape (6, n)"),
    ("steps", (24,), "training/steps in F64 of shape (24,), expected F64 of shape (6, n)"),
    ("steps", (6, 3), "holds 3 steps and ends of epochs at [2.0, 4.0], expected one every 2 steps"),
    ("steps", (6, 7), "holds 7 steps and ends of epochs at [2.0, 4.0], expected one every 2 steps"),
    ("steps", (6, 5), "has batches['epoch'] after 0 batches, expected 1 as of its steps"),
    ("batches", (4, 1), "holds 1 mini-batches of a step and 0 accumulated gradients, expected as"),
    ("batches", (3, 1), "training/batches in F64 of shape (3, 1), expected F64 of shape (4, n)"),
    ("batches", None, "holds no training/batches, expected to find it"),
    ("epoch_ends", (2,), "ends of epochs at [1.0, 1.0], expected one every 2 steps"),
    ("epoch_ends", (3,), "holds 3 ends of epochs and 2 validations, expected 2 and 2, as it"),
    ("steps", None, "holds no training/steps, expected to find it"),
    ("epoch_cost", (2, 1), "training/epoch_cost in F64 of shape (2, 1), expected F64 of sh"),
    ("epoch_cost", (1,), "holds 2 ends of epochs and 2 validations, expected 1 and 1, as it"),
    ("epoch_cost", (), "training/epoch_cost in F64 of shape (), expected F64 of shape (n,)"),
    ("validation", (1,), "holds 2 ends of epochs and 1 validations, expected 2 and 2"),
    ("validation", None, "holds no training/validation, expected to find it"),
    ("best/w", (5,), "holds training/best/w, expected nothing of that name"),
    ("best/0", None, "holds no training/best/0, expected to find it"),
    ("best/0", (4,), "holds training/best/0 of shape (4,), expected that of a parameter"),
]


@pytest.mark.parametrize(("name", "value", "words"), [*IMPOSSIBLE, *IMPOSSIBLE_ARRAYS])
def test_settings_and_history_in_a_checkpoint_are_of_one_training(
    name: str, value: Any, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    fitted(path, 2)
    arrays, good = read_arrays(path), path.read_bytes()
    if (name, value, words) in IMPOSSIBLE:
        rewrite(path, lambda settings: set_at(settings, ("training", *name.split("/")), value))
    else:
        arrays.pop(f"training/{name}", None)
        write_arrays(path, arrays | ({} if value is None else {f"training/{name}": np.ones(value)}))
    with pytest.raises(ValueError, match=r"^fit: ") as caught:
        fitted(path, 3)
    assert words in str(caught.value)
    path.write_bytes(good)
    assert fitted(path, 3).steps == 6


def test_a_state_dict_of_an_earlier_version_loads() -> None:
    """Entries that it did not have yet get their defaults."""
    grad, results = np.full(3, 0.5), []
    for is_early in (False, True):
        one, two = (schuss.Adam(np.ones(3), lr=0.1) for _ in range(2))
        one.step(grad)
        one.accumulate(grad)
        saved = one.state_dict()
        if is_early:
            for name in ("maximize", "bounds", "eps_hat"):
                del saved["hyperparameters"][name]
            del saved["groups"][0]["rested"], saved["accumulated"]["without"]
        two.load_state_dict(saved)
        two.step()
        results.append(two.params.copy())
    np.testing.assert_array_equal(*results)

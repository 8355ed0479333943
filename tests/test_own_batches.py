"""Training on mini-batches of one's own: any iterable, from a list to a DataLoader of PyTorch."""

from collections import UserList
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from support.arrays import bits

RNG = np.random.default_rng(0)
X = RNG.standard_normal((23, 3))
Y = X @ np.array([2.0, -1.0, 0.5])


def loss_and_grad(w: Any, x: Any, y: Any) -> tuple[float, Any]:
    error = x @ w - y
    return float(error @ error) / 2 / len(x), x.T @ error / len(x)


def fit(x: Any, y: Any = None, loss: Any = loss_and_grad, **options: Any) -> Any:
    """Return the parameters, the optimizer and the history of a training."""
    w = np.zeros(3)
    optimizer = schuss.Momentum(w, lr=0.1)
    history = schuss.fit(loss, w, optimizer, x, y, **{"epochs": 3, "progress": False} | options)
    return w, optimizer, history


def batches() -> Iterator[tuple[Any, Any]]:
    for start in range(0, 23, 8):
        yield X[start : start + 8], Y[start : start + 8]


class Loader:
    """What a DataLoader has: a length, and an iterator for each epoch over lists."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[list[Any]]:
        return map(list, batches())


class Unsized(Loader):
    """What a DataLoader of an iterable data set has: its length raises."""

    def __len__(self) -> int:
        raise TypeError


class Empty(Loader):
    """A loader without mini-batches."""

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(())


def by_name(w: Any, batch: Any) -> tuple[float, Any]:
    return loss_and_grad(w, batch["x"], batch["y"])


SOURCES: dict[str, tuple[Any, Any]] = {
    "list": ([*batches()], loss_and_grad),
    "sequence": (UserList(batches()), loss_and_grad),
    "generator function": (batches, loss_and_grad),
    "function": (lambda: [*batches()], loss_and_grad),
    "loader": (Loader(), loss_and_grad),
    "unsized": (Unsized(), loss_and_grad),
    "dicts": ([{"x": x, "y": y} for x, y in batches()], by_name),
    "arrays": (
        lambda: (np.c_[x, y] for x, y in batches()),
        lambda w, xy: loss_and_grad(
            w, np.ascontiguousarray(xy[:, :3]), np.ascontiguousarray(xy[:, 3])
        ),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("k", [1, 2])
def test_own_mini_batches_train_as_those_that_fit_cuts(name: str, k: int) -> None:
    source, loss = SOURCES[name]
    options: dict[str, Any] = {"accumulate": k, "restore_best": True}
    expected, _, history = fit(X, Y, batch_size=8, shuffle=False, **options)
    w, optimizer, ours = fit(source, loss=loss, **options)
    assert bits([w]) == bits([expected])
    np.testing.assert_array_equal(ours.cost, history.cost)
    np.testing.assert_array_equal(ours.epoch_cost, history.epoch_cost)
    assert (ours.steps, ours.epochs, optimizer.steps) == (history.steps, 3, history.steps)
    assert ours.batch_size is None
    assert "in batches of" not in repr(ours)


@pytest.mark.parametrize("x", [X.tolist(), [*X], [(1.0, 2.0, 3.0)] * 4, range(5), [X[0], X[1]]])
def test_lists_of_numbers_or_arrays_are_examples_as_before(x: Any) -> None:
    seen: list[Any] = []

    def loss(w: Any, each: Any) -> tuple[float, Any]:
        seen.append(each)
        return 0.0, np.zeros(3)

    history = fit(x, loss=loss, epochs=1, batch_size=64)[2]
    assert (history.steps, history.batch_size) == (1, 64)
    np.testing.assert_array_equal(np.sort(seen[0].ravel()), np.sort(np.ravel(x)))


def test_an_epoch_has_as_many_mini_batches_as_there_are(tmp_path: Path) -> None:
    costs = iter(np.arange(10.0))
    lengths = iter([3, 1, 2, 4])
    history = fit(
        lambda: iter([(X[:size],) for size in (8, 4, 4, 4)[: next(lengths)]]),
        loss=lambda w, x: (next(costs), np.zeros(3)),
        epochs=4,
    )[2]
    assert (history.steps, history.epochs) == (10, 4)
    np.testing.assert_allclose(
        history.epoch_cost, [(0 * 2 + 1 + 2) / 4, 3, (4 * 2 + 5) / 3, (6 * 2 + 7 + 8 + 9) / 5]
    )
    pytest.importorskip("matplotlib")
    lines = {line.get_label(): line for line in history.plot().axes[0].get_lines()}
    x = [0, 1 / 3, 2 / 3, 1, 2, 2.5, 3, 3.25, 3.5, 3.75]
    np.testing.assert_allclose(lines["each mini-batch"].get_xdata(), x)


def test_mini_batches_without_an_array_weigh_the_same() -> None:
    costs = iter([1.0, 2.0, 6.0])
    history = fit(
        lambda: [(), ("text", 3), None], loss=lambda w, *b: (next(costs), np.zeros(3)), epochs=1
    )[2]
    assert history.epoch_cost.tolist() == [3.0]


@pytest.mark.parametrize(
    "validation",
    [[*batches()], Loader(), schuss.minibatches(X, Y, batch_size=8, shuffle=False)],
    ids=["list", "loader", "MiniBatches"],
)
def test_the_validation_of_mini_batches_is_the_mean_over_their_examples(validation: Any) -> None:
    expected = fit(X, Y, validation=(X, Y), shuffle=False)[2].validation
    ours = fit(X, Y, validation=validation, shuffle=False)[2].validation
    np.testing.assert_allclose(ours, expected, rtol=1e-13)
    for bad, error, words in [
        (batches(), TypeError, "validation is a generator, expected .* that can be iterated over"),
        (Empty(), ValueError, "validation yields no batches, expected at least one"),
    ]:
        with pytest.raises(error, match=f"^fit: {words}"):
            fit(X, Y, validation=bad)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_l2_cost_counts_the_examples_along_the_axis(axis: int) -> None:
    w = np.ones((2, 2))
    columns: Any = [(X[:8], {}), (X[8:12], {})] if axis == 0 else [(X[:8].T, {}), (X[8:12].T, {})]
    history = schuss.fit(
        lambda w, *batch: (0.0, np.zeros((2, 2))), w, schuss.SGD(w, 0.0), columns, l2=3.0, axis=axis
    )
    np.testing.assert_allclose(history.cost, [3 / (2 * b) * 4 for b in (8, 4)], rtol=1e-15)


def test_a_schedule_by_epoch_and_the_bar_need_only_what_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = fit(Loader(), schedule=lambda e: 1 / e, schedule_by="epoch", accumulate=2)[2].lr
    assert rates.tolist() == [1, 1, 1 / 2, 1 / 2, 1 / 3, 1 / 3]
    pytest.importorskip("tqdm")
    for source, shown in ((batches, "9 steps"), (Loader(), "9/9")):
        fit(source, progress=True)
        last = capsys.readouterr().err.rstrip("\n").rpartition("\r")[2]
        assert not [word for word in ("epoch 3/3", shown) if word not in last]


def test_the_rest_of_a_generator_is_closed_when_the_training_stops() -> None:
    closed: list[int] = []

    def endless() -> Iterator[Any]:
        try:
            while True:
                yield X, Y
        finally:
            closed.append(1)

    history = fit(endless, on_step=lambda h: h.steps == 5)[2]
    assert (history.steps, history.epochs, history.stopped, closed) == (5, 0, "callback", [1])


class Sparse(Loader):
    """A matrix that is no array, such as those of scipy.sparse."""

    shape = (3, 2)
    __len__ = None  # type: ignore[assignment]


ONCE = "a generator, which can be iterated over once, and epochs is 3, expected batches that can be"
READY: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "once": (batches(), {}, ValueError, f"x is {ONCE}"),
    "y": (batches, {"y": Y}, ValueError, "y is a ndarray, expected it to be unset, as x is a fun"),
    "size": (Loader(), {"batch_size": 8}, ValueError, "batch_size is 8, expected it .* a Loader"),
    "rng": (
        [*batches()],
        {"rng": 0},
        ValueError,
        "rng is 0, expected it to be unset, as x is a li",
    ),
    "axis": (Loader(), {"axis": 0.5}, TypeError, "axis is a float, expected an integer"),
    "far": (
        Loader(),
        {"axis": 2},
        ValueError,
        "axis is 2, expected an axis of a batch of x, which",
    ),
    "empty": (list, {}, ValueError, "x yields no batches in an epoch, expected at least one"),
    "number": (
        lambda: 3,
        {"schedule": 0.5},
        TypeError,
        r"x\(\) returned a int, expected an iterable of batches",
    ),
    "l2": (lambda: [()], {"l2": 0.5}, TypeError, "a batch has no array, expected one, as l2"),
    "none": ([(X[:0], Y[:0])], {}, ValueError, "a batch of x has no examples along axis 0"),
    "unknown": (batches, {"schedule": abs, "schedule_by": "epoch"}, ValueError, "schedule_by is"),
    "dict": ({"x": X}, {}, TypeError, ""),
    "sparse": (Sparse(), {}, TypeError, ""),
}


@pytest.mark.parametrize("name", READY)
def test_mini_batches_that_cannot_be_used_are_named_before_a_step(name: str) -> None:
    x, options, error, message = READY[name]
    w = np.zeros(3)
    optimizer = schuss.SGD(w)
    lr = optimizer.lr
    arguments: dict[str, Any] = {"epochs": 3} | options
    loss: Callable[..., Any] = loss_and_grad if name != "l2" else lambda w: (0.0, np.zeros(3))
    with pytest.raises(error, match=f"^fit: {message}" if message else "x is a .* expected an"):
        schuss.fit(loss, w, optimizer, x, **arguments)
    assert (optimizer.steps, optimizer.lr, w.tolist()) == (0, lr, [0, 0, 0])


def test_an_iterator_serves_one_epoch_and_its_end_is_noticed() -> None:
    assert fit(batches(), epochs=1)[2].steps == 3
    one = batches()
    with pytest.raises(ValueError, match=r"^fit: x yields no batches in an epoch.*new iterator"):
        fit(lambda: one)


def test_resuming_notices_that_the_mini_batches_have_become_fewer(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert fit(batches, checkpoint=path, on_step=lambda h: h.steps == 5)[2].steps == 5
    words = "x yields 1 batch in the epoch to resume, expected at least 2, those before"
    with pytest.raises(ValueError, match=f"^fit: {words}"):
        fit(lambda: islice(batches(), 1), checkpoint=path)
    assert fit(batches, checkpoint=path)[2].steps == 9  # the file is as it was


# PyTorch.


def data_loader(**options: Any) -> Any:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(data, batch_size=4, **options)


def test_a_data_loader_of_torch_is_iterated_over_in_each_epoch() -> None:
    def loss(w: Any, x: Any, y: Any) -> tuple[float, Any]:
        return loss_and_grad(w, x.numpy(), y.numpy())

    expected, _, history = fit(X, Y, batch_size=4, shuffle=False, accumulate=4)
    w, _, ours = fit(data_loader(), loss=loss, accumulate=4)
    assert bits([w]) == bits([expected])
    np.testing.assert_array_equal(ours.epoch_cost, history.epoch_cost)


def test_data_sets_and_optimizers_of_torch_are_refused_with_the_remedy() -> None:
    torch = pytest.importorskip("torch")
    w = np.zeros(3)
    data = type("Own", (torch.utils.data.Dataset,), {"__getitem__": lambda self, i: X[i]})()
    for examples in (data_loader().dataset, data):
        with pytest.raises(TypeError, match=r"^fit: x is a .*expected .*a DataLoader of it"):
            fit(examples)
    for optimizer in (torch.optim.SGD, schuss.torch.SGD):
        with pytest.raises(TypeError, match=r"^fit: optimizer is a SGD of PyTorch.*schuss\.Adam"):
            schuss.fit(loss_and_grad, w, optimizer([torch.zeros(3)], lr=0.1), X, Y)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_training_with_a_shuffling_data_loader_resumes_bit_for_bit(
    accumulate: int, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")

    def load(state: Any) -> None:
        torch.set_rng_state(torch.from_numpy(state))

    def train(path: Path, seed: int, stop_at: int = 0) -> Any:
        losses: list[float] = []

        def loss(w: Any, x: Any, y: Any) -> tuple[float, Any]:
            keep = torch.rand(len(x)).numpy() < 0.75  # dropout
            losses.append(0.0)
            if len(losses) == stop_at:
                raise KeyboardInterrupt
            return loss_and_grad(w, x.numpy() * keep[:, None], y.numpy())

        torch.manual_seed(seed)
        options: dict[str, Any] = {"state": (lambda: torch.get_rng_state().numpy(), load)}
        options |= {"accumulate": accumulate, "checkpoint": path}
        return fit(data_loader(shuffle=True), loss=loss, **options)

    expected, _, history = train(tmp_path / "whole", 0)
    assert history.steps == 3 * (6 if accumulate == 1 else 2)
    for stop_at in range(1, 19, 3):
        path = tmp_path / f"{stop_at}"
        assert train(path, 0, stop_at)[2].stopped == "interrupted"
        w, _, resumed = train(path, 1)
        assert bits([w, resumed.cost]) == bits([expected, history.cost])
